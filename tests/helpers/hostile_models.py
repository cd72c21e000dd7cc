"""Sixty model files that nobody should load, each with the words that must refuse it.

``ONNX``, ``STATES`` and ``FOLDERS`` map a name to (how the file is made, what the refusal says).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

MARKER = "CODE_RAN"  # the name of a file that code in a hostile file would make


class Evil:
    """Makes the marker when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil(folder: Path) -> Evil:
    return Evil(os.system, f"touch {folder / MARKER}")


# ---- ONNX


def graph(nodes, initializers=(), outputs=("y",), inputs=("x",)) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 8, 8]) for n in inputs]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    return helper.make_graph(list(nodes), "g", infos, outs, list(initializers))


def model(nodes, initializers=(), domains=(), **kwargs) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph(nodes, initializers, **kwargs), opset_imports=opsets, ir_version=9)


def weights(name="w", shape=(20, 3, 1, 1)) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


CONV = helper.make_node("Conv", ["x", "w"], ["y"])


def external(location: str, **entries: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        tensor = weights()
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location.replace("{folder}", str(folder)), **entries}.items():
            tensor.external_data.add(key=key, value=value)
        (folder / "data.bin").write_bytes(bytes(240))
        return model([CONV], [tensor]).SerializeToString()

    return make


def changed(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        proto = model([CONV], [weights()])
        change(proto)
        return proto.SerializeToString()

    return make


def built(*args, **kwargs) -> Callable[[Path], bytes]:
    return lambda _: model(*args, **kwargs).SerializeToString()


def _dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)

    return change


def _cleared(dims: tuple[int, ...]) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        _dims(*dims)(proto)
        proto.graph.initializer[0].ClearField("raw_data")

    return change


def _function(proto: onnx.ModelProto) -> None:
    function = helper.make_function(
        "",
        "Conv",
        ["a", "b"],
        ["c"],
        [helper.make_node("Add", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 18)],
    )
    proto.functions.append(function)


def _training(proto: onnx.ModelProto) -> None:
    proto.training_info.add()


def _hidden_external(_: Path) -> bytes:
    """External data in a tensor of a node's attribute inside a graph inside a node."""
    tensor = weights("t", (1,))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=tensor)],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    condition = numpy_helper.from_array(np.array(True), "c")
    return model([branch], [condition]).SerializeToString()


def _nested(_: Path) -> bytes:
    inner = graph([helper.make_node("Identity", ["x"], ["y"])], inputs=())
    for _level in range(20):
        inner = graph([helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], inputs=())
        inner = onnx.GraphProto.FromString(inner.SerializeToString())
        if inner.ByteSize() > 100_000:
            break
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return model([node], [condition]).SerializeToString()


def _loop(kind: str) -> Callable[[Path], bytes]:
    body = graph([helper.make_node("Identity", ["c"], ["d"])], inputs=(), outputs=("d",))
    node = helper.make_node(kind, ["n", "c"], ["y"], body=body)
    return built([node], [numpy_helper.from_array(np.array(2**60), "n")])


def _sized(kind: str, place: int, sizes: list[int], as_node: bool = False) -> Callable[[Path], bytes]:
    names = ["x"] * place + ["s"]
    value = numpy_helper.from_array(np.array(sizes, np.int64), "s")
    nodes = [helper.make_node(kind, names, ["y"])]
    if as_node:
        value.name = ""
        return built([helper.make_node("Constant", [], ["s"], value=value), *nodes])
    return built(nodes, [value])


def _sparse(_: Path) -> bytes:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto = model([CONV])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))
    return proto.SerializeToString()


def _good(_: Path) -> bytes:
    return model([CONV], [weights()]).SerializeToString()


