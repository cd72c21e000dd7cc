"""An embedding as one ONNX file: uint8 images in, features of length 1 out, any number of them at a time.

Needs the packages onnx and onnxscript (``pip install reposer[onnx]``). Range, resizing, normalization and the
mirror image are inside the graph, so that another program can do nothing wrong but the size.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from reposer.errors import UserError
from reposer.files import write_atomic
from reposer.models.embedding import Embedding

INPUT, OUTPUT = "image", "feature"
_PACKAGES = ("onnx", "onnxscript")


def export_onnx(embedding: Embedding, path: str | Path) -> Path:
    """Write ``path``: input "image" (N, 3, H, W) uint8 RGB at the embedding's size, output "feature" (N, D).

    Args:
        embedding: exported as it is used: eval mode, float32, on the CPU; it is left as it was.
        path: the .onnx file; appears complete or not at all.

    Raises:
        UserError: a package is missing, or the disk refuses.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {' and '.join(missing)}, not installed here", "pip install reposer[onnx]"
        )
    images = torch.zeros(2, 3, *embedding.size, dtype=torch.uint8)
    training, device = embedding.training, next(embedding.parameters()).device
    embedding.eval().cpu()
    try:
        data = _exported(embedding, images)
    finally:
        embedding.train(training).to(device)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return path


def _exported(module: nn.Module, images: torch.Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # progress lines of the exporter
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own internals
        file = Path(folder) / "embedding.onnx"
        torch.onnx.export(
            module,
            (images,),
            file,
            dynamo=True,
            external_data=False,  # weights inside: one file
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        return file.read_bytes()
