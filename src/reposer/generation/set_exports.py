"""An augmented set in the layouts of other Re-ID programs: real images and kept generated ones together.

* ``market``: ``bounding_box_train/`` with Market-1501 names, of torchreid, fast-reid, BoT, open-reid;
* ``folders``: ``train/<pid>/``, of torchvision's ImageFolder and layumi's Person_reID_baseline_pytorch;
* ``list``: ``train.csv`` with path, pid, camid, label, synthetic, for a data set class of one's own;
* ``webdataset``: ``train-000000.tar``, ... of images and a ``.json`` each, for webdataset, wids, datasets;
* ``parquet``: ``data/train-000000.parquet``, ... with the images in them, for ``datasets.load_dataset``.

The last two are files of a thousand images each, made in one pass, in memory that does not grow with the set;
``manifest.parquet`` says what is in which. The same set gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.config import canonical_json, foreign_values
from reposer.data.layouts.market1501 import collisions, parse_name, with_camera
from reposer.data.records import kept_by_hand
from reposer.errors import UserError, find
from reposer.generation.augmented_rows import KIND, REAL, REAL_ROWS
from reposer.generation.forgetting import FORGETTING
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.storage.files import atomic_folder, sha256_bytes, sha256_file, write_new
from reposer.storage.manifest import IMAGES, job_settings, list_parts, read_part
from reposer.storage.paths import (
    RefusedFileError,
    check_name,
    contained,
    made_folder,
    printable,
    read_regular,
    require_regular,
    unlinked,
)
from reposer.storage.tables import check_decoded, read_table

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
        layout: a key of LAYOUTS or PACKED_LAYOUTS.
        copy: copy files; otherwise hard links, which must not be written into. A packed layout always copies.

    Returns:
        What was written where, to print.

    Raises:
        UserError: no such layout, no augmented set, ``out`` exists, a name that the layout cannot hold.
        DiskError: the disk refuses.
    """
    folder, out = Path(folder), Path(out)
    find("layout", layout, {**LAYOUTS, **PACKED_LAYOUTS})
    if out.exists():
        raise UserError(f"{out}: exists", "choose a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    if layout in PACKED_LAYOUTS:
        with atomic_folder(out) as building:
            counts = PACKED_LAYOUTS[layout](_images(folder), building)
    else:
        images = list(_images(folder))
        same = collisions(image.name for image in images)
        if same:
            raise UserError(f"{same[0]}: two images would have this name", "rename one and augment again")
        with atomic_folder(out) as building:
            LAYOUTS[layout](images, building, copy)
        counts = Counter(image.synthetic for image in images)
    return f"{out}: {counts[False]:,} real and {counts[True]:,} generated images, layout {layout}"


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


# ---- packed layouts

PACKED_IMAGES = 1000  # in a file
INDEX, PACKED_MANIFEST = "index.json", "manifest.parquet"
_ROWS = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "shard", "file", "sha256")),
        *((name, pa.int64()) for name in ("pid", "camid")),
        ("synthetic", pa.bool_()),
    ]
)
_FEATURES = {  # as datasets reads them from a file's metadata
    "image": {"_type": "Image"},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("file", "sha256")},
    **{name: {"dtype": "int64", "_type": "Value"} for name in ("pid", "camid")},
    "synthetic": {"dtype": "bool", "_type": "Value"},
}


def _pieces(images: Iterator[_Image]) -> Iterator[tuple[int, list[tuple[_Image, bytes, dict[str, Any]]]]]:
    """The number of each file, and its images with their bytes and rows."""
    for number in count():
        piece = []
        for image in islice(images, PACKED_IMAGES):
            data = _content(image)
            values = {"pid": image.pid, "camid": image.camid, "synthetic": image.synthetic}
            piece.append((image, data, {"file": image.name, "sha256": sha256_bytes(data), **values}))
        if not piece:
            return
        yield number, piece


def _webdataset(images: Iterator[_Image], out: Path) -> Counter[bool]:
    """Tar files in the order of the rows, of nobody and of no time; index.json is that of wids."""
    shards, counts = [], Counter[bool]()
    with pq.ParquetWriter(out / PACKED_MANIFEST, _ROWS, compression="zstd") as manifest:
        for number, piece in _pieces(images):
            place = out / f"train-{number:06d}.tar"
            with tarfile.open(place, "x", format=tarfile.USTAR_FORMAT) as tar:
                for image, data, row in piece:
                    stem = image.name.rpartition(".")[0]
                    if "." in stem:  # which readers take for the beginning of the suffix
                        raise UserError(f"{image.name}: has two dots", "rename it, or use the layout parquet")
                    _add(tar, image.name, data)
                    _add(tar, f"{stem}.json", canonical_json(row))
                    counts[image.synthetic] += 1
            rows = [
                {"key": row["file"].rpartition(".")[0], "shard": place.name, **row} for _, _, row in piece
            ]
            manifest.write_table(pa.Table.from_pylist(rows, _ROWS))
            facts = {"filesize": place.stat().st_size, "sha256": sha256_file(place)}
            shards.append({"url": place.name, "nsamples": len(piece), **facts})
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "train", "shardlist": shards}
    write_new(out / INDEX, f"{json.dumps(index, indent=1)}\n".encode())
    return counts


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444  # the time is 0, and so are user and group
    tar.addfile(member, io.BytesIO(data))


