"""The flow of the part warps: where a pixel comes from, which count as visible, people who lack something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reposer.models.part_warps import BACKGROUND, HIDDEN, VISIBLE, keypoint_flow
from reposer.models.texture_places import Bodies
from reposer.structures import MISSING_LABEL, PairBatch

HEIGHT, WIDTH = 96, 48
STANDING = torch.tensor(
    [
        *([24, 12], [24, 22], [17, 24], [12, 36], [8, 48], [31, 24], [36, 36], [40, 48], [20, 50]),
        *([19, 66], [19, 82], [28, 50], [29, 66], [29, 82], [22, 10], [26, 10], [20, 12], [28, 12]),
    ],
    dtype=torch.float32,
)


def labels(joints: Tensor, width: int = WIDTH) -> Tensor:
    """Head, torso, bare arms, trousers about the joints."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], -1).float()
    out = torch.zeros(HEIGHT, width, dtype=torch.uint8)
    for start, end, radius, label in (
        *((8, 9, 3.5, 9), (9, 10, 3.5, 9), (11, 12, 3.5, 9), (12, 13, 3.5, 9)),
        *((2, 3, 2.5, 15), (3, 4, 2.5, 15), (5, 6, 2.5, 14), (6, 7, 2.5, 14)),
    ):
        a, b = joints[start], joints[end]
        t = ((place - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        out[(place - a - t[..., None] * (b - a)).norm(dim=-1) <= radius] = label
    left, right = joints[[2, 5, 8, 11], 0].min() - 1, joints[[2, 5, 8, 11], 0].max() + 1
    top, bottom = joints[[2, 5], 1].min() - 2, joints[[8, 11], 1].max()
    out[
        (place[..., 0] >= left)
        & (place[..., 0] <= right)
        & (place[..., 1] >= top)
        & (place[..., 1] <= bottom)
    ] = 5
    out[(place - joints[0]).abs().amax(-1) <= 6] = 13
    return out


def pair(source: Tensor, target: Tensor) -> PairBatch:
    maps = [labels(joints)[None] for joints in (source, target)]
    image = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    return PairBatch(
        source_image=image,
        target_image=image,
        source_parsing=maps[0],
        target_parsing=maps[1],
        source_mask=maps[0] > 0,
        target_mask=maps[1] > 0,
        source_keypoints=source[None],
        target_keypoints=target[None],
        pids=torch.tensor([1]),
    )


def test_the_same_pose_does_not_flow() -> None:
    batch = pair(STANDING, STANDING)
    found = keypoint_flow(batch)
    assert found.flow.abs().max() < 0.51  # rows lie between their pixels
    person = batch.target_mask
    assert (found.visibility[~person] == BACKGROUND).all()
    hidden = (found.visibility == HIDDEN) & person
    assert hidden.sum() < 0.15 * person.sum()  # where a forearm's rectangle lies over torso or thigh


def test_a_shifted_pose_flows_back() -> None:
    batch = pair(STANDING, STANDING + torch.tensor([3.0, -2.0]))
    flow = keypoint_flow(batch).flow
    wanted = torch.tensor([-3.0, 2.0])[None, :, None, None] * batch.target_mask
    assert (flow - wanted).abs().max() < 0.51


def test_an_arm_flows_along_its_bones() -> None:
    target = STANDING.clone()
    target[3], target[4] = torch.tensor([6.0, 16.0]), torch.tensor([4.0, 4.0])  # the right arm raised
    batch = pair(STANDING, target)
    found = keypoint_flow(batch)
    for share in (0.3, 0.6, 0.9):
        x, y = (target[3] + share * (target[4] - target[3])).round().int().tolist()
        wanted = STANDING[3] + share * (STANDING[4] - STANDING[3])
        place = torch.tensor([x, y]) + found.flow[0, :, y, x]
        assert (place - wanted).norm() < 1.5
        assert found.visibility[0, y, x] == VISIBLE


def test_nothing_is_visible_off_frame_person_and_group() -> None:
    batch = pair(STANDING + torch.tensor([-14.0, 0.0]), STANDING)
    batch = replace(batch, source_mask=batch.source_mask & (torch.arange(HEIGHT) < 70)[:, None])
    found = keypoint_flow(batch)
    source, target = (
        Bodies.of(
            getattr(batch, f"{s}_parsing"), getattr(batch, f"{s}_mask"), getattr(batch, f"{s}_keypoints")
        )
        for s in ("source", "target")
    )
    visible = (found.visibility[0] == VISIBLE).nonzero().tolist()
    assert visible
    for y, x in visible:
        u, v = (torch.tensor([x, y]) + found.flow[0, :, y, x]).round().int().tolist()
        assert 0 <= u < WIDTH
        assert 0 <= v < 70
        assert source.group[0, v, u] == target.group[0, y, x] != 0


def test_a_chest_is_no_back_and_a_borrowed_limb_is_hidden() -> None:
    turned = STANDING.clone()
    turned[[2, 5]], turned[[8, 11]] = STANDING[[5, 2]], STANDING[[11, 8]]
    found = keypoint_flow(pair(turned, STANDING))
    assert found.visibility[0, 36, 24] == HIDDEN
    source = STANDING.clone()
    source[4] = torch.nan
    batch = replace(pair(STANDING, STANDING), source_keypoints=source[None])
    x, y = ((STANDING[3] + STANDING[4]) / 2).int().tolist()
    assert keypoint_flow(pair(STANDING, STANDING)).visibility[0, y, x] == VISIBLE
    assert keypoint_flow(batch).visibility[0, y, x] == HIDDEN


@pytest.mark.parametrize("what", ["keypoints", "parsing", "mask", "all"])
def test_people_who_lack_something_are_finite(what: str) -> None:
    batch = pair(STANDING, STANDING)
    lacking = {
        "keypoints": {f"{s}_keypoints": torch.full((1, 18, 2), torch.nan) for s in ("source", "target")},
        "parsing": {
            f"{s}_parsing": torch.full_like(batch.source_parsing, MISSING_LABEL) for s in ("source", "target")
        },
        "mask": {f"{s}_mask": torch.zeros_like(batch.source_mask) for s in ("source", "target")},
    }
    for key, fields in lacking.items():
        if what in (key, "all"):
            batch = replace(batch, **fields)
    found = keypoint_flow(batch)
    assert found.flow.isfinite().all()
    assert ((found.visibility == BACKGROUND) == ~batch.target_mask).all()


def test_a_batch_equals_its_rows() -> None:
    others = [STANDING, STANDING + torch.tensor([3.0, 1.0]), STANDING.roll(1, 0)]
    pairs = [pair(a, b) for a, b in zip(others, others[::-1], strict=True)]
    whole = PairBatch(**{name: torch.cat([p.tensors()[name] for p in pairs]) for name in pairs[0].tensors()})
    found = keypoint_flow(whole)
    for row, one in enumerate(pairs):
        alone = keypoint_flow(one)
        torch.testing.assert_close(found.flow[row : row + 1], alone.flow, atol=1e-4, rtol=0)
        assert (found.visibility[row] != alone.visibility[0]).sum() <= 2  # a place on the border of a pixel
