"""Regions of the body: membership by hand, limb distances against a literal loop."""

from __future__ import annotations

import math

import pytest
import torch

from reposer.data.parsing import LIP_LABELS, MERGED8_LABELS, convert
from reposer.errors import UserError
from reposer.models.rsa_fusion import LIMBS, MERGE_TABLE, REGIONS, limb_prior, membership, regions_of


def test_sides_are_the_persons_own_and_garments_belong_to_several_regions():
    names = {name: {LIP_LABELS[i] for i in region.labels} for name, region in REGIONS.items()}
    assert {"left-arm", "glove"} <= {n.lower() for n in names["left_arm"]}
    assert "right-arm" not in {n.lower() for n in names["left_arm"]}
    assert {"right-leg", "right-shoe"} <= {n.lower() for n in names["right_leg"]}
    upper = LIP_LABELS.index(next(n for n in LIP_LABELS if "upper" in n.lower()))
    assert sum(upper in region.labels for region in REGIONS.values()) == 3


def test_partitions_have_the_right_members():
    joints, labels = membership("six")
    assert joints.shape == (6, 18)
    assert labels.shape == (6, 20)
    assert joints.any(0).all()
    merged_joints, merged = membership("merged_sides")
    assert merged.shape == (4, 20)
    assert torch.equal(merged_joints[2], joints[2] | joints[3])
    every, one_each = membership("labels")
    assert torch.equal(one_each, torch.eye(20, dtype=torch.bool))
    left_arm = 14
    assert torch.equal(every[left_arm], joints[3])
    assert membership("six", "merged8")[1].shape == (6, 8)
    with pytest.raises(UserError, match="partition"):
        membership("seven")


def test_the_merge_table_is_that_of_the_parsing_module():
    lip = torch.arange(20, dtype=torch.uint8).view(4, 5).numpy()
    assert convert(lip, "lip20", "merged8").ravel().tolist() == list(MERGE_TABLE)
    assert max(MERGE_TABLE) == len(MERGED8_LABELS) - 1


def test_the_limb_prior_is_the_distance_to_the_nearest_limb():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 18, 2, generator=generator) * torch.tensor([15.0, 23.0])
    points[0, [3, 12]] = torch.nan
    joints, _ = membership()
    found = limb_prior(points, [region.limbs for region in regions_of()], 24, 16)
    for region, row in enumerate(joints):
        segments = [(a, b) for a, b in LIMBS if row[a] and row[b]] + [(j, j) for j in range(18) if row[j]]
        seen = [
            (points[0, a].tolist(), points[0, b].tolist())
            for a, b in segments
            if not points[0, [a, b]].isnan().any()
        ]
        for x, y in ((0, 0), (7, 11), (15, 23)):
            nearest = min(_to_segment((x, y), a, b) for a, b in seen)
            expected = math.exp(-(nearest**2) / (2 * (0.05 * 24) ** 2))
            assert found[0, region, y, x].item() == pytest.approx(expected, abs=1e-5)


def _to_segment(p, a, b):
    """Distance by walking along the segment in 2,000 steps."""
    return min(
        math.dist(p, (a[0] + t / 2000 * (b[0] - a[0]), a[1] + t / 2000 * (b[1] - a[1]))) for t in range(2001)
    )


def test_a_region_without_a_joint_has_no_prior():
    points = torch.full((1, 18, 2), torch.nan)
    points[0, 0] = torch.tensor([3.0, 4.0])
    prior = limb_prior(points, [region.limbs for region in regions_of()], 8, 6)
    assert (prior[0, 1:] == 1).all()
    assert prior[0, 0, 4, 3] == 1
    assert prior[0, 0, 0, 0] < 1


def test_a_region_of_one_label_has_all_joints_of_its_regions_and_the_background_none():
    every = regions_of("labels")
    assert every[0].joints == every[0].limbs == ()
    assert (limb_prior(torch.zeros(1, 18, 2), [every[0].limbs], 4, 3) == 1).all()
    assert every[14].limbs == ((5, 6), (6, 7))  # the left arm
