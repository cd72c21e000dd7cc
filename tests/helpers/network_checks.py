"""What every generator by keypoints must hold, whatever its form."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from reposer.structures import PairBatch


def reads_image_and_poses_only(net: nn.Module, batch: PairBatch) -> None:
    """Nothing but what ``net.needs`` names has a part in the picture, and all of that has."""
    blind = replace(
        batch,
        **{f: 255 - getattr(batch, f) for f in ("target_image", "source_parsing", "target_parsing")},
        source_mask=~batch.source_mask,
        target_mask=~batch.target_mask,
    )
    with torch.inference_mode():
        assert torch.equal(net(batch), net(blind))
        for field in net.needs:
            changed = replace(batch, **{field: getattr(batch, field).flip(1)})
            assert not torch.equal(net(batch), net(changed)), field


def does_not_depend_on_its_batch(net: nn.Module, batch: PairBatch) -> None:
    """A picture alone is that of a batch of four, with joints missing in two of them."""
    batch.source_keypoints[1, [2, 8]] = batch.target_keypoints[2, :9] = torch.nan
    with torch.inference_mode():
        whole = net(batch)
        for row in range(4):
            one = PairBatch(**{name: column[row : row + 1] for name, column in batch.tensors().items()})
            assert (net(one) - whole[row]).abs().max() < 2 / 255 / 10
