"""Texture transport against literal geometry, and its promises: identity, shifts, mirrors, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reposer.models.texture_places import ARMS, GROUPS, MIRRORED, OWN, ROW
from reposer.models.texture_transport import transport
from reposer.structures import MISSING_LABEL, MoreSources, PairBatch

HEIGHT, WIDTH = 96, 48
# a person who faces the viewer: own right on the left of the picture; x, y
STANDING = {
    **{0: (24, 16), 1: (24, 26), 2: (17, 28), 3: (14, 40), 4: (13, 52), 5: (31, 28), 6: (34, 40)},
    **{7: (35, 52), 8: (20, 54), 9: (19, 70), 10: (19, 86), 11: (28, 54), 12: (29, 70), 13: (29, 86)},
}
UPPER, PANTS, FACE, HAIR, LEFT_ARM, RIGHT_ARM = 5, 9, 13, 2, 14, 15
FLIP_JOINTS = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]


def pose(joints: dict[int, tuple[float, float]]) -> Tensor:
    points = torch.full((18, 2), torch.nan)
    for joint, place in joints.items():
        points[joint] = torch.tensor(place, dtype=torch.float32)
    return points


def figure(joints: dict[int, tuple[float, float]]) -> Tensor:
    """A label map drawn about the joints: boxes for head, torso and legs, bare forearms as thick lines."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def line(start: int, end: int, radius: float, label: int) -> None:
        a, b = (np.array(joints[joint], float) for joint in (start, end))
        t = ((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / ((b - a) ** 2).sum()
        t = t.clip(0, 1)
        near = np.hypot(x - a[0] - t * (b - a)[0], y - a[1] - t * (b - a)[1]) <= radius
        labels[near] = label

    for start, end in ((8, 9), (9, 10), (11, 12), (12, 13)):
        line(start, end, 3.5, PANTS)
    (left, top), (right, bottom) = joints[2], joints[11]
    labels[int(top) - 3 : int(bottom) + 1, int(left) : int(right) + 4] = UPPER
    for start, end in ((2, 3), (5, 6)):
        line(start, end, 3, UPPER)
    line(3, 4, 2.5, RIGHT_ARM)
    line(6, 7, 2.5, LEFT_ARM)
    cx, cy = (int(v) for v in joints[0])
    labels[cy - 7 : cy, cx - 4 : cx + 5] = HAIR
    labels[cy : cy + 7, cx - 4 : cx + 5] = FACE
    return torch.from_numpy(labels)


def shifted(joints: dict[int, tuple[float, float]], dx: float, dy: float) -> dict[int, tuple[float, float]]:
    return {joint: (x + dx, y + dy) for joint, (x, y) in joints.items()}


def image(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed)).byte()


def batch(
    source: dict[int, tuple[float, float]],
    target: dict[int, tuple[float, float]],
    picture: Tensor | None = None,
) -> PairBatch:
    picture = image() if picture is None else picture
    maps = [figure(source)[None], figure(target)[None]]
    return PairBatch(
        source_image=picture[None],
        target_image=torch.zeros_like(picture)[None],
        source_parsing=maps[0],
        target_parsing=maps[1],
        source_mask=maps[0] > 0,
        target_mask=maps[1] > 0,
        source_keypoints=pose(source)[None],
        target_keypoints=pose(target)[None],
        pids=torch.tensor([1]),
    )


def stack(batches: Sequence[PairBatch]) -> PairBatch:
    names = [name for name in PairBatch.__slots__ if isinstance(getattr(batches[0], name), Tensor)]
    return PairBatch(**{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


def own_grid() -> Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y], -1).float()


ARMS_UP = STANDING | {3: (8, 30), 4: (4, 20), 6: (40, 30), 7: (44, 20)}


def test_the_same_pose_carries_every_pixel_to_its_own_place() -> None:
    pair = batch(STANDING, STANDING)
    found = transport(pair)
    person = pair.target_mask[0]
    apart = (found.coordinates[0] - own_grid()).norm(dim=-1)[person]
    assert apart.max() < 1e-4
    assert (found.validity[0, 0][person] == OWN).all()
    inner = torch.nn.functional.avg_pool2d(person[None, None].float(), 3, 1, 1)[0, 0] == 1
    carried = (found.image[0] + 1) * 127.5
    assert (carried - pair.source_image[0].float()).abs()[:, inner].max() < 0.1


def test_a_shifted_pose_carries_the_shifted_source() -> None:
    pair = batch(STANDING, shifted(STANDING, 3, -4))
    found = transport(pair)
    person = pair.target_mask[0]
    wanted = own_grid() - torch.tensor([3.0, -4.0])
    assert (found.coordinates[0] - wanted).norm(dim=-1)[person].max() < 1e-3
    assert (found.validity[0, 0][person] == OWN).all()


def test_a_limb_comes_from_the_sources_limb_by_the_closed_form() -> None:
    """Every forearm pixel by literal geometry: along by the lengths' ratio, across by the torsos'."""
    pair = batch(STANDING, ARMS_UP)
    found = transport(pair)
    labels, checked = pair.target_parsing[0].numpy(), 0
    for label, (start, end) in ((RIGHT_ARM, (3, 4)), (LEFT_ARM, (6, 7))):
        a, b = (np.array(ARMS_UP[joint], float) for joint in (start, end))
        c, d = (np.array(STANDING[joint], float) for joint in (start, end))
        along, other = (b - a) / np.linalg.norm(b - a), (d - c) / np.linalg.norm(d - c)
        turn = lambda v: np.array([-v[1], v[0]])  # noqa: E731
        for y, x in np.argwhere(labels == label):
            if found.validity[0, 0, y, x] != OWN:
                continue
            t, n = (np.array([x, y]) - a) @ along, (np.array([x, y]) - a) @ turn(along)
            if t < 2:  # the upper arm may be nearer
                continue
            wanted = c + other * t * np.linalg.norm(d - c) / np.linalg.norm(b - a) + turn(other) * n
            np.testing.assert_allclose(found.coordinates[0, y, x].numpy(), wanted, atol=1e-3)
            checked += 1
    assert checked > 40


def test_a_missing_forearm_is_borrowed_from_the_other_side_mirrored() -> None:
    without = {joint: place for joint, place in STANDING.items() if joint != 4}
    pair = batch(STANDING, ARMS_UP)
    pair = replace(pair, source_keypoints=pose(without)[None])
    found = transport(pair)
    arm = pair.target_parsing[0] == RIGHT_ARM
    values = found.validity[0, 0][arm]
    assert (values == MIRRORED).sum() > 15
    borrowed = found.coordinates[0][arm][values == MIRRORED]
    assert (borrowed[:, 0] > WIDTH / 2).all()  # the left forearm is on the right of the picture


def test_without_joints_garments_are_carried_row_by_row() -> None:
    pair = batch(STANDING, shifted(STANDING, 2, 3))
    nobody = torch.full((1, 18, 2), torch.nan)
    found = transport(replace(pair, source_keypoints=nobody, target_keypoints=nobody))
    person = pair.target_mask[0]
    wanted = own_grid() - torch.tensor([2.0, 3.0])
    pants = (pair.target_parsing[0] == PANTS) & person
    assert (found.coordinates[0] - wanted).norm(dim=-1)[pants].max() < 1e-3
    assert (found.validity[0, 0][pants] == OWN).all() or (found.validity[0, 0][pants] >= ROW).all()


def test_rows_are_quantiles_of_the_group() -> None:
    """A garment of 10 rows onto one of 20, both as wide: y by quantile, x by the place between the ends."""
    pair = batch(STANDING, STANDING)
    source, target = (torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8) for _ in range(2))
    source[0, 40:50, 10:30] = PANTS
    target[0, 20:40, 20:30] = PANTS
    nobody = torch.full((1, 18, 2), torch.nan)
    pair = replace(
        pair,
        **{"source_parsing": source, "target_parsing": target},
        **{"source_mask": source > 0, "target_mask": target > 0},
        **{"source_keypoints": nobody, "target_keypoints": nobody},
    )
    found = transport(pair).coordinates[0]
    for y in range(20, 40):
        for x in range(20, 30):
            wanted = (10 + (x - 20) * 19 / 9, 39.5 + (y - 20 + 0.5) / 2)
            np.testing.assert_allclose(found[y, x].numpy(), wanted, atol=1e-3)


