"""Folders of weights by name: on this disk, or, with ``hub:`` before the name, on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from reposer.errors import UserError
from reposer.paths import printable

PREFIX = "hub:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_folder(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of that name; of ``hub:owner/name[@revision]`` ``files`` are fetched into the hub's cache.

    A name without the prefix never touches the network: a folder that is missing is an error, never somebody
    else's repository of that name. The revision is turned into its commit before anything is fetched, and the
    name with the commit, which gives the same bytes for ever, is printed to stderr.

    Raises:
        UserError: no such folder; no hub name behind the prefix, or the hub does not give it.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        folder = Path(name)
        if folder.is_dir():
            return folder
        hub = f", or write {PREFIX}{text} for the hub's repository" if _HUB_ID.fullmatch(text) else ""
        raise UserError(f"{printable(text)}: no such folder", f"check the path{hub}")
    wanted = text.removeprefix(PREFIX)
    if not _HUB_ID.fullmatch(wanted):
        raise UserError(
            f"{printable(text)}: is no name of the hub",
            f"write {PREFIX}owner/name or {PREFIX}owner/name@commit",
        )
    repository, _, revision = wanted.partition("@")
    try:
        if not _COMMIT.fullmatch(revision):
            revision = str(HfApi().model_info(repository, revision=revision or None).sha)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # requests, httpx and hub errors, by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{text}: the hub does not give it: {printable(reason)}",
            "check the name and the network, or copy the folder here and name it",
        ) from error
    print(f"{PREFIX}{repository}@{revision}: used from {folder}", file=sys.stderr)
    return folder
