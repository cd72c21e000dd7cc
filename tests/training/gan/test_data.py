"""The batches of a training: a function of seed and step alone, whoever works them off."""

from __future__ import annotations

import pytest
import torch
from tiny_training import tiny_config, write_prepared

from reposer.structures import PairBatch
from reposer.training.gan.data import GanData


def joined(batches: list[PairBatch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_the_batch_of_one_process(tmp_path, world_size):
    folder = write_prepared(tmp_path / "prepared")
    config = tiny_config(folder, batch_size=8, data={"folder": folder, "flip": True})
    (whole,) = GanData(config).parts(6)
    shares = [GanData(config, rank, world_size).parts(6) for rank in range(world_size)]
    batches = [part.batch for parts in shares for part in parts]
    assert [len(batch) for batch in batches] == [8 // world_size] * world_size
    for name, alone in whole.batch.tensors().items():
        together = joined(batches, name)
        assert torch.equal(together.nan_to_num(-1), alone.nan_to_num(-1)), name