def mirror(pair: PairBatch) -> PairBatch:
    def joints(points: Tensor) -> Tensor:
        points = points[:, FLIP_JOINTS].clone()
        points[..., 0] = WIDTH - 1 - points[..., 0]
        return points

    def labels(parsing: Tensor) -> Tensor:
        swap = torch.arange(256)
        swap[[14, 15, 16, 17, 18, 19]] = torch.tensor([15, 14, 17, 16, 19, 18])
        return swap[parsing.long()].byte().flip(-1)

    return replace(
        pair,
        **{f"{side}_image": getattr(pair, f"{side}_image").flip(-1) for side in ("source", "target")},
        **{f"{side}_parsing": labels(getattr(pair, f"{side}_parsing")) for side in ("source", "target")},
        **{f"{side}_mask": getattr(pair, f"{side}_mask").flip(-1) for side in ("source", "target")},
        **{f"{side}_keypoints": joints(getattr(pair, f"{side}_keypoints")) for side in ("source", "target")},
    )


def test_mirrored_people_give_the_mirrored_result() -> None:
    pair = batch(STANDING, shifted(ARMS_UP, 1.3, -2.2))
    found, turned = transport(pair), transport(mirror(pair))
    same = (found.image - turned.image.flip(-1)).abs().amax(1)[0] < 0.02
    assert same.float().mean() > 0.97  # places exactly between two pixels may round to either


