"""The manifest's columns of an augmented set, and its summary: how many pictures, how many fell, and why."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.config import foreign_values, read_json
from reposer.data.layouts.market1501 import collisions
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import MANIFEST, REPORT
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.storage.files import disk_faults, sha256_bytes, sha256_file, sync_folder, write_atomic
from reposer.storage.manifest import (
    JOB,
    MAX_PART_BYTES,
    Columns,
    RowSchema,
    is_sealed,
    job_settings,
    list_parts,
    read_part,
    seal_path,
    write_part,
)
from reposer.storage.paths import (
    contained,
    made_folder,
    no_folder,
    printable,
    read_regular,
    require_regular,
    unlinked,
)

# ---- The list of an augmented set's real images, ``real.parquet``, and the check of ``real/`` against it.
#
# The list stands there even when the images do not: it says who was trained on, so that every generated row
# can be held against it without the data set. Imports no torch.

REAL, REAL_ROWS = "real", "real.parquet"
REAL_COLUMNS = (("pid", pa.int64()), ("camid", pa.int64()))  # after file and sha256
SOURCE = ("source_sha256", pa.string())  # last, where a copy lost its metadata: of the image it was made of
REAL_SCHEMA = RowSchema((*REAL_COLUMNS, SOURCE), later=(SOURCE[0],))


def real_faults(out: Path, how: str) -> list[str]:
    """Everything in ``real/`` and its list that is not as it was written, a line each."""
    try:
        rows = read_part(out / REAL_ROWS, REAL_SCHEMA)
    except UserError as error:
        return [str(error)]
    wanted = ["file", "sha256", *(name for name, _ in REAL_COLUMNS)]
    if rows.schema.names not in (wanted, [*wanted, SOURCE[0]]):
        return [f"{REAL_ROWS}: its columns are not those of a list of real images"]
    names = rows["file"].to_pylist()
    faults = [f"{REAL_ROWS}: {name} is listed twice" for name in collisions(names)]
    folder = contained(out, REAL)
    found = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    if how == "none":
        return faults + [f"{REAL}/{name} does not belong to the set" for name in sorted(found)]
    for name, digest in zip(names, rows["sha256"].to_pylist(), strict=True):
        place = contained(out, f"{REAL}/{name}")
        if "/" in name or name not in found or not place.is_file():
            faults.append(f"{REAL}/{name} is missing")
        elif sha256_file(place) != digest:
            faults.append(f"{REAL}/{name} differs from its sha256")
    return faults + [f"{REAL}/{name} is in no list" for name in sorted(found - set(names))]


SUMMARY = "summary.json"
KIND = "augmentation"  # of the job, in job.json
# scores that every set has a column for, whatever its filters; any other is there where it was asked for
SCORES = ("identity_distance", "pose_agreement", "sharpness")
_COLUMNS = (
    ("source", pa.string()),
    ("source_sha256", pa.string()),  # of the original image file
    ("source_pid", pa.int64()),
    ("source_camid", pa.int64()),
    ("donor", pa.string()),
    ("donor_sha256", pa.string()),
    ("donor_pid", pa.int64()),
    ("donor_camid", pa.int64()),
    ("pid", pa.int64()),  # label: the source's, as in the file's name
    ("camid", pa.int64()),  # the source's too, or the donor's where the colors are those of its camera
    ("copy", pa.int64()),  # 1 to factor - 1, as in the file's name
    ("policy", pa.string()),  # that chose the donor
    ("background", pa.string()),
    ("checkpoint", pa.string()),  # PoseTransfer.weights_hash
    ("trained_on", pa.string()),  # hash of the generator's training people; empty: not recorded
    ("seed", pa.int64()),
    ("synthetic", pa.bool_()),  # always true: a row says it even without its file
    ("kept", pa.bool_()),  # false: a filter dropped it; it stays to be looked at, and is not trained on
    ("dropped_because", pa.string()),  # null when kept
)


MORE_SOURCES = "more_sources"
# after these, and after those of ``batch``, where pictures have several sources: names of the further ones
FURTHER_COLUMNS = ((MORE_SOURCES, pa.list_(pa.string())),)


def score_columns(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The scores in the manifest of a set, by the settings of its job."""
    asked = (settings.get("filters") or {}).get("thresholds", {})
    return (*SCORES, *sorted(asked.keys() - set(SCORES)))


