"""Tiny models of the real architectures, with random weights, as files that a user would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def weights_folder(tmp_path, monkeypatch) -> Path:
    """No test sees the weights, or the accepted licenses, of this machine."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("REPOSER_WEIGHTS", str(folder))
    return folder


class TinyScorer(nn.Module):
    """A stride-4 network with ``outputs`` score maps, as SCHP has three."""

    def __init__(self, classes: int = 20, outputs: int = 1, layout: str = "nchw") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.heads = nn.ModuleList(nn.Conv2d(8, classes, 3, padding=1) for _ in range(outputs))
        self.layout = layout

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.tanh(self.stem(x))
        maps = tuple(head(x) for head in self.heads)
        if self.layout == "nhwc":
            return tuple(m.permute(0, 2, 3, 1) for m in maps)
        return tuple(m.argmax(1) for m in maps) if self.layout == "labels" else maps


def export(module: nn.Module, path: Path, size: tuple[int, int], batch: int | None = None) -> Path:
    """An ONNX file; ``batch`` fixes the number of images, None leaves it free."""
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    sample = torch.zeros(batch or 2, 3, *size)
    torch.onnx.export(
        module.eval(),
        (sample,),
        path,
        dynamo=True,
        external_data=False,
        input_names=["input.1"],
        dynamic_shapes=dynamic,
        verbose=False,
    )
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., tuple[nn.Module, Path]]:
    """Exports a TinyScorer once for each set of arguments; give a copy of the file a description."""
    made: dict[tuple, tuple[nn.Module, Path]] = {}

    def make(size=(33, 33), batch=None, **arguments) -> tuple[nn.Module, Path]:
        key = (size, batch, *sorted(arguments.items()))
        if key not in made:
            torch.manual_seed(0)
            module = TinyScorer(**arguments).eval()
            path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
            made[key] = module, export(module, path, size, batch)
        return made[key]

    return make


@pytest.fixture
def described(tmp_path) -> Callable[..., Path]:
    """Puts a model file and a description beside each other."""

    def put(file: Path, name: str = "my", **description) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(file.read_bytes())
        path.with_suffix(".json").write_text(json.dumps(description))
        return path

    return put
