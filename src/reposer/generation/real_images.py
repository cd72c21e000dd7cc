"""Put the real images beside the generated ones: links or copies in ``real/`` (see real_list.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reposer.config import read_json
from reposer.data.generated.files import is_sealed, write_part
from reposer.data.generated.names import collisions
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import MANIFEST, REPORT
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.files import disk_faults, sha256_file, sync_folder, write_atomic
from reposer.generation.real_list import COLUMNS, REAL, REAL_ROWS, real_faults
from reposer.images import MAX_FILE_BYTES
from reposer.paths import contained, made_folder, read_regular, require_regular, unlinked

PLACEMENTS = ("link", "copy", "none")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)  # another disk, or one without links


@dataclass(frozen=True, slots=True)
class RealImages:
    """The real images that are enlarged, in the order of the prepared folder."""

    root: Path  # of the data set
    paths: tuple[str, ...]  # relative to ``root``
    rows: tuple[dict[str, Any], ...]  # file (the image's name), sha256, pid, camid

    @classmethod
    def of(cls, prepared: Path, people: PackedPeople, rows: Sequence[int]) -> RealImages:
        """Of the chosen rows of the packed people of a prepared folder.

        Raises:
            UserError: the prepared folder does not say where its images are, or two share a name.
        """
        root = read_json(prepared / REPORT).get("config", {}).get("data_set")
        if not isinstance(root, str):
            raise UserError(f"{prepared / REPORT}: does not name the data set", "prepare it again")
        paths = {record.name: record.path for record in read_manifest(prepared / MANIFEST)}
        names = [people.names[row] for row in rows]
        same = collisions(names)
        if same:
            raise UserError(f"{same[0]}: two real images have this name", "rename one and prepare again")
        listed = (
            {
                "file": people.names[row],
                "sha256": people.sha256[row],
                "pid": int(people.pids[row]),
                "camid": int(people.camids[row]),
            }
            for row in rows
        )
        return cls(Path(root), tuple(paths[name] for name in names), tuple(listed))

    def place(self, out: Path, how: str) -> list[str]:
        """Put them into ``out/real`` and list them; what is there already and right stays. For who holds the
        folder's lock.

        Args:
            how: "link" (hard links; copies where the disk has none), "copy", or "none": only list them.

        Returns:
            Notes for the user.

        Raises:
            UserError: an image is missing or changed since it was prepared.
            DiskError: the disk refuses.
        """
        if is_sealed(out / REAL_ROWS) and not real_faults(out, how):
            return []
        put: Callable[[Path, Path], None] = _copy if how == "copy" else _link
        notes: list[str] = []
        if how != "none":
            made_folder(out, REAL)
            for path, row in zip(self.paths, self.rows, strict=True):
                source = contained(self.root, path)
                require_regular(source, self.root)
                if sha256_file(source) != row["sha256"]:
                    raise UserError(f"{source}: changed since it was prepared", "prepare the data set again")
                put = _place(source, unlinked(out, f"{REAL}/{row['file']}"), row["sha256"], put, notes)
            sync_folder(out / REAL)
        write_part(out / REAL_ROWS, list(self.rows), COLUMNS, synthetic=False)
        return notes


def _place(
    source: Path, target: Path, digest: str, put: Callable[[Path, Path], None], notes: list[str]
) -> Callable[[Path, Path], None]:
    """One image; returns how to put the next one: links that the disk refuses become copies."""
    if target.is_file() and sha256_file(target) == digest:
        return put
    target.unlink(missing_ok=True)
    try:
        put(source, target)
    except OSError as error:
        if put is not _link or error.errno not in _NO_LINKS:
            raise
        notes.append(f"{REAL}/ holds copies: no hard links from {source.parent} ({error.strerror})")
        put = _copy
        put(source, target)
    return put


def _link(source: Path, target: Path) -> None:
    os.link(os.path.realpath(source), target)


def _copy(source: Path, target: Path) -> None:
    with disk_faults(target):
        write_atomic(target, read_regular(source, max_bytes=MAX_FILE_BYTES))
