"""VU-Net: published size, stick figure and crops against slow forms, codes and their prior, data's start."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from reposer.errors import UserError
from reposer.images import resize, to_float
from reposer.models.generators import build_generator
from reposer.models.vunet import (
    VUNet,
    _Conv,
    _Prior,
    _Residual,
    _Up,
    appearance_crops,
    stick_figure,
    vunet_size,
)

TINY = {"size": (32, 16), "width": 4, "cap": 8, "scales": 4}


def seeded(**args):
    torch.manual_seed(0)
    return VUNet(**{**TINY, **args})


def pose(size: int = 1, **joints: tuple[float, float]) -> torch.Tensor:
    """A person in 64 x 64 pixels, right side at the left; joints by number change it, None takes one away."""
    points = torch.tensor(
        [
            *((30, 8), (30, 16), (22, 16), (18, 26), (16, 36), (38, 16), (44, 25), (47, 34), (25, 36)),
            *((24, 48), (23, 60), (35, 36), (37, 48), (38, 59), (28, 6), (33, 6), (26, 7), (35, 7)),
        ],
        dtype=torch.float32,
    )
    for name, place in joints.items():
        points[int(name[1:])] = torch.tensor(place or (torch.nan, torch.nan))
    return points.expand(size, -1, -1).clone()


# ---- Sizes.


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def without_effect(channels: int) -> int:
    """What the authors' network has behind its last code, and nothing reads."""
    layers = (_Residual(channels, 0, channels), _Residual(channels, 0, 2 * channels), _Up(channels, channels))
    return sum(map(parameters, layers))


@pytest.mark.parametrize(
    ("size", "channels", "published"),
    [("paper", 128, 47_419_270), ("paper_256", 128, 47_272_966), ("small", 40, 4_529_894)],
)
def test_it_has_the_published_size_less_what_feeds_nothing(size, channels, published):
    with torch.device("meta"):
        net = VUNet(**vunet_size(size))
        assert parameters(net) + without_effect(channels) == published
        assert parameters(VUNet(**vunet_size(size), prior=False)) < parameters(net) / 3


def test_each_part_has_its_size_and_work(make_batch, operations):
    with torch.device("meta"):
        net = VUNet(**vunet_size("paper"))
    assert parameters(net.crop_encoder) == 2_217_600
    assert parameters(net.pose_encoder) == 2_253_216
    assert parameters(net.decoder) == 39_862_016
    assert parameters(net.decoder.priors) == 33_733_120
    assert parameters(net.to_image) == 870
    batch = make_batch(1, 128, 64).to("meta")
    assert operations(lambda: net.eval()(batch, parts=True)) == pytest.approx(5.10, rel=0.01)


# ---- What it sees.


