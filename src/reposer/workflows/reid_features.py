"""Features of a prepared folder under an embedding, extracted once and kept: features.npz and features.json.

The JSON file says of which network and which images they are. While that stays the same, other methods are
scored without touching an image; whatever is missing or belongs to something else is extracted again.
"""

from __future__ import annotations

import codecs
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.config import read_json
from reposer.data.layouts.folder_scan import list_names, nfc
from reposer.data.layouts.market1501 import parse_name
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import MANIFEST, PACKED
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.generation.pictures import resize_array
from reposer.images import decode
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.progress import progress
from reposer.reid.features import embed_images, extract_features, read_features, write_features
from reposer.storage.checkpoint import refuse_other_data
from reposer.storage.files import sha256_bytes, sha256_file, write_atomic
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_seal
from reposer.storage.paths import RefusedFileError, contained, made_folder, no_folder, printable, read_regular
from reposer.structures import FeatureSet
from reposer.trained.networks import EMBEDDING, Trained, of_run, open_network
from reposer.trained.onnx import export_onnx
from reposer.weights.network_folder import CONFIG, FILES, weights_hash

_MAX_LIST_BYTES = 2**28

# ---- Which images of a prepared folder are queries, gallery and training images of a Re-ID evaluation.

Rows = NDArray[np.int64]  # positions in a prepared folder
QUERY, GALLERY, TRAIN, CROPS = "query", "gallery", "train", "multi_query"  # names of feature sets
TEST = "test"  # query and gallery in one, where cameras tell who asks


def check_data(people: PackedPeople, *models: str | Path | None) -> None:
    """Refuse a run that was trained on this prepared folder when something else lay there.

    Args:
        models: as a user names them; what is no run, or None, passes.

    Raises:
        UserError: the folder was prepared again since.
    """
    for model in models:
        if model is not None:
            refuse_other_data(model, people.folder.parent, people.content_hash)


def tested_rows(people: PackedPeople) -> tuple[Rows, Rows]:
    """Query and gallery: the splits of these names, or the held-out people (val), whose first image in
    each camera, by name, is a query and every other one is in the gallery.

    Raises:
        UserError: there is neither.
    """
    query = np.flatnonzero(people.splits == QUERY)
    if len(query):
        return query, np.flatnonzero(people.splits == GALLERY)
    held_out = np.flatnonzero(people.splits == "val")
    if not len(held_out):
        raise UserError("there is nobody to test on", "prepare with query and gallery, or with --holdout N")
    order = held_out[np.argsort(np.array(people.names)[held_out], kind="stable")]
    keys = np.stack([people.pids[order], people.camids[order]], axis=1)
    first = np.unique(keys, axis=0, return_index=True)[1]
    return np.sort(order[first]), np.sort(np.delete(order, first))


def open_judge(reid_run: Path, prepared: Path) -> Trained[Embedding, EmbeddingInfo]:
    """The network of a Re-ID run that may judge the tested people of a prepared folder.

    Raises:
        UserError: it is no such run; it was trained on these people, or the folder was prepared again since;
            or there is nobody to test on.
    """
    judge = of_run(EMBEDDING, reid_run)
    people = PackedPeople.open(prepared / PACKED)
    check_data(people, reid_run)
    query, gallery = tested_rows(people)
    training_note(judge.info, people, {QUERY: query, GALLERY: gallery})  # refuses people that it has learned
    return judge


def listed_rows(people: PackedPeople, path: Path) -> Rows:
    """The images that a text file names, one a line, in its order.

    A line is a name in the prepared folder, a path in the data set (with / or \\, whatever folders stand
    before it), or a path whose last part is such a name or the file name of one image only. UTF-8 with or
    without a byte order mark, or UTF-16 with one; names are compared in Unicode's composed form.

    Raises:
        UserError: unreadable, empty, an image twice, or a line that names none, or one of several.
    """
    try:
        data = read_regular(path, max_bytes=_MAX_LIST_BYTES)
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = data.decode("utf-16" if utf16 else "utf-8-sig").splitlines()
    except (RefusedFileError, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, RefusedFileError) else error
        problem = f"{path}: not a readable list of names ({reason})"
        raise UserError(problem, "give a text file, a name a line") from error
    images, rows = _Images(people), dict[int, int]()
    for number, line in enumerate(lines, 1):
        name = nfc(line.strip())
        if not name:
            continue
        row = images.find(name, f"{path}:{number}: {printable(name)[:200]}")
        if row in rows:
            raise UserError(
                f"{path}:{number}: {printable(name)[:200]} stands in line {rows[row]} already", "name it once"
            )
        rows[row] = number
    if not rows:
        raise UserError(f"{path}: names no image", "list one file name a line")
    return np.array(list(rows), np.int64)


