"""A trained Re-ID embedding: the newest checkpoint of a run, and one ONNX file of it."""

from __future__ import annotations

from pathlib import Path

import torch

from reposer.config import foreign_values, read_json
from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.models.pretrained import EmbeddingInfo
from reposer.storage import checkpoint
from reposer.trained.onnx import export_module

# ---- The embedding that a Re-ID run has trained.


def embedding_from_run(run_dir: str | Path) -> tuple[Embedding, EmbeddingInfo]:
    """The embedding of the newest good checkpoint of a Re-ID run, in eval mode.

    Raises:
        UserError: no run, no checkpoint, every checkpoint damaged, or a run of something else.
    """
    run_dir = Path(run_dir)
    settings = read_json(run_dir / "config.json")
    found = checkpoint.of_run(run_dir)
    if found is None:
        raise UserError(f"{run_dir}: has no checkpoint yet", "train longer, or choose another run")
    if "embedding" not in settings or "network" not in found.groups:
        raise UserError(f"{run_dir}: is no run of an embedding", "choose the folder of a Re-ID training")
    prefix = "embedding."
    values = {n.removeprefix(prefix): t for n, t in found.groups["network"].items() if n.startswith(prefix)}
    with foreign_values(run_dir / "config.json"):
        info = EmbeddingInfo(
            embedding=settings["embedding"],
            trained_on=Path(settings["data"]["folder"]).name,
            identity_hash=found.meta["identity_hash"],
            images_hash=found.meta.get("images_hash", ""),
            splits=tuple(settings["data"]["splits"]),
            step=found.step,
        )
    return Embedding.with_weights(info, values, str(found.path)), info


# ---- An embedding as one ONNX file: uint8 images in, features of length 1 out, any number of them at a time.
#
# Needs the packages onnx, onnxscript and onnxruntime (``pip install reposer[onnx]``). Range, resizing,
# normalization and the mirror image are inside the graph, so that another program can do nothing wrong but
# the size.

INPUT, OUTPUT = "image", "feature"
TOLERANCE = 1e-4  # of a number of a feature of length 1, between onnxruntime and PyTorch


def export_onnx(embedding: Embedding, path: str | Path) -> float:
    """Write ``path``: input "image" (N, 3, H, W) uint8 RGB at the embedding's size, output "feature" (N, D).

    Returns how far the file is from PyTorch on random images, at most.

    Args:
        embedding: exported as it is used: eval mode, float32, on the CPU; it is left as it was.
        path: the .onnx file; appears complete or not at all.

    Raises:
        UserError: a package is missing, the disk refuses, or the file computes something else.
    """
    images = torch.zeros(2, 3, *embedding.size, dtype=torch.uint8)
    return export_module(embedding, images, path, (INPUT, OUTPUT), tolerance=TOLERANCE)
