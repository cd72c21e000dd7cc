"""Generators that learn nothing: what a trained one has to beat, under the same writer, metrics and study.

A control's ``provenance`` says how its pictures come about.
"""

from __future__ import annotations

from torch import Tensor, nn

from reposer.images import to_float
from reposer.models.texture_transport import NEEDS, carried_to
from reposer.structures import PairBatch


class Transport(nn.Module):
    """The carried texture alone: pixels of the source in the target's pose, group colors where they lack."""

    needs = NEEDS
    provenance = "no network: pixels of the source are carried to the target's pose"

    def forward(self, batch: PairBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return carried_to(batch).image


class Paste(nn.Module):
    """The source image as it is, whatever the pose: its person over another background is all that is new."""

    needs = ("source_image", "source_mask")
    person = "source"  # whose mask cuts the generated person out
    provenance = "no network: each picture shows its source as it is; nothing of the target's pose is read"

    def forward(self, batch: PairBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]; back in uint8 it is the source to the last bit."""
        return to_float(batch.source_image)


CONTROLS: dict[str, type[nn.Module]] = {"transport": Transport, "paste": Paste}