class _Images:
    """The images of a prepared folder by their names in it, and by their paths in the data set."""

    def __init__(self, people: PackedPeople) -> None:
        self._people = people
        self._rows = {nfc(name): row for name, row in people.name_index().items()}

    @cached_property
    def _paths(self) -> dict[str, list[tuple[str, int]]]:
        """File name -> path in the data set and row, of every image; read where a name alone does not do."""
        found = dict[str, list[tuple[str, int]]]()
        prepared = self._people.folder.parent
        if (prepared / MANIFEST).is_file():
            for record in read_manifest(contained(prepared, MANIFEST)):
                place = nfc(record.path)
                if (row := self._rows.get(nfc(record.name))) is not None:
                    found.setdefault(place.rpartition("/")[2], []).append((place, row))
        return found

    def find(self, text: str, place: str) -> int:
        """The row of the image that ``text`` names; ``place`` is for messages.

        Raises:
            UserError: it names none, or one of several.
        """
        if text in self._rows:
            return self._rows[text]
        path = "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", "."))
        last = path.rpartition("/")[2]
        named = self._paths.get(last, [])
        whole = [(len(known), row) for known, row in named if f"/{path}".endswith(f"/{known}")]
        if whole:  # the longest says most
            return max(whole)[1]
        ends = [(known, row) for known, row in named if known.endswith(f"/{path}")]
        if not ends and last in self._rows:  # a path, as a list from another tool or system has it
            return self._rows[last]
        fitting = ends or named
        if not fitting:
            raise UserError(f"{place}: the prepared folder has no such image", self._wanted())
        if len(fitting) > 1:
            several = " and ".join(printable(known)[:200] for known, _ in fitting[:2])
            raise UserError(f"{place}: is one of {len(fitting)} images, {several}", "name it by its path")
        return fitting[0][1]

    def _wanted(self) -> str:
        name = nfc(self._people.names[0]) if len(self._people) else ""
        paths = [path for known in self._paths.values() for path, row in known if row == 0]
        path = f", or by path in the data set, as {printable(paths[0])}" if paths else ""
        return f"list images by name in the prepared folder, as {printable(name)}{path}"


def chosen_rows(
    people: PackedPeople, query_list: Path | None = None, gallery_list: Path | None = None
) -> dict[str, Rows]:
    """Rows by set: query, gallery and, where the folder has training people, train.

    Raises:
        UserError: as :func:`tested_rows` and :func:`listed_rows`, or one list without the other.
    """
    if (query_list is None) != (gallery_list is None):
        raise UserError("one name list alone decides nothing", "give --query-list and --gallery-list")
    if query_list is not None and gallery_list is not None:
        query, gallery = listed_rows(people, query_list), listed_rows(people, gallery_list)
    else:
        query, gallery = tested_rows(people)
    train = np.flatnonzero(people.splits == TRAIN)
    return {QUERY: query, GALLERY: gallery} | ({TRAIN: train} if len(train) else {})


def training_note(info: EmbeddingInfo, people: PackedPeople, rows: dict[str, Rows]) -> str:
    """What is known about the people that a network has learned from, for the notes of a report.

    Raises:
        UserError: it was trained on this folder, on images or people that are tested here.
    """
    trained_on = f"the data set {info.trained_on}" if info.trained_on else "people who are not recorded"
    if info.identity_hash != people.identity_hash(*info.splits):  # of all its splits together
        return f"The network was trained on {trained_on}: whether test people were among them is not known."
    if info.images_hash not in ("", people.images_hash(*info.splits)):
        return (
            f"The network was trained on {trained_on}, on other images of people of the same numbers as here:"
            " whether test people were among them is not known."
        )
    tested = np.concatenate([rows[QUERY], rows[GALLERY]])
    trained = np.isin(people.splits, info.splits)
    learned = people.pids[trained & (people.pids > 0)]
    seen = trained[tested] | np.isin(people.pids[tested], learned)
    if seen.any():
        images, persons = int(seen.sum()), len(np.unique(people.pids[tested[seen]]))
        raise UserError(
            f"{images} test images ({persons} people), such as {people.names[tested[seen][0]]}, show people"
            " whom the network was trained on",
            "test on other people: `reposer prepare` lists who is in two splits (person-train-test)",
        )
    return f"The network was trained on {trained_on}, split {', '.join(info.splits)}; nobody of it is tested."


SCHEMA_VERSION = 1
FEATURES, ORIGIN = "features.npz", "features.json"