def _parquet(images: Iterator[_Image], out: Path) -> Counter[bool]:
    """Parquet files with a column "image" of bytes and name."""
    pixels = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = [pixels, *((field.name, field.type) for field in _ROWS if field.name in _FEATURES)]
    told = {"huggingface": json.dumps({"info": {"features": _FEATURES}})}
    schema, counts = pa.schema(columns, told), Counter[bool]()
    (out / "data").mkdir()
    with pq.ParquetWriter(out / PACKED_MANIFEST, _ROWS, compression="zstd") as manifest:
        for number, piece in _pieces(images):
            place = out / "data" / f"train-{number:06d}.parquet"
            rows = [{"image": {"bytes": data, "path": image.name}, **row} for image, data, row in piece]
            pq.write_table(pa.Table.from_pylist(rows, schema), place, compression="none")
            listed = [{"key": row["file"], "shard": f"data/{place.name}", **row} for _, _, row in piece]
            manifest.write_table(pa.Table.from_pylist(listed, _ROWS))
            counts.update(image.synthetic for image, _, _ in piece)
    return counts


PACKED_LAYOUTS: dict[str, Callable[[Iterator[_Image], Path], Counter[bool]]] = {
    "webdataset": _webdataset,
    "parquet": _parquet,
}


def unpack_set(folder: str | Path, out: str | Path) -> str:
    """The images of a packed layout as files, in the layout "list", which ``prepare`` reads.

    One file of the set is open at a time, and every image is held against the sha256 of its row.

    Args:
        folder: written by :func:`export_set` in a packed layout, here or elsewhere.
        out: new folder.

    Returns:
        What was written where, to print.

    Raises:
        UserError: no packed set, a damaged one, or ``out`` exists.
        DiskError: the disk refuses.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise UserError(f"{out}: exists", "choose a new folder")
    place = contained(folder, PACKED_MANIFEST)
    if not place.is_file():
        raise UserError(f"{printable(folder)}: is no packed set", "give one that export-set has written")
    pids: set[int] = set()
    with _packed_rows(place) as rows:
        for part in rows:
            pids.update(row["pid"] for row in part if not row["synthetic"])
    labels = {pid: rank for rank, pid in enumerate(sorted(pids))}
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = Counter[bool]()
    with atomic_folder(out) as building, _packed_rows(place) as rows:
        made_folder(building, IMAGES)
        with (building / LIST).open("x", newline="", encoding="utf-8") as listed:
            writer = csv.writer(listed, lineterminator="\n")
            writer.writerow(["path", "pid", "camid", "label", "synthetic"])
            for part in rows:
                contents = _contents(folder, part[0]["shard"])
                for row, (name, data) in zip(part, contents, strict=True):
                    if name != row["file"] or sha256_bytes(data) != row["sha256"]:
                        raise _damaged(
                            folder, row["shard"], f"{printable(row['file'])} differs from its sha256"
                        )
                    write_new(unlinked(building, f"{IMAGES}/{name}"), data)
                    label = labels.get(row["pid"], -1)
                    writer.writerow(
                        [f"{IMAGES}/{name}", row["pid"], row["camid"], label, int(row["synthetic"])]
                    )
                    counts[row["synthetic"]] += 1
    return f"{out}: {counts[False]:,} real and {counts[True]:,} generated images, layout list"


def _damaged(folder: Path, shard: str, reason: str) -> UserError:
    return UserError(f"{printable(folder)}/{printable(shard)}: {reason}", "export the set again")


@contextmanager
def _packed_rows(place: Path) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """The rows of each file of a packed set, whose names were looked at."""
    require_regular(place, place.parent)
    with foreign_values(place), pq.ParquetFile(place) as file:
        if not file.schema_arrow.equals(_ROWS):
            raise UserError(f"{printable(place)}: is no list of a packed set", "export the set again")
        check_decoded(file, str(place))

        def parts() -> Iterator[list[dict[str, Any]]]:
            for group in range(file.num_row_groups):
                rows: list[dict[str, Any]] = file.read_row_group(group, use_threads=False).to_pylist()
                if len({row["shard"] for row in rows}) != 1:
                    raise ValueError("a group of rows is of several files")
                for row in rows:
                    check_name(row["file"])
                    if None in row.values():
                        raise ValueError("a value is missing")
                yield rows

        yield parts()


def _contents(folder: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of the images in a file of a packed set, in its order."""
    place = contained(folder, shard)
    require_regular(place, folder)
    try:
        if place.suffix == ".parquet":
            for row in read_table(place, ["image"])["image"].to_pylist():
                yield row["path"], row["bytes"]
            return
        with tarfile.open(place, "r:") as tar:
            for member in tar:
                if not member.isfile() or member.size > MAX_FILE_BYTES:
                    raise _damaged(folder, shard, f"{printable(member.name)} is no file of an image's size")
                if not member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    yield member.name, content.read() if content is not None else b""
    except (tarfile.TarError, OSError, pa.ArrowException, EOFError) as error:
        raise _damaged(folder, shard, (str(error).splitlines() or ["is cut"])[0]) from error


def _content(image: _Image) -> bytes:
    data = read_regular(image.path, max_bytes=MAX_FILE_BYTES, root=image.root)
    return data if image.synthetic else without_metadata(data, image.name)


def _fill(place: Path, images: list[_Image], copy: bool) -> None:
    place.mkdir()
    for image in images:
        if copy:
            write_new(place / image.name, _content(image))
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