ONNX: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "external-beside": (external("data.bin"), "lies in another file"),
    "external-absolute": (external("/etc/passwd"), "lies in another file"),
    "external-above": (external("../../secret"), "lies in another file"),
    "external-offset": (external("{folder}/data.bin", offset="0", length="240"), "lies in another file"),
    "external-empty-location": (external(""), "lies in another file"),
    "external-inside-an-if": (_hidden_external, "lies in another file"),
    "custom-domain": (
        built([helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")], domains=["evil.ops"]),
        "operators of its own",
    ),
    "microsoft-domain": (
        built([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=["com.microsoft"]),
        "operators of its own",
    ),
    "undeclared-domain": (
        built([helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")]),
        "wants the operator",
    ),
    "python-operator": (
        built(
            [helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")], domains=["ai.onnx.contrib"]
        ),
        "operators of its own",
    ),
    "unknown-operator": (built([helper.make_node("Evil", ["x"], ["y"])]), "onnxruntime refuses it"),
    "function": (changed(_function), "functions"),
    "training": (changed(_training), "training steps"),
    "loop": (_loop("Loop"), "need not end"),
    "scan": (_loop("Scan"), "need not end"),
    "nested": (_nested, "nested deeper"),
    "dims-too-large": (changed(_dims(2**40, 3, 1, 1)), "claims"),
    "dims-overflow": (changed(_dims(2**62, 2**62)), "claims"),
    "dims-negative": (changed(_dims(-20, 3, 1, 1)), "negative"),
    "dims-too-small": (changed(_dims(2, 3, 1, 1)), "claims"),
    "no-values": (changed(_cleared((2**40,))), "claims"),
    "few-values": (changed(_cleared((20, 3, 1, 1))), "claims|cannot be read"),
    "unknown-type": (changed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "cannot be read"),
    "sparse": (_sparse, "claims"),
    "fill": (_sized("ConstantOfShape", 0, [2**20, 2**20]), "ConstantOfShape wants"),
    "fill-by-constant": (_sized("ConstantOfShape", 0, [2**20, 2**20], as_node=True), "ConstantOfShape wants"),
    "expand": (_sized("Expand", 1, [2**16, 3, 2**10, 2**10]), "Expand wants"),
    "tile": (_sized("Tile", 1, [1, 1, 2**20, 2**20]), "Tile wants"),
    "resize": (
        built(
            [helper.make_node("Resize", ["x", "", "", "s"], ["y"])],
            [numpy_helper.from_array(np.array([1, 3, 2**17, 2**17]), "s")],
        ),
        "Resize wants",
    ),
    "random": (
        built([helper.make_node("RandomNormal", [], ["y"], shape=[2**20, 2**20])]),
        "RandomNormal wants",
    ),
    "huge-pads": (
        built([helper.make_node("Conv", ["x", "w"], ["y"], pads=[2**20] * 4)], [weights()]),
        "Conv wants",
    ),
    "not-finite": (
        built([CONV], [numpy_helper.from_array(np.full((20, 3, 1, 1), np.nan, np.float32), "w")]),
        "NaN or infinity",
    ),
    "empty": (lambda _: b"", "no computation"),
    "no-nodes": (built([]), "no computation"),
    "no-output": (built([CONV], [weights()], outputs=()), "no computation"),
    "truncated": (lambda f: _good(f)[:-100], "is no ONNX file|claims|no computation"),
    "text": (lambda _: b"<html>sign in to download</html>", "is no ONNX file|no computation"),
    "gzip": (lambda f: gzip.compress(_good(f)), "is no ONNX file|no computation"),
    "pickle": (lambda f: pickle.dumps(evil(f)), "is no ONNX file|no computation"),
    "two-inputs": (
        built([helper.make_node("Add", ["x", "z"], ["y"])], inputs=("x", "z")),
        "its description says one",
    ),
    "a-cycle": (
        built(
            [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])],
            outputs=("a",),
        ),
        "onnxruntime refuses it",
    ),
}

# ---- state dicts


def torch_file(value: Any) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        buffer = io.BytesIO()
        torch.save(value(folder) if isinstance(value, FunctionType) else value, buffer)
        return buffer.getvalue()

    return make


def _compressed(_: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1_000_000)}, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return out.getvalue()


def _header(entries: dict[str, Any], data: bytes = b"") -> Callable[[Path], bytes]:
    text = json.dumps(entries).encode()
    return lambda _: len(text).to_bytes(8, "little") + text + data


STATES: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "system.pth": (torch_file(lambda f: {"w": evil(f)}), ".pth", "more than tensors"),
    "system-raw.pth": (lambda f: pickle.dumps(evil(f)), ".pth", "more than tensors"),
    "eval.pth": (
        lambda f: pickle.dumps(Evil(eval, f"open({str(f / MARKER)!r}, 'w')")),
        ".pth",
        "more than tensors",
    ),
    "module.pth": (torch_file(torch.nn.Linear(1, 1)), ".pth", "more than tensors"),
    "expanded.pth": (torch_file({"w": torch.zeros(1).expand(10**9)}), ".pth", "not a contiguous tensor"),
    "sparse.pth": (
        torch_file({"w": torch.eye(3).to_sparse_csr()}),
        ".pth",
        "no dense tensor|more than tensors",
    ),
    "nested.pth": (torch_file({"model": {"w": torch.zeros(1)}}), ".pth", "is a dict, no tensor"),
    "list.pth": (torch_file([torch.zeros(1)]), ".pth", "no state dict"),
    "nan.pth": (torch_file({"w": torch.full((2,), torch.nan)}), ".pth", "NaN"),
    "bomb.pth": (_compressed, ".pth", "a compressed archive"),
    "names.pth": (torch_file({"w": torch.zeros(1)}), ".pth", "not the weights of maskrcnn"),
    "cut.pth": (lambda f: torch_file({"w": torch.zeros(999)})(f)[:500], ".pth", "damaged"),
    "long-header.safetensors": (
        lambda _: (2**60).to_bytes(8, "little"),
        ".safetensors",
        "longer than the file",
    ),
    "huge-shape.safetensors": (
        _header({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)),
        ".safetensors",
        "damaged",
    ),
    "twice.safetensors": (
        lambda _: (lambda t: len(t).to_bytes(8, "little") + t + bytes(4))(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        ".safetensors",
        "occurs twice",
    ),
    "script.pt": (lambda _: _scripted(), ".pt", "damaged|more than tensors|compressed archive"),
    "array.npz": (lambda _: b"PK\x03\x04", ".npz", "unknown kind"),
}


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


# ---- folders of transformers

_TINY = {
    "model_type": "segformer",
    "num_labels": 18,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 8, 8],
    "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
}


def folder(settings: dict[str, Any] | bytes, tensors: dict[str, torch.Tensor] | None = None):
    def make(place: Path) -> None:
        text = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
        (place / "config.json").write_bytes(text)
        if tensors is not None:
            save_file(tensors, place / "model.safetensors")
        (place / "code.py").write_text(f"open({str(place / MARKER)!r}, 'w')")
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(evil(place)))

    return make


