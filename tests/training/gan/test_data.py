"""The batches of a training: a function of seed and step alone, whoever works them off."""

from __future__ import annotations

import pytest
import torch
from tiny_training import tiny_config, write_prepared

from reposer.data.pairs import write_pairs_csv
from reposer.data.samplers import budget_rows
from reposer.errors import UserError
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


def test_a_budget_leaves_a_share_of_each_persons_images(tmp_path):
    """Neither pairs nor further sources show another training image; who is only watched stays whole."""
    folder = write_prepared(tmp_path / "prepared")
    whole = GanData(tiny_config(folder))
    config = tiny_config(folder, data={"folder": folder, "sources": 3, "budget": 0.75, "budget_seed": 1})
    data = GanData(config)
    kept = set(budget_rows(data.people, 0.75, 1).tolist())
    assert len(kept) == 6 * 3  # six training people of four images each
    every = {tuple(pair) for pair in whole.pairs.tolist()}
    assert {tuple(pair) for pair in data.pairs.tolist()} == {pair for pair in every if kept.issuperset(pair)}
    further = data._further.choose(*data.pairs.T, 2)
    assert set(further.ravel().tolist()) - {-1} <= kept
    assert (further >= 0).any()
    assert (data._further.choose(*data.validation_pairs.T, 2) >= 0).any()
    assert data.validation_pairs.tolist() == whole.validation_pairs.tolist()


def test_a_budget_without_a_pair_is_refused(tmp_path):
    folder = write_prepared(tmp_path / "prepared")
    people = GanData(tiny_config(folder)).people
    left_out = set(range(4)) - set(budget_rows(people, 0.5).tolist())
    first, second = sorted(left_out)
    write_pairs_csv(folder / "pairs_train.csv", [(people.names[first], people.names[second])])
    with pytest.raises(UserError, match=r"pairs_train\.csv: data\.budget=0\.5 leaves no pair"):
        GanData(tiny_config(folder, data={"folder": folder, "budget": 0.5}))


def test_a_share_of_the_targets_is_the_source_image_itself(tmp_path):
    """The sources stay, and so do the targets of the other pairs."""
    folder = write_prepared(tmp_path / "prepared")
    given = GanData(tiny_config(folder, batch_size=64))
    some = GanData(tiny_config(folder, batch_size=64, data={"folder": folder, "itself": 0.5}))
    (usual,), (mixed,) = given.parts(3), some.parts(3)
    assert torch.equal(mixed.batch.source_image, usual.batch.source_image)
    names = [name.split(" -> ") for name in mixed.names]
    itself = torch.tensor([source == target for source, target in names])
    assert 16 < itself.sum() < 48
    for target, source in (("target_image", "source_image"), ("target_parsing", "source_parsing")):
        assert torch.equal(getattr(mixed.batch, target)[itself], getattr(mixed.batch, source)[itself])
        assert torch.equal(getattr(mixed.batch, target)[~itself], getattr(usual.batch, target)[~itself])


def test_a_whole_budget_is_not_named_so_that_earlier_runs_go_on(tmp_path):
    data = tiny_config(tmp_path).data
    assert "budget" not in data.model_dump()
    assert data.changed(budget=0.2).model_dump()["budget"] == 0.2