def test_nothing_is_carried_off_the_persons() -> None:
    pair = batch(STANDING, shifted(ARMS_UP, 8, 12))  # partly out of the picture
    pair = replace(pair, source_mask=pair.source_mask & (torch.arange(HEIGHT)[:, None] < 60))
    found = transport(pair)
    valid = found.validity[0, 0] > 0
    assert valid.any()
    assert not (valid & ~pair.target_mask[0]).any()
    places = found.coordinates[0][valid].round().long()
    assert (places >= 0).all()
    assert (places[:, 0] < WIDTH).all()
    assert (places[:, 1] < HEIGHT).all()
    assert pair.source_mask[0][places[:, 1], places[:, 0]].all()
    same = pair.source_parsing[0][places[:, 1], places[:, 0]]
    arms = {RIGHT_ARM, LEFT_ARM}
    for source, target in zip(same.tolist(), pair.target_parsing[0][valid].tolist(), strict=True):
        assert source == target or {source, target} <= arms


def test_what_is_not_carried_has_its_groups_median_color() -> None:
    picture = torch.full((3, HEIGHT, WIDTH), 9, dtype=torch.uint8)
    labels = figure(STANDING)
    picture[:, labels == PANTS] = 200
    picture[:, labels == UPPER] = 50
    pair = batch(STANDING, STANDING, picture)
    dress = pair.target_parsing.clone()
    dress[dress == PANTS] = 12  # a skirt: a lower garment as well
    found = transport(replace(pair, target_parsing=dress, source_keypoints=torch.full((1, 18, 2), torch.nan)))
    colors = (found.colors[0] + 1) * 127.5
    assert (colors[:, dress[0] == 12] - 200).abs().max() < 1e-3
    assert (colors[:, dress[0] == UPPER] - 50).abs().max() < 1e-3


