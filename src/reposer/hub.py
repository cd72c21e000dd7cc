"""Folders of weights by name: here on the disk, or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from reposer.errors import UserError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def fetch_folder(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of that name; of a hub id (owner/name) ``files`` are fetched into huggingface_hub's cache.

    An existing folder never touches the network.

    Raises:
        UserError: no such folder, and no hub id or the hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not _HUB_ID.match(str(name)):
        raise UserError(f"{name}: no such folder", "check the path, or give a hub id such as owner/name")
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files)))
    except Exception as error:  # requests, httpx and hub errors, by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: no such folder here, and the hub does not give it: {reason}",
            "check the name and the network, or copy the folder here and name it",
        ) from error
