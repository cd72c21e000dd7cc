"""Randomized people: the same seed, the same sample; map, mask and joints stay those of the same shapes."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.data.parsing import LIP_LABELS
from reposer.data.randomization import Guided, Person, RandomizeConfig, randomize
from reposer.structures import MISSING_LABEL

HEIGHT, WIDTH = 64, 32
STILL = RandomizeConfig(
    **dict.fromkeys(("zoom", "stretch", "turn", "shift", "recolor", "texture", "scene", "company"), 0),
    **dict.fromkeys(("occluder", "blur", "noise", "jpeg", "light"), 0),
    **dict.fromkeys(("no_mask", "mask_noise", "no_joints", "missing_joints", "joint_noise", "swapped"), 0),
)
LEFT_ARM, RIGHT_ARM = LIP_LABELS.index("left-arm"), LIP_LABELS.index("right-arm")


def person(color: int = 200) -> Person:
    """A box with an arm at either side, on gray; the wrists are the middles of the arms."""
    parsing = np.zeros((HEIGHT, WIDTH), np.uint8)
    parsing[16:48, 10:22] = 5
    parsing[20:40, 6:10], parsing[20:40, 22:26] = RIGHT_ARM, LEFT_ARM
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[parsing > 0] = (color, 40, 40)
    joints = np.full((18, 2), np.nan, np.float32)
    joints[4], joints[7] = (7.5, 29.5), (23.5, 29.5)
    return Person(image, parsing, joints)


def sample(config: RandomizeConfig, *key: int) -> Guided:
    return randomize(person(), person(120), config, np.random.default_rng(key))


def test_a_sample_is_a_function_of_its_generator():
    config = RandomizeConfig()
    first, again, other = sample(config, 1, 2), sample(config, 1, 2), sample(config, 1, 3)
    for name in ("image", "parsing", "mask", "keypoints"):
        assert np.array_equal(getattr(first, name), getattr(again, name), equal_nan=True), name
    assert not np.array_equal(first.image, other.image)


def test_with_every_strength_at_zero_only_the_mirror_is_left():
    mirrored = set()
    for key in range(8):
        one = sample(STILL, key)
        parsing = person().parsing  # mirrored, its arms change sides twice: the map is symmetric
        assert (one.parsing == parsing).mean() > 0.99  # corners are rounded
        assert np.array_equal(one.mask == 1, one.parsing > 0)
        inside = np.abs(one.image.astype(int) - person().image).max(2)
        assert inside[30:34, 12:20].max() <= 1
        column = [float(one.keypoints[j, 0]) for j in (4, 7)]
        assert column == pytest.approx([7.5, 23.5], abs=1e-4)
        mirrored.add(tuple(column))
    assert len(mirrored) == 1


def test_joints_stay_on_their_limbs():
    config = STILL.changed(zoom=0.2, stretch=0.4, turn=6.0, shift=0.05)
    for key in range(20):
        one = sample(config, key)
        for joint, label in ((4, RIGHT_ARM), (7, LEFT_ARM)):
            x, y = one.keypoints[joint]
            if np.isnan(x):
                continue
            assert one.parsing[round(float(y)), round(float(x))] == label


def test_the_map_keeps_to_the_mask_where_there_is_one():
    config = RandomizeConfig(no_mask=0.5)
    known = 0
    for key in range(40):
        one = sample(config, key)
        assert set(np.unique(one.mask)) <= {0, 1, MISSING_LABEL}
        if one.mask[0, 0] == MISSING_LABEL:
            assert (one.mask == MISSING_LABEL).all()
        elif one.parsing.any():
            known += 1
            assert np.array_equal(one.parsing > 0, one.mask == 1)
        assert set(np.unique(one.parsing)) <= {0, 5, LEFT_ARM, RIGHT_ARM}
    assert 8 < known < 32


def test_masks_and_joints_are_missing_and_swapped_as_often_as_asked():
    samples = [sample(STILL.changed(no_mask=0.25, no_joints=0.25, swapped=0.25), key) for key in range(200)]
    missing = np.mean([one.mask[0, 0] == MISSING_LABEL for one in samples])
    none = np.mean([np.isnan(one.keypoints).all() for one in samples])
    known = [one for one in samples if not np.isnan(one.keypoints).all()]
    swapped = np.mean([one.keypoints[4, 0] > 16 for one in known])
    assert (missing, none, swapped) == pytest.approx((0.25, 0.25, 0.25), abs=0.1)
    noisy = [sample(STILL.changed(joint_noise=3.0), key).keypoints[4] for key in range(60)]
    spread = np.nanstd(np.stack(noisy), axis=0)
    assert (spread > 0.3).all()
    assert (spread < 3).all()


def test_shapes_survive_other_colors():
    """Where nothing but colors changes, the map does not, and the border between garment and scene stays."""
    config = STILL.changed(recolor=1.0, texture=1.0, scene=1.0, light=0.3, jpeg=1.0, noise=5.0)
    one, still = sample(config, 5), sample(STILL, 5)
    assert np.array_equal(one.parsing, still.parsing)
    assert np.abs(one.image.astype(int) - still.image).mean() > 10
