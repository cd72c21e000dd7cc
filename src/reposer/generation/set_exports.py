"""An augmented set in the layouts of other Re-ID programs: real images and kept generated ones together.

* ``market``: ``bounding_box_train/`` with Market-1501 names, of torchreid, fast-reid, BoT, open-reid;
* ``folders``: ``train/<pid>/``, of torchvision's ImageFolder and layumi's Person_reID_baseline_pytorch;
* ``list``: ``train.csv`` with path, pid, camid, label, synthetic, for a data set class of one's own.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reposer.data.layouts.market1501 import collisions, parse_name, with_camera
from reposer.data.records import kept_by_hand
from reposer.errors import UserError, find
from reposer.generation.augmented_rows import KIND, REAL, REAL_ROWS
from reposer.generation.forgetting import FORGETTING
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.storage.files import atomic_folder, write_new
from reposer.storage.manifest import IMAGES, job_settings, list_parts, read_part
from reposer.storage.paths import (
    RefusedFileError,
    check_name,
    contained,
    printable,
    read_regular,
    require_regular,
)

MARKET_FOLDER, LIST = "bounding_box_train", "train.csv"
_PEERS = re.compile(r"([-\d]+)_c(\d)")  # how torchreid, fast-reid and BoT read person and camera


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of the export."""

    path: Path  # where it is
    name: str
    pid: int
    camid: int
    synthetic: bool

    @property
    def root(self) -> Path:
        """The folder of the set."""
        return self.path.parent.parent


def export_set(folder: str | Path, out: str | Path, layout: str = "market", *, copy: bool = False) -> str:
    """Write ``out``, complete or not at all.

    Args:
        folder: a finished augmented set with its real images (``real`` not "none").
        out: new folder, best on the same disk.
        layout: a key of LAYOUTS.
        copy: copy files; otherwise hard links, which must not be written into.

    Returns:
        What was written where, to print.

    Raises:
        UserError: no such layout, no augmented set, ``out`` exists, a name that the layout cannot hold.
        DiskError: the disk refuses.
    """
    folder, out = Path(folder), Path(out)
    find("layout", layout, LAYOUTS)
    if out.exists():
        raise UserError(f"{out}: exists", "choose a new folder")
    images = list(_images(folder))
    same = collisions(image.name for image in images)
    if same:
        raise UserError(f"{same[0]}: two images would have this name", "rename one and augment again")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as building:
        LAYOUTS[layout](images, building, copy)
    generated = sum(image.synthetic for image in images)
    return f"{out}: {len(images) - generated:,} real and {generated:,} generated images, layout {layout}"


def _images(folder: Path) -> Iterator[_Image]:
    """Real images, then the kept generated ones."""
    settings = job_settings(folder)
    if settings.get("kind") != KIND:
        raise UserError(f"{folder}: is no augmented set", "give a folder that augment has written")
    if settings.get("real") == "none":
        raise UserError(f"{folder}: holds no real images", "augment with --real link or copy")
    if (folder / FORGETTING).exists():
        raise UserError(f"{folder}: a removal was interrupted", "run `reposer forget` again")
    parts = list_parts(folder)
    for row in read_part(folder / REAL_ROWS).to_pylist():
        yield _Image(contained(folder, f"{REAL}/{row['file']}"), _name(row), row["pid"], row["camid"], False)
    for part in parts:
        rows = read_part(part).select(["file", "sha256", "pid", "camid", "kept"])
        columns = (rows[name].to_pylist() for name in ("file", "sha256", "kept"))
        for row, kept in zip(rows.to_pylist(), kept_by_hand(folder, *columns), strict=True):
            if kept:
                path = contained(folder, f"{IMAGES}/{row['file']}")
                name = with_camera(_name(row), row["camid"])  # of the donor's, where it has its colors
                yield _Image(path, name, row["pid"], row["camid"], True)


def _name(row: dict[str, Any]) -> str:
    """The name of a row's file, which becomes a file of the export."""
    try:
        return check_name(row["file"])
    except ValueError as error:
        raise UserError(f"{printable(row['file'])}: {error}", "augment again") from error


def _market(images: list[_Image], out: Path, copy: bool) -> None:
    """bounding_box_train/; query/ and bounding_box_test/ are the data set's own."""
    for image in images:
        _check_market_name(image)
    _fill(out / MARKET_FOLDER, images, copy)


def _folders(images: list[_Image], out: Path, copy: bool) -> None:
    """train/<pid, four digits>/<name>."""
    (out / "train").mkdir()
    groups: dict[int, list[_Image]] = {}
    for image in images:
        groups.setdefault(image.pid, []).append(image)
    for pid, group in sorted(groups.items()):
        _fill(out / "train" / f"{pid:04d}", group, copy)


def _list(images: list[_Image], out: Path, copy: bool) -> None:
    """train.csv and images/; labels are the ranks of the real images' pids, from 0."""
    _fill(out / "images", images, copy)
    labels = {pid: rank for rank, pid in enumerate(sorted({i.pid for i in images if not i.synthetic}))}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "pid", "camid", "label", "synthetic"])
    for image in images:
        row = (f"images/{image.name}", image.pid, image.camid, labels[image.pid], int(image.synthetic))
        writer.writerow(row)
    write_new(out / LIST, text.getvalue().encode())


LAYOUTS: dict[str, Callable[[list[_Image], Path, bool], None]] = {
    "market": _market,
    "folders": _folders,
    "list": _list,
}


def _fill(place: Path, images: list[_Image], copy: bool) -> None:
    place.mkdir()
    for image in images:
        if copy:
            data = read_regular(image.path, max_bytes=MAX_FILE_BYTES, root=image.root)
            write_new(place / image.name, data if image.synthetic else without_metadata(data, image.name))
        else:
            require_regular(image.path, image.root)
            os.link(os.path.realpath(image.path), place / image.name, follow_symlinks=False)


def _check_market_name(image: _Image) -> None:
    """Refuse a name from which a reader of Market-1501, ours or others', takes other labels."""
    try:
        name = parse_name(image.name)
        ours = (name.pid, name.camid)
    except RefusedFileError as error:
        raise UserError(f"{image.name}: is no Market-1501 name", "use the layout list or folders") from error
    match = _PEERS.search(image.name)
    theirs = (int(match[1]), int(match[2])) if match else None
    if not (ours == theirs == (image.pid, image.camid)) or not image.name.endswith(".jpg"):
        raise UserError(
            f"{image.name}: other programs would not read it as person {image.pid}, camera {image.camid}",
            "use the layout list or folders (and JPEG)",
        )