_SOME = {"w": torch.zeros(4)}
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "own-code": (folder(_TINY | {"auto_map": {"AutoModel": "code.Model"}}, _SOME), "auto_map is set"),
    "quantized": (
        folder(_TINY | {"quantization_config": {"load_in_4bit": True}}, _SOME),
        "quantization_config",
    ),
    "outside-kernel": (
        folder(_TINY | {"attn_implementation": "evil/kernels"}, _SOME),
        "attn_implementation is set",
    ),
    "outside-kernel-2": (
        folder(_TINY | {"_attn_implementation": "flash_attention_2"}, _SOME),
        "_attn_implementation is set",
    ),
    "own-key": (folder(_TINY | {"custom_pipelines": {"x": "code.P"}}, _SOME), "custom_pipelines is set"),
    "billion-layers": (folder(_TINY | {"depths": [10**9, 1, 1, 1]}, _SOME), "depths is larger than 200"),
    "billion-pixels": (
        folder({"model_type": "beit", "image_size": 10**9, "num_labels": 18}, _SOME),
        "image_size is larger than 100,000",
    ),
    "hub-backbone": (folder(_TINY | {"backbone": "evil/repo"}, _SOME), "backbone is set"),
    "other-model": (folder({"model_type": "llama"}, _SOME), "not one of segformer"),
    "no-model": (folder({"model_type": 3}, _SOME), "not one of segformer"),
    "only-a-pickle": (folder(_TINY), "no such file"),
    "wrong-names": (folder(_TINY, _SOME), "do not belong|asks for"),
    "huge-network": (folder(_TINY | {"hidden_sizes": [2**14] * 4}, _SOME), "asks for|no network"),
    "negative-size": (folder(_TINY | {"hidden_sizes": [-8, 8, 8, 8]}, _SOME), "no network|asks for"),
    "deep-json": (folder(b'{"a":' * 5000 + b"1" + b"}" * 5000, _SOME), "not valid JSON"),
    "large-json": (folder(b'{"a": "' + b"x" * 2_000_000 + b'"}', _SOME), "larger than"),
}