def kept_features(
    embedding: Embedding, people: PackedPeople, rows: dict[str, Rows], folder: Path
) -> dict[str, FeatureSet]:
    """Features of each set of ``rows``; read from ``folder`` where they lie there, else extracted and kept.

    Args:
        embedding: on the device that computes.
        people: rows are positions in it.
        rows: by the name of the set.
        folder: made if missing.
    """
    origin: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "embedding": weights_hash(embedding),
        "settings": embedding.info.embedding,
        "images": people.header["sha256"],
    }
    if not is_older(folder / ORIGIN, holds_keys(*origin, "sets", "sha256")):  # damaged: made again
        claim_outputs(folder, [FEATURES, ORIGIN])
    digests = {name: sha256_bytes(chosen.tobytes()) for name, chosen in rows.items()}
    sets, known = _read_kept(folder, origin)
    missing = [name for name in rows if known.get(name) != digests[name]]
    for name in missing:
        sets[name] = _extract(embedding, people, rows[name], name)
    if missing:
        made_folder(folder)
        write_features(folder / FEATURES, sets)
        record = origin | {"sets": known | digests, "sha256": sha256_file(folder / FEATURES)}
        write_atomic(folder / ORIGIN, json.dumps(record, indent=1).encode())
    return {name: sets[name] for name in rows}


def crop_features(embedding: Embedding, folder: Path, query: FeatureSet, size: tuple[int, int]) -> FeatureSet:
    """Multi-query crops (Market-1501's gt_bbox): the images of ``folder`` of a query's person and camera.

    Args:
        folder: images with Market-1501's names; those of other people or cameras are not opened.
        query: whose labels choose.
        size: (H, W) of the prepared folder; crops are resized to it as packing does.

    Raises:
        UserError: no such folder, a name of another form, no crop of any query, an unreadable image.
    """
    if not folder.is_dir():
        raise no_folder(folder, "give the folder of the multi-query crops (gt_bbox)")
    wanted = set(zip(query.pids.tolist(), query.camids.tolist(), strict=True))
    folder = folder.resolve()
    names = [
        name
        for name in list_names(folder.parent, folder.name)
        if name.lower().endswith((".jpg", ".jpeg", ".png"))
    ]
    labels = {name: parse_name(name) for name in names}
    names = [name for name in names if (labels[name].pid, labels[name].camid) in wanted]
    if not names:
        raise UserError(
            f"{folder}: no image of a query's person and camera", "give the crops of these queries"
        )
    pids, camids = (np.array([getattr(labels[n], key) for n in names]) for key in ("pid", "camid"))
    images: Any = _Files(folder, names, size)
    with progress(len(names), unit="images", title="features of multi-query crops") as meter:
        return FeatureSet(
            embed_images(embedding, images, on_progress=meter.update), pids, camids, tuple(names)
        )


def _extract(embedding: Embedding, people: PackedPeople, rows: Rows, name: str) -> FeatureSet:
    with progress(len(rows), unit="images", title=f"features of {name}") as meter:
        return extract_features(embedding, people, rows, on_progress=meter.update)


def _read_kept(folder: Path, origin: dict[str, Any]) -> tuple[dict[str, FeatureSet], dict[str, str]]:
    """The kept sets and their digests; nothing where they are of another network or other images, or where
    the file is not the one that the record speaks of.
    """
    if not ((folder / ORIGIN).is_file() and (folder / FEATURES).is_file()):
        return {}, {}
    record = read_json(folder / ORIGIN)
    same = all(record.get(key) == value for key, value in json.loads(json.dumps(origin)).items())
    sets = record.get("sets")
    if not same or not isinstance(sets, dict) or record.get("sha256") != sha256_file(folder / FEATURES):
        return {}, {}
    return read_features(folder / FEATURES), sets


class _Files:
    """Image files as an array that is read slice by slice."""

    def __init__(self, folder: Path, names: list[str], size: tuple[int, int]) -> None:
        self._folder, self._names, self._size = folder, names, size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        pictures = (decode(self._folder / name, self._folder) for name in self._names[part])
        return np.stack([resize_array(picture, self._size) for picture in pictures])


# ---- A trained Re-ID network as a folder for others, and as an ONNX file that is checked before it is kept.

ONNX = "embedding.onnx"


def export_embedding(model: str, out: Path, *, onnx: bool = False) -> str:
    """Write the folder; returns what was written, in words.

    Args:
        model: run folder, exported folder or hub id.
        out: made if missing.
        onnx: also write embedding.onnx.

    Raises:
        UserError: no such model, a package is missing, or the ONNX file computes something else.
    """
    if onnx:
        older = is_older(out / CONFIG, holds_keys("embedding", "weights_sha256"))
        claim_outputs(out, [ONNX], older=older and b"pytorch" in _head(out / ONNX))
    embedding = open_network(EMBEDDING, model).network
    embedding.save_pretrained(out)
    written = f"{out}: {', '.join(FILES)}"
    if not onnx:
        return written
    difference = export_onnx(embedding, out / ONNX)
    write_seal(out, (*FILES, ONNX))
    return f"{written}, {ONNX} (differs from PyTorch by {difference:.1e} at most)"


def _head(path: Path) -> bytes:
    """The start of a file, where ONNX names its producer; empty where there is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(256)
