"""A network's folder by what a user calls it: a folder, ``hub:owner/name``, or an address with a hash.

An address is ``https://PLACE/config.json#sha256=HEX``, as ``reposer export-run`` prints it. The hash is that
of config.json, which holds that of the weights: whoever serves the files can change neither. They are kept in
the weights folder, so a second call needs no network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin

from reposer.config import read_json
from reposer.errors import UserError
from reposer.storage.paths import printable
from reposer.weights.downloads import Source, fetch, fetch_folder
from reposer.weights.files import cache_folders
from reposer.weights.network_folder import CONFIG, WEIGHTS

PLACE = "addresses"  # in the weights folder
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_CONFIG, _MOST_WEIGHTS = 1_000_000, 1_000_000_000  # bytes


def open_folder(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of that name, fetched where it is not on this machine.

    Args:
        name: a folder, ``hub:owner/name[@commit]``, or ``https://.../config.json#sha256=HEX``.
        files: that the hub is asked for.

    Raises:
        UserError: no such folder, no hash at an address, or config.json names no hash of weights.
        DownloadError: an address does not give what its hash says; nothing half-fetched is used.
    """
    text = str(name)
    if not _ADDRESS.match(text):
        return fetch_folder(name, files)
    address, mark = urldefrag(text)
    digest = mark.removeprefix("sha256=").lower()
    if not mark.startswith("sha256=") or not _HASH.fullmatch(digest) or not address.endswith(f"/{CONFIG}"):
        raise UserError(
            f"{printable(text)}: is no address of a network with its hash",
            f"write https://PLACE/{CONFIG}#sha256=HEX, 64 digits, as reposer export-run prints it",
        )
    folder = cache_folders()[0] / PLACE / digest[:16]
    config = fetch(Source(address, digest, _MOST_CONFIG), folder / CONFIG)
    settings: dict[str, Any] = read_json(config)
    weights = settings.get("weights_sha256")
    if not isinstance(weights, str) or not _HASH.fullmatch(weights):
        raise UserError(f"{printable(address)}: names no sha256 of weights", "give the address of an export")
    fetch(Source(urljoin(address, WEIGHTS), weights, _MOST_WEIGHTS), folder / WEIGHTS)
    print(f"{printable(address)}: used from {folder}", file=sys.stderr)
    return folder
