"""Labels of packed people: contiguous, of known people only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reposer.data.packed import PackedPeople
from reposer.data.preparing.packing import pack
from reposer.data.synthetic.mixed import ReidDataset
from reposer.errors import UserError


@pytest.fixture
def people(make_people, tmp_path) -> PackedPeople:
    """12 images: people 2 to 5, three images each; then one of them junk, one a distractor, one a query."""
    records = make_people(12)
    records[0] = replace(records[0], pid=-1)
    records[4] = replace(records[4], pid=0)
    records[8] = replace(records[8], split="query")
    records = [replace(r, split="train") if r.split != "query" else r for r in records]
    pack(records, tmp_path / "root", tmp_path / "packed", (16, 8))
    return PackedPeople.open(tmp_path / "packed")


def test_classes_are_the_sorted_pids_of_known_people(people):
    data = ReidDataset(people)
    assert data.pids.tolist() == [2, 3, 4, 5]
    assert data.indices.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_a_batch_holds_the_images_with_their_labels(people):
    data = ReidDataset(people)
    batch = data.batch(np.array([8, 0]))
    assert batch.label.tolist() == [3, 0]
    assert batch.weight.tolist() == [1, 1]
    assert batch.camid.tolist() == people.camids[[11, 1]].tolist()
    assert np.array_equal(batch.image.permute(0, 2, 3, 1).numpy(), people.images[[11, 1]])
    assert data.names(np.array([8, 0])) == (people.names[11], people.names[1])
    assert data[-1].label.tolist() == [3]
    assert len(list(data)) == len(data) == 9


def test_one_person_is_nothing_to_tell_apart(people):
    with pytest.raises(UserError, match="1 people in query"):
        ReidDataset(people, ("query",))