def test_a_back_is_trusted_less_than_a_front() -> None:
    back = STANDING | {2: (31, 28), 5: (17, 28), 8: (28, 54), 11: (20, 54)}
    pair = batch(STANDING, STANDING)
    found = transport(replace(pair, target_keypoints=pose(back)[None]))
    torso = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    torso[34:50, 22:27] = True
    assert (found.validity[0, 0][torso] <= MIRRORED).all()


def test_shoulders_that_coincide_keep_everything_in_bounds() -> None:
    thin = STANDING | {2: (24, 28), 5: (24, 28), 8: (24, 54), 11: (24, 54)}
    found = transport(replace(batch(STANDING, STANDING), target_keypoints=pose(thin)[None]))
    assert found.coordinates.isfinite().all()
    assert found.image.isfinite().all()
    valid = found.validity[0, 0] > 0
    step = (found.coordinates[0][1:] - found.coordinates[0][:-1]).norm(dim=-1)
    inside = valid[1:] & valid[:-1] & (batch(STANDING, STANDING).target_parsing[0][1:] == PANTS)
    assert step[inside].median() <= 3.0 + 1e-3


def odd() -> dict[str, Callable[[PairBatch], PairBatch]]:
    nothing = torch.full((1, 18, 2), torch.nan)
    single = nothing.clone()
    single[0, 3] = torch.tensor([10.0, 10.0])
    far = torch.full((1, 18, 2), 1e6)
    return {
        "no joints": lambda b: replace(b, source_keypoints=nothing, target_keypoints=nothing),
        "one joint": lambda b: replace(b, source_keypoints=single, target_keypoints=single),
        "joints far away": lambda b: replace(b, source_keypoints=far),
        "all joints in one place": lambda b: replace(b, target_keypoints=torch.zeros(1, 18, 2)),
        "empty target": lambda b: replace(
            b, target_mask=b.target_mask & False, target_parsing=b.target_parsing * 0
        ),
        "empty source": lambda b: replace(
            b, source_mask=b.source_mask & False, source_parsing=b.source_parsing * 0
        ),
        "no parsing maps": lambda b: replace(
            b,
            source_parsing=torch.full_like(b.source_parsing, MISSING_LABEL),
            target_parsing=torch.full_like(b.target_parsing, MISSING_LABEL),
        ),
        "no background": lambda b: replace(b, source_mask=b.source_mask | True),
        "larger target": lambda b: replace(b, target_keypoints=b.target_keypoints * 1.5),
    }


@pytest.mark.parametrize("name", odd())
def test_odd_people_give_finite_results(name: str) -> None:
    found = transport(odd()[name](batch(STANDING, ARMS_UP)))
    for tensor in (found.image, found.validity, found.colors, found.coordinates):
        assert tensor.isfinite().all()
    assert found.image.abs().max() <= 1
    assert found.validity.min() >= 0
    assert found.validity.max() <= 1


def test_a_batch_equals_its_rows() -> None:
    pairs = [
        batch(STANDING, ARMS_UP),
        odd()["no joints"](batch(ARMS_UP, STANDING, image(1))),
        odd()["empty source"](batch(STANDING, STANDING)),
        batch(shifted(STANDING, 4, 5), ARMS_UP, image(2)),
    ]
    together = transport(stack(pairs))
    for row, pair in enumerate(pairs):
        alone = transport(pair)
        for name in ("image", "validity", "colors", "coordinates"):
            torch.testing.assert_close(
                getattr(together, name)[row], getattr(alone, name)[0], atol=1e-4, rtol=0
            )


def views(*pairs: PairBatch, known: Sequence[bool] | None = None) -> PairBatch:
    """The first pair, the others' sources as its further ones."""
    more = MoreSources(
        image=torch.stack([p.source_image for p in pairs[1:]], 1),
        parsing=torch.stack([p.source_parsing for p in pairs[1:]], 1),
        mask=torch.stack([p.source_mask for p in pairs[1:]], 1),
        keypoints=torch.stack([p.source_keypoints for p in pairs[1:]], 1),
        known=torch.tensor([known or [True] * (len(pairs) - 1)]),
    )
    return replace(pairs[0], more_sources=more)


