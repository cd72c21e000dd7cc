"""A toy generator that is trained in stages, with a loss term of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

from torch import nn

from reposer.images import to_float
from reposer.structures import PairBatch


def _block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 3, 1))


class Coarse(nn.Module):
    """A coarse picture, then its difference from a fine one; the term "code" is its own."""

    needs = ("source_image",)
    extra_terms: ClassVar = {"code": "coded"}
    stages: ClassVar = {"first": ("coarse.net",), "second": ("fine",), "all": ("coarse", "fine")}

    def __init__(self, coded: bool = True) -> None:
        super().__init__()
        self.stage = ""
        self.coarse = nn.ModuleDict({"net": _block()})
        self.fine = _block()

    def forward(self, batch: PairBatch, parts: bool = False):
        coarse = self.coarse["net"](to_float(batch.source_image))
        image = (coarse if self.stage == "first" else coarse + self.fine(coarse)).tanh()
        own = SimpleNamespace(terms={"code": coarse.square().mean()})
        return (image, own) if parts else image
