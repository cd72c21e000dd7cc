"""Features of a prepared folder under an embedding, extracted once and kept: features.npz and features.json.

The JSON file says of which network and which images they are. While that stays the same, other methods are
scored without touching an image; whatever is missing or belongs to something else is extracted again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.config import read_json
from reposer.data.layouts.folder_scan import list_names
from reposer.data.layouts.market_names import parse_name
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.experiments.reid_rows import Rows
from reposer.files import claim_outputs, holds_keys, is_older, sha256_bytes, sha256_file, write_atomic
from reposer.generation.export import weights_hash
from reposer.generation.inputs import resize
from reposer.images import decode
from reposer.models.embedding import Embedding
from reposer.models.embedding_files import embedding_from_run
from reposer.progress import progress
from reposer.reid.feature_files import read_features, write_features
from reposer.reid.features import embed_images, extract_features
from reposer.structures import FeatureSet

SCHEMA_VERSION = 1
FEATURES, ORIGIN = "features.npz", "features.json"


def open_embedding(name: str | Path) -> Embedding:
    """An embedding by what a user calls it: a run folder, an exported folder, or a hub id; in eval mode.

    Raises:
        UserError: it is none of them, or damaged.
    """
    if (Path(name) / "checkpoints").is_dir():
        embedding, _ = embedding_from_run(name)
        return embedding
    return Embedding.from_pretrained(name)


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
    if not is_older(folder / ORIGIN, holds_keys(*origin, "sets", "sha256")):  # damaged: made anew
        claim_outputs(folder, [FEATURES, ORIGIN])
    digests = {name: sha256_bytes(chosen.tobytes()) for name, chosen in rows.items()}
    sets, known = _read_kept(folder, origin)
    missing = [name for name in rows if known.get(name) != digests[name]]
    for name in missing:
        sets[name] = _extract(embedding, people, rows[name], name)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
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
        raise UserError(f"{folder}: no such folder", "give the folder of the multi-query crops (gt_bbox)")
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
        return np.stack([resize(picture, self._size) for picture in pictures])
