"""Fits against the published recipes written out pixel by pixel, and against other libraries."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from reposer.annotation.segmentation_model import SegmentationModel, into_model, onto_image, resample
from reposer.config import load_config
from reposer.errors import UserError

SIZES = [((128, 64), (473, 473)), ((40, 57), (33, 33)), ((7, 7), (16, 16)), ((90, 31), (48, 32))]


def image(size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.float64)


def schp_matrix(image_size, model_size):
    """SCHP's person box, center and scale, and its affine matrix from three points, image to input."""
    h, w = image_size
    box_w, box_h = float(w - 1), float(h - 1)
    aspect = model_size[1] / model_size[0]
    center = np.array([box_w * 0.5, box_h * 0.5])
    if box_w > aspect * box_h:
        box_h = box_w / aspect
    else:
        box_w = box_h * aspect
    src = np.array([center, center - np.array([0, 0.5 * box_w]), [0, 0]])
    middle = np.array([model_size[1] * 0.5, model_size[0] * 0.5])
    dst = np.array([middle, middle - np.array([0, 0.5 * model_size[1]]), [0, 0]])
    for points in (src, dst):  # the third corner: the second turned by a right angle around the first
        d = points[0] - points[1]
        points[2] = points[1] + np.array([-d[1], d[0]])
    return np.linalg.solve(np.c_[src, np.ones(3)], dst).T  # (2, 3)


def warp(pixels, matrix, size):
    """cv2.warpAffine(INTER_LINEAR, BORDER_CONSTANT 0) without its rounding to 1/32: a loop over pixels."""
    inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])
    out = np.zeros((*size, pixels.shape[2]))
    for v in range(size[0]):
        for u in range(size[1]):
            x, y, _ = inverse @ [u, v, 1]
            x0, y0 = math.floor(x), math.floor(y)
            for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    if 0 <= yy < pixels.shape[0] and 0 <= xx < pixels.shape[1]:
                        out[v, u] += wy * wx * pixels[yy, xx]
    return out


def planes(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(
    ("image_size", "model"), [((20, 11), (25, 25)), ((9, 17), (24, 24)), ((12, 5), (16, 8))]
)
def test_affine_is_schps(image_size, model):
    pixels = image(image_size)
    matrix = schp_matrix(image_size, model)
    ours = resample(planes(pixels), into_model("affine", image_size, model))
    assert torch.allclose(ours, planes(warp(pixels, matrix, model)), atol=1e-3)
    # back: align_corners up to the input, then the inverse warp of each plane
    scores = image((7, 7), 4, seed=1)
    up = F.interpolate(planes(scores), model, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    back = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])[:2]
    expected = warp(up.astype(np.float64), back, image_size)
    ours = resample(planes(scores), onto_image("affine", (7, 7), model, image_size, True))
    assert torch.allclose(ours, planes(expected), atol=1e-3)


def test_affine_leaves_black_beside_a_tall_image():
    white = torch.ones(1, 3, 128, 64)
    fitted = resample(white, into_model("affine", (128, 64), (473, 473)))[0, 0]
    covered = (fitted > 0.5).nonzero()
    assert (covered[:, 0].min(), covered[:, 0].max()) == (0, 472)
    left, right = int(covered[:, 1].min()), int(covered[:, 1].max())
    assert right - left == pytest.approx(64 / 127 * 473, abs=3)
    assert left + right == pytest.approx(473, abs=1)


@pytest.mark.parametrize(("size", "model"), SIZES)
def test_resize_is_torchs_and_nearly_pillows(size, model):
    pixels = image(size)
    ours = resample(planes(pixels), into_model("resize", size, model))
    theirs = F.interpolate(planes(pixels), model, mode="bilinear", antialias=True)
    assert torch.allclose(ours, theirs, atol=1e-2)
    pillow = Image.fromarray(pixels.astype(np.uint8)).resize(model[::-1], Image.Resampling.BILINEAR)
    assert np.abs(ours[0].permute(1, 2, 0).round().numpy() - np.asarray(pillow, np.float64)).max() <= 1


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("size", "model"), SIZES)
def test_scores_go_back_as_torch_interpolates(size, model, align):
    scores = planes(image((11, 9), 5))
    ours = resample(scores, onto_image("resize", (11, 9), model, size, align))
    assert torch.allclose(ours, F.interpolate(scores, size, mode="bilinear", align_corners=align), atol=1e-2)


@pytest.mark.parametrize(("size", "model"), SIZES)
def test_pad_keeps_the_aspect_and_comes_back(size, model):
    white = torch.ones(1, 1, *size)
    fitted = resample(white, into_model("pad", size, model))[0, 0]
    inside = (fitted - 1).abs() < 1e-5
    assert ((fitted.abs() < 1e-6) | inside).all()
    rows, columns = (int(inside.any(axis).sum()) for axis in (1, 0))
    assert rows / columns == pytest.approx(size[0] / size[1], rel=0.1)
    assert rows == model[0] or columns == model[1]
    # a ramp comes back as it was: no shift by half a pixel
    ramp = torch.linspace(0, 1, size[0])[:, None].expand(size)[None, None].contiguous()
    there = resample(ramp, into_model("pad", size, model))
    back = resample(there, onto_image("pad", model, model, size, False))
    away = 1 + size[0] // 8  # from the border, where interpolation flattens the ramp
    assert torch.allclose(back[..., away:-away, :], ramp[..., away:-away, :], atol=0.02)


def test_a_single_pixel_can_be_fitted():
    for fit in ("affine", "resize", "pad"):
        assert into_model(fit, (1, 1), (16, 16))[0].shape == (16, 1)
        assert onto_image(fit, (4, 4), (16, 16), (1, 1), True)[0].shape == (1, 4)


def test_nothing_is_done_to_an_image_that_fits():
    x = torch.rand(1, 3, 12, 8)
    assert resample(x, into_model("resize", (12, 8), (12, 8))) is x
    assert resample(x, onto_image("resize", (12, 8), (12, 8), (12, 8), False)) is x


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": size} for size in ([10**9, 8], [-1, 8], [8], "64", [math.inf, 8], None)),
        *({"mean": [value] * 3} for value in (math.nan, math.inf, "0", [0])),
        *({"std": [value] * 3} for value in (math.nan, math.inf, 0, -1, 1e-320)),
        *({"labels": labels} for labels in (["face"] * 300, [], ["x" * 10**6] * 3, [["face"]], "x" * 10**6)),
        *({"output": output} for output in (-1, 1.5, "1")),
        *({"license": text} for text in ("x" * 10**6, "a\x1b[31m", "a\nb", None)),
        *({"fit": "x" * 10**6}, {"layout": []}, {"a\nb": 1}, {"k" * 10**5: 1}, {"non_commercial": "yes"}),
    ],
    ids=lambda wrong: str(wrong)[:30].encode("unicode_escape").decode(),
)
def test_a_description_by_a_stranger_is_refused_in_short_lines(wrong, tmp_path):
    place = tmp_path / "x.json"
    place.write_text(json.dumps({"size": [64, 64], "labels": "lip20"} | wrong))
    with pytest.raises(UserError) as caught:
        load_config(SegmentationModel, place)
    lines = str(caught.value).split("\n")
    assert len(lines) <= 3  # one for each number
    for line in lines:
        assert line.isprintable()
        assert line.startswith(str(place))
        assert len(line) < 400 + len(str(place))
