"""Put the real images beside the generated ones: links or copies in ``real/`` (see real_list.py)."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reposer.config import read_json
from reposer.data.generated.files import Columns, is_sealed, write_part
from reposer.data.generated.names import collisions
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import MANIFEST, REPORT
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.files import disk_faults, sha256_bytes, sha256_file, sync_folder, write_atomic
from reposer.generation.real_list import COLUMNS, REAL, REAL_ROWS, SOURCE, real_faults
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.paths import contained, made_folder, printable, read_regular, require_regular, unlinked

PLACEMENTS = ("link", "copy", "none")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)  # another disk, or one without links


@dataclass(frozen=True, slots=True)
class RealImages:
    """The real images that are enlarged, in the order of the prepared folder."""

    root: Path | None  # of the data set, as the user named it; None: the images are only listed
    paths: tuple[str, ...]  # relative to ``root``
    rows: tuple[dict[str, Any], ...]  # file (the image's name), sha256, pid, camid

    @classmethod
    def of(
        cls, prepared: Path, people: PackedPeople, rows: Sequence[int], root: Path | None, how: str
    ) -> RealImages:
        """Of the chosen rows of the packed people of a prepared folder.

        Args:
            root: the data set; only what the user names is opened, never what the prepared folder names.
            how: as of :meth:`place`.

        Raises:
            UserError: no data set is named and one is needed, or two images share a name.
        """
        _require_root(prepared, root, how)
        paths = {record.name: record.path for record in read_manifest(contained(prepared, MANIFEST))}
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
        return cls(root, tuple(paths[name] for name in names), tuple(listed))

    def place(self, out: Path, how: str) -> list[str]:
        """Put them into ``out/real`` and list them; what is there already and right stays. For who holds the
        folder's lock.

        Args:
            how: "link" (hard links; copies where the disk has none), "copy", or "none": only list them.

        Returns:
            Notes for the user.

        Raises:
            UserError: no data set was named, or an image is missing or changed since it was prepared.
            DiskError: the disk refuses.
        """
        if is_sealed(out / REAL_ROWS) and not real_faults(out, how):
            return []
        put: Callable[[Path, Path], str] = _copy if how == "copy" else _link
        rows = list(self.rows)
        notes: list[str] = []
        if how != "none":
            if self.root is None:
                raise UserError("real images need the data set", "name its folder")
            made_folder(out, REAL)
            for number, (path, row) in enumerate(zip(self.paths, self.rows, strict=True)):
                source = contained(self.root, path)
                require_regular(source, self.root)
                if sha256_file(source) != row["sha256"]:
                    raise UserError(f"{source}: changed since it was prepared", "prepare the data set again")
                target = unlinked(out, f"{REAL}/{row['file']}")
                put, digest = _place(source, target, row["sha256"], put, notes)
                rows[number] = {**row, "sha256": digest}  # a copy has no metadata
            sync_folder(out / REAL)
        columns: Columns = COLUMNS
        if any(row["sha256"] != before["sha256"] for row, before in zip(rows, self.rows, strict=True)):
            columns = (*COLUMNS, SOURCE)
            pairs = zip(rows, self.rows, strict=True)
            rows = [{**row, SOURCE[0]: before["sha256"]} for row, before in pairs]
        write_part(out / REAL_ROWS, rows, columns, synthetic=False)
        return notes


def _require_root(prepared: Path, root: Path | None, how: str) -> None:
    """Refuse to look for real images where a file says they are: only the user can name that folder.

    Raises:
        UserError: no folder is named, or it is not there; says what to add to the command.
    """
    if how == "none":
        return
    if root is None:
        recorded = read_json(prepared / REPORT).get("config", {}).get("data_set")
        known = isinstance(recorded, str) and recorded.isprintable()
        place = shlex.quote(recorded) if known else "FOLDER"
        raise UserError(
            f"real images are put beside the generated ones ({how}) from a folder that you name",
            f"add --images {place} if that is your data set, or --real none",
        )
    if not root.is_dir():
        raise UserError(f"{printable(root)}: no such folder", "give the data set with --images")


def _place(
    source: Path, target: Path, digest: str, put: Callable[[Path, Path], str], notes: list[str]
) -> tuple[Callable[[Path, Path], str], str]:
    """One image; returns how to put the next one (copies, where the disk refuses links), and its hash."""
    if put is _link:
        if target.is_file() and sha256_file(target) == digest:
            return put, digest
        target.unlink(missing_ok=True)
    try:
        return put, put(source, target) or digest
    except OSError as error:
        if put is not _link or error.errno not in _NO_LINKS:
            raise
        notes.append(f"{REAL}/ holds copies: no hard links from {source.parent} ({error.strerror})")
        return _copy, _copy(source, target)


def _link(source: Path, target: Path) -> str:
    os.link(os.path.realpath(source), target)
    return ""


def _copy(source: Path, target: Path) -> str:
    """A copy without metadata; one that is there already stays. Returns its hash."""
    data = without_metadata(read_regular(source, max_bytes=MAX_FILE_BYTES), str(source))
    digest = sha256_bytes(data)
    if not (target.is_file() and sha256_file(target) == digest):
        with disk_faults(target):
            write_atomic(target, data)
    return digest
