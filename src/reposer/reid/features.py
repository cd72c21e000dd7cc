"""Features of person images under an embedding: batches in, one vector of length 1 for each image out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reposer.structures import FeatureSet

Progress = Callable[[int], None]  # images done


class LabeledImages(Protocol):
    """Images with the labels that a protocol needs; ``data.packed.PackedPeople`` is one."""

    @property
    def images(self) -> NDArray[np.uint8]: ...  # (N, H, W, 3) RGB

    @property
    def pids(self) -> NDArray[np.int64]: ...  # (N,)

    @property
    def camids(self) -> NDArray[np.int64]: ...  # (N,)

    @property
    def clothes(self) -> NDArray[np.int64]: ...  # (N,) number of the outfit, -1 unknown

    @property
    def names(self) -> Sequence[str]: ...  # (N,)


def embed_images(
    embedding: nn.Module,
    images: NDArray[np.uint8],
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> NDArray[np.float32]:
    """(N, H, W, 3) uint8 RGB -> (N, D) float32 of length 1, in the embedding's device and precision.

    Args:
        embedding: (B, 3, H, W) uint8 -> (B, D) of length 1; put into eval mode for the call.
        images: an array, or a memory map that is read batch by batch.
        batch_size: B; the last batch may be smaller.
        on_progress: called after every batch.
    """
    device = next(embedding.parameters()).device
    training = embedding.training
    embedding.eval()
    chunks = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = torch.from_numpy(np.array(images[start : start + batch_size]))  # maps are read-only
                batch = batch.permute(0, 3, 1, 2).to(device)  # channels_last as it is stored
                chunks.append(embedding(batch).float().cpu())
                if on_progress:
                    on_progress(min(start + batch_size, len(images)))
    finally:
        embedding.train(training)
    return np.asarray(torch.cat(chunks).numpy()) if chunks else np.empty((0, 0), np.float32)


def extract_features(
    embedding: nn.Module,
    people: LabeledImages,
    indices: NDArray[np.int64] | None = None,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> FeatureSet:
    """Features and labels of the images at ``indices`` (N,) of ``people``, None for all of them.

    Camera numbers are those of the folder; ``reid.search.with_cameras`` says what becomes of unknown ones.

    Args as of :func:`embed_images`.
    """
    chosen = np.arange(len(people.images)) if indices is None else np.asarray(indices, np.int64)
    rows: Any = _Rows(people.images, chosen)
    features = embed_images(embedding, rows, batch_size, on_progress)
    names = tuple(people.names[i] for i in chosen.tolist())
    known = (people.clothes != -1).any()  # of the whole folder, so that all its sets are alike
    return FeatureSet(
        features, people.pids[chosen], people.camids[chosen], names, people.clothes[chosen] if known else None
    )


class _Rows:
    """Some rows of an array, gathered slice by slice: a memory map is never copied as a whole."""

    def __init__(self, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        return np.take(self._array, self._rows[part], axis=0)
