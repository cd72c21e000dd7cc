"""Licenses of outside weights: shown before the first use, refused until they are accepted, remembered then.

What was accepted stands in ``accepted_licences.json`` in the first of the weights folders, by the name and
the hash of the text, so that changed terms are shown again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from reposer.config import read_json
from reposer.errors import MissingWeightsError, UserError
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.weights.files import KNOWN, cache_folders, download, find_weights

ACCEPTED_FILE = "accepted_licences.json"


class LicenseError(UserError):
    """Weights whose license nobody has accepted yet."""


def license_text(terms: str, non_commercial: bool) -> str:
    """The terms as they are shown."""
    return f"{terms} [NOT FOR COMMERCIAL USE]" if non_commercial else terms


def require_license(name: str, terms: str, *, non_commercial: bool = False, accept: bool = False) -> None:
    """Return where the terms were accepted before, or are now; no terms need no acceptance.

    Args:
        name: of the weights.
        terms: in a few words.
        non_commercial: whether they forbid commercial use.
        accept: the user has just accepted them (``--accept-license``).

    Raises:
        LicenseError: not accepted; the message shows the terms.
        UserError: the record of acceptances is damaged, or cannot be written.
    """
    if not terms and not non_commercial:
        return
    text = license_text(terms, non_commercial)
    place = cache_folders()[0] / ACCEPTED_FILE
    accepted = read_json(place) if place.exists() else {}
    mark = sha256_bytes(text.encode())
    if accepted.get(name) == mark:
        return
    if not accept:
        raise LicenseError(
            f"license of {name}: {text}", "read it and, if you accept it, add --accept-license"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    record = json.dumps(accepted | {name: mark}, indent=1, sort_keys=True)
    write_atomic(place, f"{record}\n".encode())


def licensed_weights(
    name: str,
    *,
    accept_license: bool = False,
    may_download: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The official, verified file of ``name``, once its license is accepted.

    Args:
        name: a key of ``files.KNOWN``.
        accept_license: the user has accepted it.
        may_download: get the file where it is not on this machine (resumed if it was cut before).
        on_progress: called with (bytes there, bytes in all).

    Raises:
        LicenseError: not accepted.
        MissingWeightsError: not here; the message says what to get and where to put it.
        DownloadError: the network fails, or what came is not the official file.
    """
    if name in KNOWN:
        require_license(
            name, KNOWN[name].license, non_commercial=KNOWN[name].non_commercial, accept=accept_license
        )
    try:
        return find_weights(name)
    except MissingWeightsError:
        if not may_download:
            raise
    return download(name, on_progress=on_progress)