def test_a_further_source_supplies_what_the_first_lacks() -> None:
    full = batch(STANDING, ARMS_UP)
    covered = full.source_mask & ~((full.source_parsing == RIGHT_ARM) | (full.source_parsing == LEFT_ARM))
    first = replace(full, source_mask=covered, source_parsing=full.source_parsing * covered)
    found = transport(views(first, batch(shifted(STANDING, 2, 1), ARMS_UP, image(5))))
    arms = (full.target_parsing[0] == RIGHT_ARM) | (full.target_parsing[0] == LEFT_ARM)
    assert (transport(first).validity[0, 0][arms] == 0).all()
    assert (found.validity[0, 0][arms] > 0).float().mean() > 0.8
    assert (found.view[0][arms & (found.validity[0, 0] > 0)] == 1).all()


def test_equal_pixels_come_from_the_first_source_and_unknown_ones_are_ignored() -> None:
    one, other = batch(STANDING, STANDING), batch(STANDING, STANDING, image(3))
    found = transport(views(one, other))
    assert not found.view.any()
    torch.testing.assert_close(found.image, transport(one).image)
    first = replace(one, source_keypoints=torch.full((1, 18, 2), torch.nan))
    ignored = transport(views(first, other, known=[False]))
    torch.testing.assert_close(ignored.image, transport(first).image)


def test_the_nearer_orientation_counts_among_equals() -> None:
    narrow = STANDING | {2: (22, 28), 5: (26, 28)}  # nearly from the side
    one = batch(STANDING, STANDING)
    one = replace(one, source_keypoints=pose(narrow)[None])
    found = transport(views(one, batch(STANDING, STANDING, image(3))))
    torso = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    torso[34:50, 22:27] = True
    assert (found.view[0][torso] == 1).all()


def test_colors_of_further_sources_are_fitted_to_the_first() -> None:
    """A second camera with 0.8 of the light and an offset: its pixels come back in the first one's colors."""
    base = torch.zeros(3, HEIGHT, WIDTH)
    labels = figure(STANDING)
    for label, color in ((UPPER, 180.0), (PANTS, 60.0), (FACE, 140.0), (HAIR, 30.0), (RIGHT_ARM, 120.0)):
        base[:, labels == label] = color
    base[:, labels == LEFT_ARM] = 120.0
    dark = (base * 0.8 + 20).byte()
    pair, second = batch(STANDING, ARMS_UP, base.byte()), batch(STANDING, ARMS_UP, dark)
    covered = pair.source_mask & (pair.source_parsing != RIGHT_ARM) & (pair.source_parsing != LEFT_ARM)
    first = replace(pair, source_mask=covered, source_parsing=pair.source_parsing * covered)
    found = transport(views(first, second))
    arm = (found.view[0] == 1) & (found.validity[0, 0] > 0)
    assert arm.sum() > 30
    carried = ((found.image[0] + 1) * 127.5)[:, arm]
    assert (carried.median() - 120).abs() < 6  # its own color there is 116


def test_model_floats_and_bytes_give_the_same() -> None:
    pair = batch(STANDING, ARMS_UP)
    floats = replace(pair, source_image=pair.source_image.float() / 127.5 - 1)
    torch.testing.assert_close(transport(floats).image, transport(pair).image)


def test_autocast_changes_nothing() -> None:
    pair = batch(STANDING, ARMS_UP)
    with torch.autocast("cpu", torch.bfloat16):
        found = transport(pair)
    torch.testing.assert_close(found.image, transport(pair).image)
    assert found.image.dtype == torch.float32


def test_groups_name_every_index() -> None:
    assert len(GROUPS) == 9
    assert GROUPS[ARMS] == "arms"


