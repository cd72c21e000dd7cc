"""An augmented set in the layouts of other Re-ID programs: real images and kept generated ones together.

* ``market``: ``bounding_box_train/`` with Market-1501 names, of torchreid, fast-reid, BoT, open-reid;
* ``folders``: ``train/<pid>/``, of torchvision's ImageFolder and layumi's Person_reID_baseline_pytorch;
* ``list``: ``train.csv`` with path, pid, camid, label, synthetic, for a data set class of one's own;
* ``webdataset``: ``train-000000.tar``, ... of images and a ``.json`` each, for webdataset, wids, datasets;
* ``parquet``: ``data/train-000000.parquet``, ... with the images in them, for ``datasets.load_dataset``.

The last two are files of a thousand images each, made in one pass, here or in a bucket (``s3://``);
``manifest.parquet`` says what is in which, and is written last. The same set gives the same bytes. Memory
does not grow with the set, but by 8 bytes for each name that pictures of several cameras would share.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reposer.config import canonical_json
from reposer.data.layouts.folder_scan import portable_key
from reposer.data.layouts.market1501 import collisions, parse_name, portable_stem, with_camera
from reposer.data.layouts.tables import LIST, LISTED, PACKED_MANIFEST, PACKED_ROWS, SHARD
from reposer.data.records import kept_by_hand
from reposer.errors import UserError, find
from reposer.generation.augmented_rows import KIND, REAL, REAL_ROWS, REAL_SCHEMA, hard_link, set_schema
from reposer.generation.forgetting import FORGETTING
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.storage.files import Bucket, atomic_folder, is_remote, sha256_bytes, sha256_file, write_new
from reposer.storage.manifest import IMAGES, job_settings, list_parts, read_part
from reposer.storage.paths import (
    RefusedFileError,
    check_name,
    contained,
    delete,
    made_folder,
    printable,
    read_regular,
    require_regular,
)
from reposer.storage.tables import parquet_sink

MARKET_FOLDER = "bounding_box_train"
_NAMES_AT_ONCE = 1_000_000  # in memory
_PEERS = re.compile(r"([-\d]+)_c(\d)")  # how torchreid, fast-reid and BoT read person and camera


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of the export."""

    path: Path  # where it is
    name: str
    apart: str  # its name where others would have that one too
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
        out: new folder, best on the same disk; of a packed layout also a place in a bucket (``s3://``).
        layout: a key of LAYOUTS or PACKED_LAYOUTS.
        copy: copy files; otherwise hard links, which must not be written into (copies where the disk has
            none). A packed layout always copies.

    Returns:
        What was written where, to print.

    Raises:
        UserError: no such layout, no augmented set, ``out`` exists, a name that the layout cannot hold.
        DiskError: the disk, or the bucket, refuses.
    """
    find("layout", layout, {**LAYOUTS, **PACKED_LAYOUTS})
    images = _Images(Path(folder), layout)
    if is_remote(out):
        counts = _to_bucket(images, str(out), layout)
        return f"{out}: {counts[False]:,} real and {counts[True]:,} generated images, layout {layout}"
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists", "choose a new folder")
    images.tell_apart()
    made_folder(out.parent)
    how = _Placing(copy)
    with atomic_folder(out) as building:
        if layout in PACKED_LAYOUTS:
            counts = PACKED_LAYOUTS[layout](images, building, lambda place: None)
        else:
            counts = LAYOUTS[layout](images, building, how)
    told = f"{out}: {counts[False]:,} real and {counts[True]:,} generated images, layout {layout}"
    return f"{told}\n{out}: holds copies: {how.why}" if how.why else told


@dataclass(slots=True)
class _Placing:
    """How the images of one export get there: by hard links as long as the disk makes them."""

    copy: bool
    why: str = ""  # why there are copies where links were wanted


class _Images:
    """What is exported, read again each time, a part of the manifest at once."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder, self._key = folder, _stem_key if layout == "webdataset" else portable_key
        self._shared = np.empty(0, np.uint64)  # hashes of names, sorted

    def __iter__(self) -> Iterator[_Image]:
        for image in _images(self.folder):
            yield replace(image, name=image.apart) if self._is_shared(image) else image

    def tell_apart(self) -> None:
        """Let each image have a name of its own: pictures that only the replaced cameras told apart keep them
        in their names; what is one on some disk, or to a reader of the layout, even then is refused.
        """
        if job_settings(self.folder).get("camera") == "donor":
            self._shared = np.sort(np.concatenate([*self._twice(), self._shared]))
        shares = self._shares()
        for share in range(shares):
            folded = (self._key(image.name) for image in self)
            same = collisions(name for name in folded if zlib.crc32(name.encode()) % shares == share)
            if same:
                raise UserError(f"{same[0]}: two images would have this name", "rename one and augment again")

    def _shares(self) -> int:
        """Of the names, so many that memory is bounded."""
        return 1 + sum(1 for _ in self) // _NAMES_AT_ONCE

    def _twice(self) -> Iterator[NDArray[np.uint64]]:
        """The hashes of names that several images have, share by share."""
        shares = self._shares()
        for share in range(shares):
            hashes = (_hash(self._key(image.name)) for image in self)
            mine = np.fromiter((one for one in hashes if one % shares == share), np.uint64)
            found, counts = np.unique(mine, return_counts=True)
            yield found[counts > 1]

    def _is_shared(self, image: _Image) -> bool:
        if image.apart == image.name or not len(self._shared):
            return False
        wanted = np.uint64(_hash(self._key(image.name)))
        at = int(np.searchsorted(self._shared, wanted))
        return at < len(self._shared) and bool(self._shared[at] == wanted)


def _hash(name: str) -> int:
    """64 bits: where two are equal by chance, a name that was a picture's own gets a number, no more."""
    return int(sha256_bytes(name.encode())[:16], 16)


def _stem_key(name: str) -> str:
    """What readers of tar files tell images by."""
    return portable_key(_tar_name(name).rpartition(".")[0])


def _images(folder: Path) -> Iterator[_Image]:
    """Real images, then the kept generated ones."""
    settings = job_settings(folder)
    if settings.get("kind") != KIND:
        raise UserError(f"{folder}: is no augmented set", "give a folder that augment has written")
    if settings.get("real") == "none":
        raise UserError(f"{folder}: holds no real images", "augment with --real link or copy")
    if (folder / FORGETTING).exists():
        raise UserError(f"{folder}: a removal was interrupted", "run `reposer forget` again")
    schema, parts, people = set_schema(folder), list_parts(folder), set[int]()
    for row in read_part(folder / REAL_ROWS, REAL_SCHEMA).to_pylist():
        people.add(row["pid"])
        path, name = contained(folder, f"{REAL}/{row['file']}"), _name(row)
        yield _Image(path, name, name, row["pid"], row["camid"], False)
    for part in parts:
        rows = read_part(part, schema).select(["file", "sha256", "pid", "camid", "kept"])
        columns = (rows[name].to_pylist() for name in ("file", "sha256", "kept"))
        for row, kept in zip(rows.to_pylist(), kept_by_hand(folder, *columns), strict=True):
            if row["pid"] not in people:
                place = f"{printable(part)}: {printable(row['file'])}"
                raise UserError(f"{place}: pid {row['pid']} is nobody of {REAL_ROWS}", "augment again")
            if kept:
                path, name = contained(folder, f"{IMAGES}/{row['file']}"), _name(row)
                # of the donor's camera, where it has its colors
                apart = with_camera(name, row["camid"], apart=True)
                name = with_camera(name, row["camid"])
                yield _Image(path, name, apart, row["pid"], row["camid"], True)


def _tar_name(name: str) -> str:
    """The name as tar files hold it; what follows the first dot is the suffix to their readers."""
    return f"{portable_stem(name, dots=False)}.{name.rpartition('.')[2]}"


def _name(row: dict[str, Any]) -> str:
    """The name of a row's file, which becomes a file of the export."""
    try:
        return check_name(row["file"])
    except ValueError as error:
        raise UserError(f"{printable(row['file'])}: {error}", "augment again") from error


def _market(images: _Images, out: Path, how: _Placing) -> Counter[bool]:
    """bounding_box_train/; query/ and bounding_box_test/ are the data set's own."""
    (out / MARKET_FOLDER).mkdir()
    counts = Counter[bool]()
    for image in images:
        _check_market_name(image)
        _place(out / MARKET_FOLDER, image, how, counts)
    return counts


def _folders(images: _Images, out: Path, how: _Placing) -> Counter[bool]:
    """train/<pid, four digits>/<name>."""
    counts, people = Counter[bool](), set[int]()
    for image in images:
        if image.pid not in people:
            people.add(image.pid)
            made_folder(out, f"train/{image.pid:04d}")
        _place(out / "train" / f"{image.pid:04d}", image, how, counts)
    return counts


def _list(images: _Images, out: Path, how: _Placing) -> Counter[bool]:
    """train.csv and images/; labels are the ranks of the real images' pids, from 0."""
    labels = {pid: rank for rank, pid in enumerate(sorted({i.pid for i in images if not i.synthetic}))}
    counts = Counter[bool]()
    made_folder(out, IMAGES)
    with (out / LIST).open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LISTED)
        for image in images:
            _place(out / IMAGES, image, how, counts)
            row = (f"{IMAGES}/{image.name}", image.pid, image.camid, labels[image.pid], int(image.synthetic))
            writer.writerow(row)
    return counts


