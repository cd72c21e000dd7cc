"""Small batches and networks for the tests of the models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]


def random_batch(size: int = 2, height: int = 64, width: int = 32, seed: int = 0) -> PairBatch:
    """A batch of noise; every field differs between source and target and from row to row."""
    rng = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (size, *shape), generator=rng, dtype=torch.uint8)

    return PairBatch(
        source_image=draw(256, 3, height, width),
        target_image=draw(256, 3, height, width),
        source_parsing=draw(20, height, width),
        target_parsing=draw(20, height, width),
        source_mask=draw(2, height, width).bool(),
        target_mask=draw(2, height, width).bool(),
        source_keypoints=torch.rand(size, 18, 2, generator=rng) * 32,
        target_keypoints=torch.rand(size, 18, 2, generator=rng) * 32,
        pids=torch.arange(size),
    )


class Operations(TorchFunctionMode):
    """Multiply-accumulates of the calls inside, from the shapes of what goes in and comes out.

    Literal, and by the names of the public functions: which kernel a release of PyTorch picks for a call, and
    what its own counter knows of that kernel, makes no difference. ``with Operations() as counted:
    net(batch)``, then ``counted.total``. The meta device gives the shapes without computing anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += _multiply_accumulates(func.__name__, args, kwargs or {}, result)
        return result


_ONE_PER_INPUT = ("conv_transpose2d",)  # every input value meets the kernel of all its output channels
_PRODUCTS = ("matmul", "__matmul__", "bmm", "mm")
_UNKNOWN = (
    "addmm",
    "baddbmm",
    "addbmm",
    "conv1d",
    "conv3d",
    "bilinear",
    "tensordot",
    "multi_head_attention_forward",
)


def _multiply_accumulates(name: str, args: Any, kwargs: Any, result: Any) -> int:
    if name in ("conv2d", "linear"):  # weight (O, I / groups, ...)
        return int(result.numel() * args[1][0].numel())
    if name in _ONE_PER_INPUT:  # weight (I, O / groups, ...)
        return int(args[0].numel() * args[1][0].numel())
    if name in _PRODUCTS:
        return int(result.numel() * args[0].shape[-1])
    if name == "einsum":
        operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        terms = args[0].split("->")[0].split(",")
        sizes = {
            i: n
            for term, x in zip(terms, operands, strict=True)
            for i, n in zip(term.strip(), x.shape, strict=True)
        }
        return prod(sizes.values())
    if name == "scaled_dot_product_attention":  # Q K^T, then the weights times V
        q, k, v = (*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs))[:3]
        return int(q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1]))
    if name in _UNKNOWN:
        raise NotImplementedError(f"{name} multiplies, and nothing here says how often")
    return 0


@pytest.fixture
def operations() -> Callable[[Callable[..., object]], float]:
    """Call it with a function and its arguments: 1e9 multiply-accumulates of that call, without gradients."""

    def count(work: Callable[..., object], *args: object) -> float:
        with torch.no_grad(), Operations() as counted:
            work(*args)
        return counted.total / 1e9

    return count


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to put the plain form of RSA-GAN (benchmarks/parts) in the place of ours for this test."""
    path = Path(__file__).parents[2] / "benchmarks" / "parts" / "plain_rsa.py"
    spec = importlib.util.spec_from_file_location("plain_rsa", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda: module.install(monkeypatch.setattr)


@pytest.fixture
def make_batch() -> BatchMaker:
    return random_batch
