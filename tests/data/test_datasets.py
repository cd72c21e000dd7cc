"""Batches of training steps: the same for any number of workers, processes and earlier steps."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from reposer.data.datasets import PairDataset, TrainingSteps
from reposer.data.packed import PackedPeople
from reposer.data.pairs import ordered_pairs
from reposer.data.samplers import draw_flips, draw_pairs
from reposer.structures import PairBatch

PAIRS = ordered_pairs([range(0, 6), range(6, 12)])


def content(batch: PairBatch) -> bytes:
    values = (getattr(batch, field.name) for field in fields(batch))
    return b"".join(value.contiguous().numpy().tobytes() for value in values)


def test_an_item_is_one_pair_and_batches_cover_all_in_order(people: PackedPeople) -> None:
    pairs = PairDataset(people, PAIRS)
    assert len(pairs) == 60
    one = pairs[7]
    assert len(one) == 1
    assert content(one) == content(people.pair_batch(PAIRS[7:8, 0], PAIRS[7:8, 1]))
    assert content(pairs[-1]) == content(pairs[59])
    with pytest.raises(IndexError):
        pairs[60]
    batches = list(pairs.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    pids = torch.cat([batch.pids for batch in batches])
    assert pids.tolist() == people.pids[PAIRS[:, 0]].tolist()


@pytest.mark.parametrize("pair", [(0, 12), (-1, 3)])
def test_pairs_of_unknown_people_are_refused(people: PackedPeople, pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="there are 12"):
        PairDataset(people, np.array([pair]))


def test_a_step_draws_and_flips_what_the_samplers_say(people: PackedPeople) -> None:
    steps = TrainingSteps(PairDataset(people, PAIRS), batch_size=8, seed=5, flip=0.5)
    batch = steps[17]
    drawn = PAIRS[draw_pairs(60, 8, 5, 17)]
    for place, flipped in enumerate(draw_flips(8, 5, 17)):
        for images, person in ((batch.source_image, drawn[place, 0]), (batch.target_image, drawn[place, 1])):
            expected = people.images[person][:, ::-1] if flipped else people.images[person]
            np.testing.assert_array_equal(images[place].permute(1, 2, 0).numpy(), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_the_number_of_workers(people: PackedPeople) -> None:
    steps = TrainingSteps(PairDataset(people, PAIRS), batch_size=4, seed=1, flip=0.5)
    expected = [content(steps[step]) for step in range(3, 13)]
    for workers in (0, 1, 2, 4):
        loader = DataLoader(steps, batch_size=None, sampler=range(3, 13), num_workers=workers)
        assert [content(batch) for batch in loader] == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_the_batch_of_one_process(people: PackedPeople, world_size: int) -> None:
    pairs = PairDataset(people, PAIRS)
    whole = TrainingSteps(pairs, 8, seed=2, flip=0.5)[6]
    parts = [TrainingSteps(pairs, 8, 2, 0.5, rank, world_size)[6] for rank in range(world_size)]
    for field in fields(whole):
        together = torch.cat([getattr(part, field.name) for part in parts])
        np.testing.assert_array_equal(together.numpy(), getattr(whole, field.name).numpy())