LAYOUTS: dict[str, Callable[[_Images, Path, _Placing], Counter[bool]]] = {
    "market": _market,
    "folders": _folders,
    "list": _list,
}


# ---- packed layouts

PACKED_IMAGES = 1000  # in a file
INDEX = "index.json"
_FEATURES = {  # as datasets reads them from a file's metadata
    "image": {"_type": "Image"},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("file", "sha256")},
    **{name: {"dtype": "int64", "_type": "Value"} for name in ("pid", "camid")},
    "synthetic": {"dtype": "bool", "_type": "Value"},
}


def _pieces(images: Iterable[_Image]) -> Iterator[tuple[int, list[tuple[_Image, bytes, dict[str, Any]]]]]:
    """The number of each file, and its images with their bytes and rows."""
    rest = iter(images)
    for number in count():
        piece = []
        for image in islice(rest, PACKED_IMAGES):
            data = _content(image)
            values = {"pid": image.pid, "camid": image.camid, "synthetic": image.synthetic}
            piece.append((image, data, {"file": image.name, "sha256": sha256_bytes(data), **values}))
        if not piece:
            return
        yield number, piece


def _webdataset(images: Iterable[_Image], out: Path, ready: Callable[[Path], None]) -> Counter[bool]:
    """Tar files in the order of the rows, of nobody and of no time; index.json is that of wids.

    Args:
        ready: called with each of them, which nothing here needs any more.
    """
    shards, counts = [], Counter[bool]()
    named = (replace(image, name=_tar_name(image.name)) for image in images)
    with (
        parquet_sink(out / PACKED_MANIFEST) as sink,
        pq.ParquetWriter(sink, PACKED_ROWS, compression="zstd") as manifest,
    ):
        for number, piece in _pieces(named):
            place = out / f"train-{number:06d}.tar"
            with tarfile.open(place, "x", format=tarfile.USTAR_FORMAT) as tar:
                for image, data, row in piece:
                    stem = image.name.rpartition(".")[0]
                    _add(tar, image.name, data)
                    _add(tar, f"{stem}.json", canonical_json(row))
                    counts[image.synthetic] += 1
            rows = [
                {"key": row["file"].rpartition(".")[0], "shard": place.name, **row} for _, _, row in piece
            ]
            manifest.write_table(pa.Table.from_pylist(rows, PACKED_ROWS))
            facts = {"filesize": place.stat().st_size, "sha256": sha256_file(place)}
            shards.append({"url": place.name, "nsamples": len(piece), **facts})
            ready(place)
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "train", "shardlist": shards}
    write_new(out / INDEX, f"{json.dumps(index, indent=1)}\n".encode())
    return counts


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444  # the time is 0, and so are user and group
    tar.addfile(member, io.BytesIO(data))


