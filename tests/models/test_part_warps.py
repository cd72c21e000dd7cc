"""Part warps against rectangles, least squares and loops; their promises: identity, shifts, mirrors."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest
import torch
from torch import Tensor

from reposer.models.part_warps import BODY, HEAD, PARTS, PartWarps, deformable_skip, part_warps, torso_lengths

HEIGHT, WIDTH = 96, 48
FLIP_JOINTS = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
FLIP_PARTS = [0, 1, 3, 2, 5, 4, 7, 6, 9, 8]
LIMBS = {2: (8, 9), 3: (11, 12), 4: (9, 10), 5: (12, 13), 6: (2, 3), 7: (5, 6), 8: (3, 4), 9: (6, 7)}
INC = {2: 0.1, 3: 0.1, 4: 0.5, 5: 0.5, 6: 0.1, 7: 0.1, 8: 0.5, 9: 0.5}
STANDING = torch.tensor(
    [
        *([24, 12], [24, 22], [17, 24], [14, 36], [13, 48], [31, 24], [34, 36], [35, 48], [20, 50]),
        *([19, 66], [19, 82], [28, 50], [29, 66], [29, 82], [22, 10], [26, 10], [20, 12], [28, 12]),
    ],
    dtype=torch.float32,
)


def poses(count: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """(count, 18, 2) people who stand about the same."""
    rng = torch.Generator().manual_seed(seed)
    return STANDING + torch.randn(count, 18, 2, generator=rng) * spread


def warps(source: Tensor, target: Tensor) -> PartWarps:
    return part_warps(source, target, HEIGHT, WIDTH)


def rectangle(a: np.ndarray, b: np.ndarray, inc: float, half: float) -> np.ndarray:
    """Corners (4, 2) as the paper draws them: the first joint moved back, then the second moved on."""
    a = a + 0.1 * (a - b)
    b = b + inc * (b - a)
    u = (b - a) / np.linalg.norm(b - a)
    v = np.array([-u[1], u[0]]) * half
    return np.stack([a + v, b + v, b - v, a - v])


def inside(x: float, y: float, corners: np.ndarray) -> bool:
    """Whether a point lies in a convex polygon: on the same side of all its edges."""
    sides = []
    for first, second in zip(corners, np.roll(corners, -1, 0), strict=True):
        (dx, dy), (px, py) = second - first, (x, y) - first
        sides.append(dx * py - dy * px)
    return all(s >= 0 for s in sides) or all(s <= 0 for s in sides)


def length(joints: np.ndarray) -> float:
    right, left = joints[8] - joints[2], joints[11] - joints[5]
    return float(np.sqrt((right @ right + left @ left) / 2))


def test_a_limb_is_the_least_squares_map_of_rectangle_onto_rectangle() -> None:
    source, target = poses(3, 1), poses(3, 2)
    found = warps(source, target)
    for row in range(3):
        s, t = source[row].double().numpy(), target[row].double().numpy()
        for part, (a, b) in LIMBS.items():
            inc = 0.1 if INC[part] == 0.1 else 0.3
            theirs = rectangle(s[a], s[b], inc, 0.2 * length(s))
            ours = rectangle(t[a], t[b], inc, 0.2 * length(t))
            fit = np.linalg.lstsq(np.c_[ours, np.ones(4)], theirs, rcond=None)[0].T  # (2, 3)
            np.testing.assert_allclose(found.matrix[row, part], fit[:, :2], atol=1e-5)
            np.testing.assert_allclose(found.offset[row, part], fit[:, 2], atol=1e-4)
            for joint in (a, b):
                at = found.matrix[row, part] @ target[row, joint] + found.offset[row, part]
                torch.testing.assert_close(at, source[row, joint], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("part", "joints"), [(BODY, [2, 5, 8, 11]), (HEAD, [0, 14, 15, 16, 17, 2, 5])])
def test_body_and_head_are_least_squares_drawn_to_the_best_similarity(part, joints) -> None:
    source, target = poses(3, 1), poses(3, 2)
    source[0, 15] = target[1, 16] = torch.nan
    found = warps(source, target)
    for row in range(3):
        s, t = source[row, joints].double().numpy(), target[row, joints].double().numpy()
        there = ~np.isnan(s + t).any(1)
        s, t = s[there], t[there]
        st = length(target[row].double().numpy())
        ms, mt = s.mean(0), t.mean(0)
        zs, zt = ((p - m) @ [1, 1j] for p, m in ((s, ms), (t, mt)))
        m = (zt.conj() @ zs) / (zt.conj() @ zt).real
        similar = np.array([[m.real, -m.imag], [m.imag, m.real]])
        pull = np.sqrt(0.02) * st * np.eye(2)  # two more points, which go where the similarity takes them
        rows, wanted = np.r_[t - mt, pull], np.r_[s - ms, pull @ similar.T]
        fit = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
        np.testing.assert_allclose(found.matrix[row, part], fit, atol=1e-5)
        np.testing.assert_allclose(found.offset[row, part], ms - fit @ mt, atol=1e-4)


def test_the_masks_are_the_paper_s_polygons() -> None:
    target = poses(1, 3)
    found = warps(poses(1, 4), target).mask[0]
    t = target[0].double().numpy()
    assert found[BODY].all()
    center, half = t[[0, 14, 15, 16, 17]].mean(0), 0.4 * length(t)
    for y in range(0, HEIGHT, 3):
        for x in range(0, WIDTH, 2):
            assert bool(found[HEAD, y, x]) == (max(abs(x - center[0]), abs(y - center[1])) <= half)
            for part, (a, b) in LIMBS.items():
                corners = rectangle(t[a], t[b], INC[part], 0.2 * length(t))
                assert bool(found[part, y, x]) == inside(x, y, corners), (PARTS[part], x, y)


def slow_skip(maps: np.ndarray, found: PartWarps, level: int, nearest: bool) -> np.ndarray:
    """Pixel by pixel, part by part; a small pixel's center lies in the middle of what it stands for."""
    batch, channels, height, width = maps.shape
    out = np.zeros_like(maps)
    step = 2**level

    def at(row: int, y: int, x: int) -> np.ndarray:
        return maps[row, :, y, x] if 0 <= y < height and 0 <= x < width else np.zeros(channels)

    for row in range(batch):
        for y in range(height):
            for x in range(width):
                for part in range(len(PARTS)):
                    if not found.mask[row, part, y * step, x * step]:
                        continue
                    full = np.array([(x + 0.5) * step - 0.5, (y + 0.5) * step - 0.5])
                    place = found.matrix[row, part].numpy() @ full + found.offset[row, part].numpy()
                    px, py = (place + 0.5) / step - 0.5
                    if nearest:
                        value = at(row, round(py), round(px))
                    else:
                        left, top = floor(px), floor(py)
                        r, d = px - left, py - top
                        value = (1 - d) * ((1 - r) * at(row, top, left) + r * at(row, top, left + 1))
                        value = value + d * (
                            (1 - r) * at(row, top + 1, left) + r * at(row, top + 1, left + 1)
                        )
                    out[row, :, y, x] = np.maximum(out[row, :, y, x], value)
    return out


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("level", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_skip_is_the_largest_of_all_parts(level, nearest) -> None:
    source, target = poses(2, 5), poses(2, 6)
    source[0, [3, 10]] = target[1, 5] = torch.nan
    found = warps(source, target)
    maps = torch.randn(2, 3, HEIGHT >> level, WIDTH >> level, generator=torch.Generator().manual_seed(0))
    got = deformable_skip(maps, found, level, nearest)
    np.testing.assert_allclose(got, slow_skip(maps.double().numpy(), found, level, nearest), atol=2e-4)


def test_the_gradient_goes_to_what_was_largest() -> None:
    found = warps(poses(1, 5), poses(1, 6))
    maps = torch.randn(1, 2, 24, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, 24, 12)
    (deformable_skip(maps, found, 2) * weight).sum().backward()
    step = torch.zeros_like(maps)
    step[0, 1, 9, 5] = 1e-2
    with torch.no_grad():
        ends = [(deformable_skip(maps + sign * step, found, 2) * weight).sum() for sign in (1, -1)]
    assert maps.grad is not None
    torch.testing.assert_close(
        maps.grad[0, 1, 9, 5], (ends[0] - ends[1]).double() / 2e-2, atol=2e-3, rtol=2e-2
    )


def test_equal_poses_give_the_identity() -> None:
    pose = poses(4, 7, spread=6)
    pose[1, 2] = pose[2, [8, 11]] = pose[3, 5] = torch.nan
    found = warps(pose, pose)
    x = torch.rand(4, 10, 2, generator=torch.Generator().manual_seed(0)) * WIDTH
    moved = (found.matrix @ x[..., None])[..., 0] + found.offset - x
    assert moved.abs()[found.known].max() < 1e-5
    assert found.known[0].all()


def test_a_pose_shifted_by_whole_pixels_gives_the_shifted_source() -> None:
    pose = poses(1, 8)
    found = warps(pose, pose + torch.tensor([5.0, -3.0]))
    maps = torch.rand(1, 2, HEIGHT, WIDTH)
    got = deformable_skip(maps, found, 0)
    torch.testing.assert_close(got[..., : HEIGHT - 3, 5:], maps[..., 3:, : WIDTH - 5], atol=1e-5, rtol=0)


def test_mirrored_people_give_the_mirrored_result() -> None:
    source, target = poses(2, 9), poses(2, 10)
    source[0, 4] = source[1, 5] = target[1, [9, 15]] = torch.nan
    maps = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))

    def mirrored(pose: Tensor) -> Tensor:
        return torch.stack([WIDTH - 1 - pose[..., 0], pose[..., 1]], -1)[:, FLIP_JOINTS]

    plain, turned = warps(source, target), warps(mirrored(source), mirrored(target))
    assert torch.equal(turned.known, plain.known[:, FLIP_PARTS])
    assert torch.equal(turned.mask, plain.mask[:, FLIP_PARTS].flip(-1))
    got = deformable_skip(maps.flip(-1), turned, 0).flip(-1)
    torch.testing.assert_close(got, deformable_skip(maps, plain, 0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("missing", [*range(18), (2, 5), (8, 11), (1, 2, 5, 8, 11), tuple(range(18))])
def test_people_without_some_joints_are_finite(missing) -> None:
    chosen = list(missing) if isinstance(missing, tuple) else [missing]
    for side in range(2):
        pair = [poses(1, 11), poses(1, 12)]
        pair[side][:, chosen] = torch.nan
        found = warps(*pair)
        for tensor in (found.matrix, found.offset):
            assert tensor.isfinite().all()
        assert deformable_skip(torch.randn(1, 2, HEIGHT, WIDTH), found, 0).isfinite().all()
        few = len(set(chosen) & {1, 2, 5, 8, 11}) > 3
        assert found.known[0, BODY] == (not few)


def test_a_missing_joint_means_what_it_should() -> None:
    source, target = poses(1, 13), poses(1, 14)
    target[0, 3] = torch.nan  # no right arm to paint
    source[0, 13] = torch.nan  # the left calf comes from the right one
    found = warps(source, target)
    assert not found.known[0, [6, 8]].any()
    assert not found.mask[0, [6, 8]].any()
    assert found.known[0, 5]
    assert found.borrowed[0].tolist() == [part == 5 for part in range(10)]
    for ours, theirs in ((12, 9), (13, 10)):
        at = found.matrix[0, 5] @ target[0, ours] + found.offset[0, 5]
        torch.testing.assert_close(at, source[0, theirs], atol=1e-4, rtol=0)
    target[0, [0, 14, 15, 16, 17]] = torch.nan
    assert not warps(source, target).mask[0, HEAD].any()


def test_a_torso_seen_from_the_side_does_not_explode() -> None:
    source, target = poses(1, 15, 0.0), poses(1, 16, 0.0)
    target[0, [2, 5], 0] = 24.0
    target[0, [8, 11], 0] = 24.001
    source[0, [3, 4], 1] += 60  # an upper arm of five times the length
    found = warps(source, target)
    values = torch.linalg.svdvals(found.matrix[0])
    ratio = torso_lengths(source, HEIGHT) / torso_lengths(target, HEIGHT)
    assert values.max() <= 3 * ratio + 1e-4
    assert values.min() >= ratio / 3 - 1e-4


@pytest.mark.parametrize("level", [1, 2])
def test_doubled_coordinates_at_the_next_level_are_the_same_maps(level) -> None:
    source, target = poses(2, 17), poses(2, 18)
    plain = warps(source, target)
    step = 2**level
    large = part_warps((source + 0.5) * step - 0.5, (target + 0.5) * step - 0.5, HEIGHT * step, WIDTH * step)
    torch.testing.assert_close(large.matrix, plain.matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(large.offset_at(level), plain.offset, atol=1e-4, rtol=1e-5)


def test_a_batch_equals_its_rows() -> None:
    source, target = poses(3, 19), poses(3, 20)
    source[1, 3] = target[2, 8] = torch.nan
    maps = torch.randn(3, 4, HEIGHT, WIDTH)
    whole = deformable_skip(maps, warps(source, target), 0)
    for row in range(3):
        own = slice(row, row + 1)
        one = deformable_skip(maps[own], warps(source[own], target[own]), 0)
        torch.testing.assert_close(one, whole[own], atol=1e-5, rtol=0)
