"""A generator that generates nothing: its picture is the source image. The control of an augmentation study.

A set made by it goes the whole way of a generated set (files, manifest, mixing, labels, weights), so that a
training on it differs from one on generated pictures in the pictures alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.generation.export import GeneratorConfig
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import to_float
from reposer.structures import PairBatch


class CopySource(nn.Module):
    """The source image, whatever the pose."""

    def forward(self, batch: PairBatch) -> Tensor:
        """-> (B, 3, H, W) in [-1, 1]; back in uint8 it is the source to the last bit."""
        return to_float(batch.source_image)


def copy_source(people: PackedPeople) -> PoseTransfer:
    """The control for the training people of a prepared folder."""
    return PoseTransfer(
        CopySource(),
        GeneratorConfig(
            generator="copy",
            size=people.size,
            trained_on="nobody",
            identity_hash=people.identity_hash("train"),
        ),
    )
