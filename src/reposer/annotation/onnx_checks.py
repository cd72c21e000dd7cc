"""Which ONNX files may be run: one file of plain ONNX operators, no larger inside than outside.

An ONNX file can name other files to read (CVE-2022-25882, CVE-2024-5187, CVE-2024-27318), ask for operators
from libraries, hide a huge memory behind a few bytes, or never end. Nothing of a file is executed before
all of these are excluded; the rules stand in the messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, read_regular

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1  # the most that a protobuf message can hold
MAX_ELEMENTS = 2**28  # of a tensor that the graph makes out of a constant shape
_MAX_DEPTH = 8  # of graphs inside nodes
_PLAIN_DOMAINS = ("", "ai.onnx")
_ENDLESS = ("Loop", "Scan", "SequenceMap")
_SHAPED_BY_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3, "Upsample": 1, "Pad": 1}
_SHAPED_BY_INPUT |= {"Range": 1, "OneHot": 1}
_SIZE_ATTRIBUTES = ("shape", "pads", "output_shape", "kernel_shape", "output_padding")
_ADVICE = "use a model file from a source that you trust, exported as one file with standard operators"
# rule -> what to do, where it is no matter of trust
_ADVICES = {
    "external-data": (
        "PyTorch writes two files by default: export again with torch.onnx.export(..., external_data=False)"
    ),
    "not-onnx": "give the .onnx file itself, and get it again if it is one",
    "empty": "export the network again",
}


def read_onnx(path: str | Path) -> bytes:
    """The bytes of an ONNX file that may be handed to onnxruntime.

    Raises:
        RefusedFileError: rules of ``read_regular``, or ``not-onnx``, ``empty``, ``external-data``,
            ``custom-operator``, ``endless``, ``nested``, ``tensor-size``, ``absurd-size``, ``non-finite``.
        UserError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "ONNX models need onnx, not installed here", "pip install reposer[annotate]"
        ) from error
    path = Path(path)
    data = read_regular(path, max_bytes=MAX_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own class differs between its implementations
        raise RefusedFileError(
            path, "not-onnx", "is no ONNX file, or a damaged one", _ADVICES["not-onnx"]
        ) from error
    found = _fault(model, len(data))
    if found:
        raise RefusedFileError(path, *found, _ADVICES.get(found[0], _ADVICE))
    return data


def _fault(model: onnx.ModelProto, size: int) -> tuple[str, str] | None:
    """(rule, problem) of the first fault; None for a model that may be run."""
    if not model.graph.node or not model.graph.output or not model.ir_version:
        return "empty", "holds no computation"
    domains = {entry.domain for entry in model.opset_import}
    foreign = sorted(domains - set(_PLAIN_DOMAINS))
    if foreign or len(model.functions):
        return "custom-operator", f"wants operators of its own ({', '.join(foreign) or 'functions'})"
    if len(model.training_info):
        return "custom-operator", "holds training steps"
    total = 0
    constants: dict[str, np.ndarray[Any, Any]] = {}
    for graph, depth in _graphs(model.graph, 0):
        if depth > _MAX_DEPTH:
            return "nested", f"holds graphs nested deeper than {_MAX_DEPTH}"
        for tensor in _tensors(graph):
            found, claimed = _tensor_fault(tensor, constants)
            if found:
                return found
            total += claimed
    if total > size:
        return "tensor-size", "its tensors claim more bytes than the file has"
    for graph, _ in _graphs(model.graph, 0):
        for node in graph.node:
            found = _node_fault(node, constants)
            if found:
                return found
    return None


def _graphs(graph: onnx.GraphProto, depth: int) -> Iterator[tuple[onnx.GraphProto, int]]:
    yield graph, depth
    if depth > _MAX_DEPTH:
        return
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner, depth + 1)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and the tensors of constants; a sparse one is seen as one of its dense shape."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield _dense(sparse)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensor = attribute.t
                if node.op_type == "Constant" and not tensor.name and node.output:
                    tensor = _copy(tensor)
                    tensor.name = node.output[0]
                yield tensor
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield _dense(attribute.sparse_tensor)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The values with the shape they unfold to, whose size the file does not hold."""
    tensor = _copy(sparse.values)
    del tensor.dims[:]
    tensor.dims.extend(sparse.dims)
    return tensor


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copied: onnx.TensorProto = type(tensor)()
    copied.CopyFrom(tensor)
    return copied


def _tensor_fault(
    tensor: onnx.TensorProto, constants: dict[str, np.ndarray[Any, Any]]
) -> tuple[tuple[str, str] | None, int]:
    """(rule, problem) and the bytes that the tensor claims; short ones are remembered in ``constants``."""
    import onnx

    name = tensor.name[:60] or "a constant"
    if tensor.data_location != onnx.TensorProto.DEFAULT or len(tensor.external_data):
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        return ("external-data", f"{name} lies in another file ({', '.join(places)[:80]})"), 0
    if any(side < 0 for side in tensor.dims):
        return ("tensor-size", f"{name} has a negative size"), 0
    elements = math.prod(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        held = len(tensor.string_data)
        return (None, held) if held == elements else (("tensor-size", f"{name}: {elements} texts claimed"), 0)
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.HasField("raw_data") and len(tensor.raw_data) != elements * width:
            return ("tensor-size", f"{name} claims {elements:,} numbers and holds other bytes"), 0
        if not tensor.HasField("raw_data") and elements > tensor.ByteSize():
            return ("tensor-size", f"{name} claims {elements:,} numbers and holds fewer"), 0
        values = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # unknown types, too few numbers: whatever the library raises
        return ("tensor-size", f"{name} cannot be read ({str(error)[:80]})"), 0
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return ("non-finite", f"{name} holds NaN or infinity"), 0
    if values.size <= 16 and values.dtype.kind in "iuf" and tensor.name:
        constants[tensor.name] = values
    return None, values.nbytes if tensor.HasField("raw_data") else 0


def _node_fault(node: onnx.NodeProto, constants: dict[str, np.ndarray[Any, Any]]) -> tuple[str, str] | None:
    if node.domain not in _PLAIN_DOMAINS:
        return "custom-operator", f"wants the operator {node.domain[:40]}.{node.op_type[:40]}"
    if node.op_type in _ENDLESS:
        return "endless", f"holds a {node.op_type}, which need not end"
    sizes = _sizes(node, constants)
    if sizes and math.prod(max(size, 1.0) for size in sizes) > MAX_ELEMENTS:
        return "absurd-size", f"a {node.op_type} wants {[round(size) for size in sizes]} numbers"
    return None


def _sizes(node: onnx.NodeProto, constants: dict[str, np.ndarray[Any, Any]]) -> list[float]:
    """Sides of what the node makes or works with, as far as they are constants of the file."""
    for attribute in node.attribute:
        if attribute.name in _SIZE_ATTRIBUTES and len(attribute.ints):
            return [abs(float(size)) for size in attribute.ints]
    place = _SHAPED_BY_INPUT.get(node.op_type)
    if place is None or len(node.input) <= place or node.input[place] not in constants:
        return []
    sizes = np.abs(constants[node.input[place]].astype(np.float64)).ravel().tolist()
    return [float(size) for size in sizes]
