"""A module as one ONNX file, for any number of samples at a time; needs the packages onnx and onnxscript."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.files import write_atomic

_PACKAGES = ("onnx", "onnxscript")


def export_module(module: nn.Module, sample: Tensor, path: str | Path, names: tuple[str, str]) -> Path:
    """Write ``path``, weights inside: input (N, ...) as ``sample``, one output, float32.

    Args:
        module: exported in eval mode, on the CPU; it is left as it was.
        sample: (2, ...) an input; only its first side may differ in use.
        path: the .onnx file; appears complete or not at all.
        names: of input and output.

    Raises:
        UserError: a package is missing, or the disk refuses.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {' and '.join(missing)}, not installed here", "pip install reposer[onnx]"
        )
    training, device = module.training, next(module.parameters()).device
    module.eval().cpu()
    try:
        data = _exported(module, sample, names)
    finally:
        module.train(training).to(device)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return path


def _exported(module: nn.Module, sample: Tensor, names: tuple[str, str]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # progress lines of the exporter
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own internals
        file = Path(folder) / "module.onnx"
        torch.onnx.export(
            module,
            (sample,),
            file,
            dynamo=True,
            external_data=False,  # weights inside: one file
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        return file.read_bytes()
