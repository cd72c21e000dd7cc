"""An embedding as one ONNX file: uint8 images in, features of length 1 out, any number of them at a time.

Needs the packages onnx, onnxscript and onnxruntime (``pip install reposer[onnx]``). Range, resizing,
normalization and the mirror image are inside the graph, so that another program can do nothing wrong but the
size.
"""

from __future__ import annotations

from pathlib import Path

import torch

from reposer.models.embedding import Embedding
from reposer.models.onnx_export import export_module

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