def head(rows: tuple[int, int, int], columns: tuple[int, int]) -> dict[str, Tensor]:
    """A head alone, 160 x 80: hair from the first to the second row, then face to the third; no joints."""
    labels = torch.zeros(1, 160, 80, dtype=torch.uint8)
    labels[0, rows[0] : rows[1], slice(*columns)] = HAIR
    labels[0, rows[1] : rows[2], slice(*columns)] = FACE
    return {"parsing": labels, "mask": labels > 0, "keypoints": torch.full((1, 18, 2), torch.nan)}


def of_heads(source: dict[str, Tensor], target: dict[str, Tensor]) -> PairBatch:
    picture = torch.randint(0, 256, (1, 3, 160, 80), generator=torch.Generator().manual_seed(0)).byte()
    fields = {f"source_{name}": value for name, value in source.items()}
    fields |= {f"target_{name}": value for name, value in target.items()}
    return PairBatch(source_image=picture, target_image=picture, pids=torch.tensor([1]), **fields)


@pytest.mark.parametrize(
    ("columns", "scale"),
    [
        ((5, 75), 1.6),  # wide enough: as high as the target's
        ((15, 65), 50 / 36),  # too narrow: as wide as the target's
        ((30, 50), 1.2),  # far too narrow: never more than a third larger
    ],
)
def test_a_large_face_keeps_its_proportions(columns: tuple[int, int], scale: float) -> None:
    """One scale for x and y, the middles on each other; where it leads off the head nothing is carried."""
    found = transport(of_heads(head((20, 60, 140), columns), head((30, 55, 105), (20, 56))))
    middle = (columns[0] + columns[1] - 1) / 2
    person = torch.zeros(160, 80, dtype=torch.bool)
    person[30:105, 20:56] = True
    assert (found.validity[0, 0][~person] == 0).all()
    carried = 0
    for y in range(30, 105):
        for x in range(20, 56):
            wanted = (middle + (x - 37.5) * scale, 79.5 + (y - 67) * scale)
            on_head = columns[0] <= wanted[0] <= columns[1] - 1 and 20 <= wanted[1] <= 139
            if on_head:
                np.testing.assert_allclose(found.coordinates[0, y, x].numpy(), wanted, atol=1e-3)
                assert found.validity[0, 0, y, x] == OWN
                carried += 1
            elif not (columns[0] - 1 <= wanted[0] <= columns[1] and 19 <= wanted[1] <= 140):
                assert found.validity[0, 0, y, x] == 0
    assert carried > 1000


@pytest.mark.parametrize(("rows", "kept"), [((20, 40, 57), 160), ((10, 30, 75), 128)])
def test_a_small_head_and_any_of_128_rows_go_row_by_row(rows: tuple[int, int, int], kept: int) -> None:
    """The ends of its rows go to the ends of the source's."""
    source, target = (
        {name: value[:, :kept] if name != "keypoints" else value for name, value in one.items()}
        for one in (head(rows, (5, 75)), head((30, 55, 105), (20, 56)))
    )
    pair = of_heads(source, target)
    pair = replace(pair, source_image=pair.source_image[:, :, :kept])
    found = transport(pair)
    for y in range(30, 105):
        np.testing.assert_allclose(found.coordinates[0, y, [20, 55], 0].numpy(), [5, 74], atol=1e-3)


def test_the_back_of_a_large_head_takes_hair_alone() -> None:
    source, target = head((20, 60, 140), (5, 75)), head((30, 105, 105), (20, 56))
    found = transport(of_heads(source, target))
    valid = found.validity[0, 0] > 0
    assert valid.any()
    assert (found.coordinates[0][valid][:, 1] < 60).all()
    plain = (target["mask"][0] & ~valid).nonzero()
    assert len(plain) > 500
    torch.testing.assert_close(
        found.image[0][:, plain[:, 0], plain[:, 1]], found.colors[0][:, plain[:, 0], plain[:, 1]]
    )