def _slow_stick_figure(points: np.ndarray, side: int) -> np.ndarray:
    """Pixel by pixel, in the order of the authors' code."""
    half, out = max(3 * side // 128, 1) / 2, np.zeros((3, side, side))

    def known(*joints: int) -> bool:
        return not np.isnan(points[list(joints)]).any()

    def line(plane: int, a: np.ndarray, b: np.ndarray, value: int, half: float = half) -> None:
        for y in range(side):
            for x in range(side):
                p = np.array([x, y], float)
                length = ((b - a) ** 2).sum()
                t = np.clip(((p - a) @ (b - a)) / length, 0, 1) if length else 0.0
                if np.hypot(*(p - a - t * (b - a))) <= half + 1e-9:
                    out[plane, y, x] = value

    if known(11, 5, 2, 8):
        corners = points[[11, 5, 2, 8]]
        for y in range(side):
            for x in range(side):
                crossings = 0
                for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
                    if (ay > y) != (by > y):
                        crossings += x < ax + (y - ay) / (by - ay) * (bx - ax)
                out[2, y, x] = 255 * (crossings % 2)
        for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
            line(2, a, b, 255, 0.5)  # pixels on the border are inside
    for plane, chain in ((0, (10, 9, 8, 2, 3, 4)), (1, (13, 12, 11, 5, 6, 7))):
        for a, b in pairwise(chain):
            if known(a, b):
                line(plane, points[a], points[b], 255)
    if known(2, 5, 0):
        for plane in (0, 1):
            line(plane, (points[2] + points[5]) / 2, points[0], 127)
    if known(0, 14, 15):
        line(0, points[0], points[14], 255)
        line(1, points[0], points[15], 255)
    return out / 127.5 - 1


@pytest.mark.parametrize(
    "person",
    [
        *(pose(_9=None), pose(_2=None), pose(_2=(45.0, 18.0))),
        *(pytest.param(p, marks=pytest.mark.slow) for p in (pose(), pose(_15=None), pose(_0=None))),
    ],
)
def test_the_stick_figure_is_that_of_loops(person):
    person = (person + 0.3) / 2
    found = stick_figure(person, 32, 32)[0].numpy()
    np.testing.assert_allclose(found, _slow_stick_figure(person[0].numpy().astype(float), 32), atol=1e-6)
    assert set(np.unique(np.round((found + 1) * 127.5))) <= {0, 127, 255}


def _slow_crop(image: np.ndarray, corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """The homography by its eight linear equations, each pixel by four neighbors."""
    rows, right = [], []
    for (u, v), (x, y) in zip(((0, 0), (0, height), (width, height), (width, 0)), corners, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        right += [x, y]
    matrix = np.append(np.linalg.solve(np.array(rows), np.array(right)), 1).reshape(3, 3)
    out = np.zeros((3, height, width))
    for v in range(height):
        for u in range(width):
            x, y, w = matrix @ (u, v, 1)
            x, y = np.clip(x / w, 0, image.shape[2] - 1), np.clip(y / w, 0, image.shape[1] - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, image.shape[2] - 1), min(y0 + 1, image.shape[1] - 1)
            top = image[:, y0, x0] * (x0 + 1 - x) + image[:, y0, x1] * (x - x0)
            low = image[:, y1, x0] * (x0 + 1 - x) + image[:, y1, x1] * (x - x0)
            out[:, v, u] = top * (y0 + 1 - y) + low * (y - y0)
    return out


def test_crops_are_homographies_of_their_corners():
    """Torso (all four corners free), head, left upper arm, and a thigh without a knee."""
    person = pose(_12=None)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = appearance_crops(image, person, 16, 12)[0].numpy().reshape(8, 3, 16, 12)
    p = person[0].numpy().astype(float)
    turned = np.array([[0, -1], [1, 0]], float)  # (x, y) -> (-y, x)
    middle = (p[2] + p[5]) / 2
    top = middle + 2 * (p[0] - middle)
    side = turned @ (middle - top) / 2
    corners = {
        0: [p[5], p[11], p[8], p[2]],
        1: [top - side, middle - side, middle + side, top + side],
    }
    ground = np.array([p[11][0], 63.0])
    for number, a, b in ((2, p[5], p[6]), (5, p[3], p[4]), (6, p[11], ground), (7, p[8], p[9])):
        side = turned @ (b - a) / 4
        corners[number] = [a + side, a - side, b - side, b + side]
    for number, four in corners.items():
        wanted = _slow_crop(image[0].numpy(), np.array(four), 16, 12)
        np.testing.assert_allclose(found[number], wanted, atol=1e-4, err_msg=str(number))


def test_a_head_without_a_nose_stands_above_the_shoulders():
    image = torch.arange(64.0).view(1, 1, 64, 1).expand(1, 3, 64, 64)  # each row its own value
    for person in (pose(_0=None), pose(_0=None, _2=(38.0, 16.0), _5=(22.0, 16.0))):
        head = appearance_crops(image, person, 16, 16)[0, 3]
        assert head[0, 0] == pytest.approx(0.0)  # 16 pixels wide, so 16 high
        assert head.diff(dim=0).min() > 0.9


def test_a_moved_person_has_the_same_crops_and_missing_ones_are_grey():
    image = torch.rand(1, 3, 64, 64)
    crops = appearance_crops(image, pose(), 16, 16)
    moved = appearance_crops(image.roll((2, -3), (2, 3)), pose() + torch.tensor([-3.0, 2.0]), 16, 16)
    limbs = slice(6, 18)  # away from the border
    torch.testing.assert_close(crops[:, limbs], moved[:, limbs], atol=1e-5, rtol=0)
    lacking = appearance_crops(image, pose(_2=None, _11=None, _6=None), 16, 16).view(8, -1)
    assert lacking.any(1).tolist() == [False, False, False, False, False, True, False, True]


@pytest.mark.parametrize(
    "joints",
    [
        {"_2": (38.0, 16.0)},  # shoulders in one place
        {"_2": (30.0, 16.0), "_5": (30.0, 16.0), "_8": (30.0, 36.0), "_11": (30.0, 36.0)},  # a line
        {"_2": (45.0, 18.0)},  # shoulders and hips disagree
        {"_3": (22.0, 16.0)},  # an arm of no length
        {"_4": (1e30, -1e30)},
    ],
)
def test_collapsed_people_give_finite_crops(joints):
    crops = appearance_crops(torch.rand(1, 3, 64, 64), pose(**joints), 16, 16)
    assert crops.isfinite().all()
    assert crops.abs().max() <= 1


# ---- Codes.


def test_the_prior_tells_a_group_of_places_by_the_groups_before_it():
    torch.manual_seed(0)
    prior = _Prior(3, 0.0)
    x, code = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4, requires_grad=True)
    groups = torch.nn.functional.pixel_unshuffle(prior(x, code), 2).unflatten(1, (3, 4))
    for i in range(4):
        (gradient,) = torch.autograd.grad(groups[:, :, i].sum(), code, retain_graph=True, allow_unused=True)
        told = torch.nn.functional.pixel_unshuffle(gradient, 2).unflatten(1, (3, 4)).abs().sum((0, 1, 3, 4))
        assert (told > 0).tolist() == [j < i for j in range(4)]


def test_the_divergence_is_half_the_squared_distance_of_the_means(make_batch):
    net, batch = seeded().eval(), make_batch(3)
    for prior in net.decoder.priors:
        for mean in prior.means:
            torch.nn.init.zeros_(mean.gain)  # the prior's mean is 0
    codes = []
    for layer in net.posterior.means:
        layer.register_forward_hook(lambda _module, _inputs, out: codes.append(out))
    _, parts = net(batch, parts=True)
    wanted = sum(code.square().sum((1, 2, 3)) / 2 for code in codes).mean()
    torch.testing.assert_close(parts.terms["kl"], wanted)
    assert [tuple(code.shape[2:]) for code in codes] == [(4, 2), (8, 4)]


def test_it_is_trained_on_the_target_and_used_on_the_source(make_batch):
    net, batch = seeded(dropout=0.0), make_batch(2)
    image, _ = net(replace(batch, target_image=to_float(batch.target_image)), parts=True)
    torch.manual_seed(1)
    first = net(batch)
    torch.manual_seed(1)
    unseen = {"source_image": 255 - batch.source_image, "source_keypoints": batch.source_keypoints.flip(1)}
    assert torch.equal(net(replace(batch, **unseen)), first)
    assert image.abs().max() > 1  # not clipped
    net.eval()
    used = net(batch)
    assert torch.equal(net(replace(batch, target_image=255 - batch.target_image)), used)
    assert torch.equal(net(batch, parts=True)[0], used)
    for field in net.needs:
        changed = replace(batch, **{field: getattr(batch, field).flip(1)})
        assert not torch.equal(net(changed), used), field
    assert used.abs().max() <= 1


def test_the_start_is_fitted_to_data_layer_by_layer(make_batch):
    net, batch = seeded(), make_batch(16)
    torch.manual_seed(3)
    net.begin(batch)
    outputs = {}
    for name, layer in net.named_modules():
        if isinstance(layer, _Conv):
            layer.register_forward_hook(lambda _m, _i, out, name=name: outputs.setdefault(name, out.detach()))
    torch.manual_seed(3)  # the same noise
    assert net.training
    net(batch, parts=True)
    assert len(outputs) == sum(isinstance(layer, _Conv) for layer in net.modules())
    for name, out in outputs.items():
        variance, mean = torch.var_mean(out, (0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3, name
        assert (variance - 1).abs().max() < 1e-2, name


def test_a_layer_is_its_direction_times_its_gain():
    torch.manual_seed(0)
    layer = _Conv(2, 3, 3)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(1, 2, 5, 4)
    unit = torch.stack([w / w.square().sum().sqrt() for w in layer.weight])
    wanted = torch.nn.functional.conv2d(x, unit, padding=1) * layer.gain.view(3, 1, 1)
    torch.testing.assert_close(layer(x), wanted)


def test_every_parameter_learns(make_batch):
    net, batch = seeded(), make_batch(4)
    image, parts = net(batch, parts=True)
    (image.square().mean() + parts.terms["kl"]).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_pictures_of_another_size_are_squeezed_and_stretched_back(make_batch):
    net = seeded(size=(32, 32)).eval()
    torch.nn.init.constant_(net.to_image.gain, 0.003)  # nothing to clip
    batch = make_batch(2, 32, 16)
    scale = torch.tensor([2.0, 1.0])
    wide = replace(
        batch,
        source_image=resize(to_float(batch.source_image), (32, 32)),
        source_keypoints=(batch.source_keypoints + 0.5) * scale - 0.5,
        target_keypoints=(batch.target_keypoints + 0.5) * scale - 0.5,
    )
    assert 0.01 < net(wide).abs().max() < 1
    torch.testing.assert_close(net(batch), resize(net(wide), (32, 16)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"size": (128, 60)}, "size"),
        ({"scales": 2}, "scales"),
        ({"crop_halvings": 0}, "crop_halvings"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("vunet", **args)
