"""A module, or an embedding, as one ONNX file; compared with PyTorch before it is kept.

Needs the packages onnx, onnxscript and onnxruntime (``pip install reposer[onnx]``).
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.storage.outputs import write_output
from reposer.storage.paths import made_folder

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_module(
    module: nn.Module,
    sample: Tensor,
    path: str | Path,
    names: tuple[str, str],
    *,
    tolerance: float = 1e-3,
) -> float:
    """Write ``path``, weights inside: input (N, ...) as ``sample``, one output, float32.

    Returns how far the file is from PyTorch on random inputs, at most.

    Args:
        module: exported in eval mode, on the CPU; it is left as it was.
        sample: (2, ...) an input; only its first side may differ in use.
        path: the .onnx file; appears complete or not at all.
        names: of input and output.
        tolerance: the largest difference that is let pass, in units of the largest value or of 1.

    Raises:
        UserError: a package is missing, the disk refuses, or the file computes something else.
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
        difference = _difference(module, sample, data)
    finally:
        module.train(training).to(device)
    if not difference <= tolerance:  # NaN is no difference that is small
        raise UserError(
            f"{path}: not written: onnxruntime and PyTorch differ by {difference:.1e}",
            "use other versions of onnx and torch",
        )
    path = Path(path)
    made_folder(path.parent)
    write_output(path, data)
    return difference


def _difference(module: nn.Module, sample: Tensor, data: bytes) -> float:
    """Largest difference on three random inputs, in units of the largest value or of 1."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3, *sample.shape[1:])).astype(np.float32)
    inputs = torch.from_numpy(values)
    inputs = inputs.to(sample.dtype) if sample.dtype == torch.uint8 else inputs / 127.5 - 1
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.inference_mode():
        expected = module(inputs).numpy()
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


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
        return _without_notes(file.read_bytes())


def _without_notes(data: bytes) -> bytes:
    """The model without what the exporter notes of each node: classes and paths of source files, which say
    where on whose disk the program lies, and make the same network other bytes on another machine.
    """
    import onnx

    model = onnx.load_from_string(data)
    del model.graph.metadata_props[:]
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        del node.metadata_props[:]
        nodes += [inner for attribute in node.attribute for inner in attribute.g.node]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    stripped: bytes = model.SerializeToString()
    return stripped


# ---- An embedding as one ONNX file: uint8 images in, features of length 1 out, any number of them at a time.
#
# Range, resizing, normalization and the mirror image are inside the graph, so that another program can do
# nothing wrong but the size.

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