def columns_of(settings: Mapping[str, Any]) -> Columns:
    """The manifest's columns; a score is null where it is not asked for, or not defined for a picture."""
    scores = ((name, pa.float64()) for name in score_columns(settings))
    return (*_COLUMNS, *scores, *(FURTHER_COLUMNS if settings.get("sources", 1) > 1 else ()))


def set_schema(folder: Path) -> RowSchema:
    """What the rows of an augmented set must be, by its job: a score, or why it fell, a picture may lack.

    Raises:
        UserError: the folder holds no job, or its settings are none of an augmented set.
    """
    settings = job_settings(folder)
    with foreign_values(folder / JOB):
        scores = score_columns(settings)
        return RowSchema(columns_of(settings), gaps=("dropped_because", *scores), later=scores)


def summarize(folder: Path) -> dict[str, Any]:
    """Counts and hashes of a finished set; reads one part of the manifest at a time.

    Raises:
        UserError: the set is unfinished or a part is damaged.
    """
    schema = set_schema(folder)
    dropped: Counter[str] = Counter()
    seals, generated, people = [], 0, set()
    for path in list_parts(folder):
        rows = read_part(path, schema)
        generated += rows.num_rows
        people.update(rows["pid"].unique().to_pylist())
        dropped.update(reason for reason in rows["dropped_because"].to_pylist() if reason is not None)
        seal = read_regular(seal_path(path), max_bytes=MAX_PART_BYTES, root=folder)
        seals.append(seal.decode("ascii").split()[0])
    return {
        "real": read_part(folder / REAL_ROWS, REAL_SCHEMA).num_rows,
        "people": len(people),  # with at least one generated picture
        "generated": generated,
        "kept": generated - sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "manifest_sha256": sha256_bytes("\n".join(seals).encode()),  # of the parts' hashes, one a line
        "real_sha256": sha256_file(folder / REAL_ROWS),
    }


def write_summary(folder: Path) -> dict[str, Any]:
    """Write summary.json; the same manifest gives the same bytes."""
    summary = summarize(folder)
    write_atomic(folder / SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode())
    return summary


# ---- Put the real images beside the generated ones: links or copies in ``real/``.

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
        links = how != "copy"
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
                links, digest = _place(source, target, row["sha256"], links, notes)
                rows[number] = {**row, "sha256": digest}  # a copy has no metadata
            sync_folder(out / REAL)
        columns: Columns = REAL_COLUMNS
        if any(row["sha256"] != before["sha256"] for row, before in zip(rows, self.rows, strict=True)):
            columns = (*REAL_COLUMNS, SOURCE)
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
        raise no_folder(root, "give the data set with --images")


def _place(source: Path, target: Path, digest: str, links: bool, notes: list[str]) -> tuple[bool, str]:
    """One image; returns whether the next one is a link (copies, where the disk refuses), and its hash."""
    if links:
        if target.is_file() and sha256_file(target) == digest:
            return True, digest
        target.unlink(missing_ok=True)
        if not (why := hard_link(source, target)):
            return True, digest
        notes.append(f"{REAL}/ holds copies: {why}")
    return False, _copy(source, target)


def hard_link(source: Path, target: Path) -> str:
    """Make one to what ``source`` is or leads to; returns why the disk has none, "" where it is made.

    Raises:
        DiskError: the disk refuses for another reason.
    """
    with disk_faults(target):
        try:
            os.link(os.path.realpath(source), target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return f"no hard links from {printable(source.parent)} ({error.strerror})"
    return ""


def _copy(source: Path, target: Path) -> str:
    """A copy without metadata; one that is there already stays. Returns its hash."""
    data = without_metadata(read_regular(source, max_bytes=MAX_FILE_BYTES), str(source))
    digest = sha256_bytes(data)
    if not (target.is_file() and sha256_file(target) == digest):
        with disk_faults(target):
            write_atomic(target, data)
    return digest
