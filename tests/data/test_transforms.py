"""The flip of a pair batch: pixels, labels, masks and joints together, only where asked."""

from __future__ import annotations

import numpy as np
import torch

from reposer.data.keypoints import FLIP_JOINTS
from reposer.data.packed import PackedPeople
from reposer.data.transforms import flip_pairs
from reposer.structures import PairBatch


def equal(a: PairBatch, b: PairBatch) -> bool:
    return all(
        torch.equal(column.nan_to_num(-1), getattr(b, name).nan_to_num(-1))
        for name, column in a.tensors().items()
    )


def test_chosen_samples_are_mirrored_with_their_sides_swapped(people: PackedPeople) -> None:
    batch = people.pair_batch(np.array([0, 1, 2]), np.array([3, 4, 5]))
    flipped = flip_pairs(batch, np.array([True, False, True]))
    names = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    for side, first in (("source", 0), ("target", 3)):
        for place in range(3):
            image, parsing, mask, keypoints = (
                getattr(flipped, f"{side}_{field}")[place].numpy()
                for field in ("image", "parsing", "mask", "keypoints")
            )
            person = first + place
            if place == 1:
                np.testing.assert_array_equal(image.transpose(1, 2, 0), people.images[person])
                np.testing.assert_array_equal(keypoints, people.keypoints[person])
                continue
            np.testing.assert_array_equal(image.transpose(1, 2, 0), people.images[person][:, ::-1])
            np.testing.assert_array_equal(mask, people.mask[person][:, ::-1])
            for y in range(16):
                for x in range(8):
                    label = int(people.parsing[person][y, 7 - x])
                    assert parsing[y, x] == names.get(label, label)
            for joint in range(18):
                x, y = people.keypoints[person][FLIP_JOINTS[joint]]
                np.testing.assert_array_equal(keypoints[joint], [7 - x, y])


def test_twice_is_the_identity_and_the_input_is_untouched(people: PackedPeople) -> None:
    source, target = np.arange(6), np.arange(6, 12)
    batch, untouched = people.pair_batch(source, target), people.pair_batch(source, target)
    which = np.array([1, 0, 1, 1, 0, 0], np.bool_)
    once = flip_pairs(batch, torch.from_numpy(which))
    assert equal(batch, untouched)
    assert not equal(once, batch)
    assert equal(flip_pairs(once, which), batch)
    assert once.source_image.is_contiguous(memory_format=torch.channels_last)


def test_missing_maps_stay_missing(people: PackedPeople) -> None:
    batch = people.pair_batch(np.array([0]), np.array([1]))
    batch.source_parsing.fill_(255)
    assert (flip_pairs(batch, np.array([True])).source_parsing == 255).all()
