"""The ONNX file says what the embedding says, for any number of images."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.trained import onnx as onnx_export
from reposer.trained.onnx import export_onnx


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"backbone": "small", "size": (64, 32), "stripes": 4},
        {"backbone": "small", "size": (64, 32), "neck": "none", "window": 2, "mirror": True},
        {"backbone": "mobilenet_v2_keras", "backbone_args": {"last_stride": 1}, "size": (64, 32)},
    ],
)
def test_onnxruntime_agrees(arguments, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    embedding = Embedding(**arguments).train()
    embedding.features(torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8))  # moves the statistics
    path = tmp_path / "new" / "embedding.onnx"
    assert export_onnx(embedding, path) < 1e-4
    assert embedding.training
    noted = path.read_bytes()
    assert not any(word in noted for word in (b"stack_trace", b"site-packages", b"/reposer/", b".py"))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options)
    embedding.eval()
    for count in (1, 2, 5):
        images = torch.randint(0, 256, (count, 3, 64, 32), dtype=torch.uint8)
        (features,) = session.run(["feature"], {"image": images.numpy()})
        with torch.inference_mode():
            assert np.abs(features - embedding(images).numpy()).max() < 1e-4


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(UserError, match="onnxscript, not installed"):
        export_onnx(Embedding("small"), tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export, "_exported", lambda *_: b"")
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"e\.onnx: not written: .* differ"):
        export_onnx(Embedding("small"), tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())