def _parquet(images: Iterable[_Image], out: Path, ready: Callable[[Path], None]) -> Counter[bool]:
    """Parquet files with a column "image" of bytes and name; ``ready`` as of ``_webdataset``."""
    pixels = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = [pixels, *((field.name, field.type) for field in PACKED_ROWS if field.name in _FEATURES)]
    told = {"huggingface": json.dumps({"info": {"features": _FEATURES}})}
    schema, counts = pa.schema(columns, told), Counter[bool]()
    (out / "data").mkdir()
    with (
        parquet_sink(out / PACKED_MANIFEST) as sink,
        pq.ParquetWriter(sink, PACKED_ROWS, compression="zstd") as manifest,
    ):
        for number, piece in _pieces(images):
            place = out / "data" / f"train-{number:06d}.parquet"
            rows = [{"image": {"bytes": data, "path": image.name}, **row} for image, data, row in piece]
            with parquet_sink(place) as shard:
                pq.write_table(pa.Table.from_pylist(rows, schema), shard, compression="none")
            listed = [{"key": row["file"], "shard": f"data/{place.name}", **row} for _, _, row in piece]
            manifest.write_table(pa.Table.from_pylist(listed, PACKED_ROWS))
            counts.update(image.synthetic for image, _, _ in piece)
            ready(place)
    return counts


PACKED_LAYOUTS: dict[str, Callable[[Iterable[_Image], Path, Callable[[Path], None]], Counter[bool]]] = {
    "webdataset": _webdataset,
    "parquet": _parquet,
}


def _to_bucket(images: _Images, out: str, layout: str) -> Counter[bool]:
    """A packed layout in a bucket: file by file, the manifest last; without it there is no set there."""
    if layout not in PACKED_LAYOUTS:
        raise UserError(f"{printable(out)}: a bucket holds a packed layout", "choose webdataset or parquet")
    bucket = Bucket(out)
    there = set(bucket.names())
    stopped = {name for name in there if name == INDEX or SHARD.fullmatch(name)}
    if strange := sorted(there - stopped):
        raise UserError(f"{printable(out)}: holds {printable(strange[0])}", "choose a new place")
    images.tell_apart()
    with TemporaryDirectory() as scratch:
        building = Path(scratch)

        def upload(place: Path) -> None:
            name = place.relative_to(building).as_posix()
            bucket.put(place, name)
            delete(building, name)
            stopped.discard(name)

        counts = PACKED_LAYOUTS[layout](images, building, upload)
        for name in (INDEX, PACKED_MANIFEST):
            place = contained(building, name)
            if place.is_file():
                if name == PACKED_MANIFEST:
                    for left in sorted(stopped):  # of an export that was stopped
                        bucket.delete(left)
                upload(place)
    return counts


def _content(image: _Image) -> bytes:
    data = read_regular(image.path, max_bytes=MAX_FILE_BYTES, root=image.root)
    return data if image.synthetic else without_metadata(data, image.name)


def _place(folder: Path, image: _Image, how: _Placing, counts: Counter[bool]) -> None:
    if not how.copy:
        require_regular(image.path, image.root)
        how.why = hard_link(image.path, folder / image.name)
        how.copy = bool(how.why)
    if how.copy:
        write_new(folder / image.name, _content(image))
    counts[image.synthetic] += 1


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
