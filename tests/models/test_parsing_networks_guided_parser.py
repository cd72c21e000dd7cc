"""The guided parser: what is missing is a plane of zeros, limbs are lines, any size goes."""

from __future__ import annotations

import pytest
import torch

from reposer.errors import UserError
from reposer.models.parsing_networks import LIMBS, GuidedParser, build_parser, limb_maps
from reposer.structures import MISSING_LABEL


@pytest.fixture(scope="module")
def network() -> GuidedParser:
    torch.manual_seed(0)
    return GuidedParser(widths=(4, 6, 8, 8), blocks=1).eval()


@torch.inference_mode()
def test_unknown_masks_and_joints_are_the_same_as_none(network):
    image = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    mask = torch.full((2, 32, 16), MISSING_LABEL, dtype=torch.uint8)
    joints = torch.full((2, 18, 2), torch.nan)
    bare = network(image)
    assert bare.shape == (2, 20, 32, 16)
    assert torch.equal(network(image, mask, joints), bare)
    mask[1, 4:20, 4:12] = 1
    joints[1, 2:5] = torch.tensor([[4.0, 8.0], [4.0, 14.0], [5.0, 20.0]])
    guided = network(image, mask, joints)
    assert torch.equal(guided[0], bare[0])
    assert not torch.equal(guided[1], bare[1])
    assert torch.isfinite(guided).all()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 16), (37, 21), (16, 16)])
def test_any_size(network, size):
    image = torch.rand(1, 3, *size) * 2 - 1
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    assert network(image, mask, torch.rand(1, 18, 2) * 16).shape == (1, 20, *size)


def test_limbs_by_hand():
    """The distance of every pixel to a segment, one by one."""
    points = torch.full((1, 18, 2), torch.nan)
    points[0, 2], points[0, 3] = torch.tensor([2.0, 1.0]), torch.tensor([6.0, 4.0])
    found = limb_maps(points, 7, 9, 1.5)
    assert found.shape == (1, len(LIMBS), 7, 9)
    which = LIMBS.index((2, 3))
    assert not found[0, [i for i in range(len(LIMBS)) if i != which]].any()
    a, b = points[0, 2].double(), points[0, 3].double()
    for y in range(7):
        for x in range(9):
            p = torch.tensor([x, y], dtype=torch.float64)
            t = float(((p - a) @ (b - a) / ((b - a) @ (b - a))).clamp(0, 1))
            far = (p - a - t * (b - a)).square().sum()
            assert float(found[0, which, y, x]) == pytest.approx(
                float(torch.exp(-far / 2 / 1.5**2)), abs=1e-5
            )


def test_priors_shift_scores_in_use_only():
    torch.manual_seed(1)
    plain = GuidedParser(widths=(4, 4, 4, 4), blocks=0)
    priors = tuple(0.5 if label == 7 else 1.0 for label in range(20))
    shifted = GuidedParser(widths=(4, 4, 4, 4), blocks=0, priors=priors)
    shifted.load_state_dict(plain.state_dict(), strict=True)  # they are no weights
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(plain.train()(image), shifted.train()(image))
    with torch.inference_mode():
        difference = (shifted.eval()(image) - plain.eval()(image)).mean((0, 2, 3))
    expected = torch.tensor(priors).log()
    assert torch.allclose(difference, expected, atol=1e-5)
    for wrong in ((1.0,) * 19, (0.0,) * 20):
        with pytest.raises(UserError, match="20 positive numbers"):
            GuidedParser(priors=wrong)


def test_by_name():
    assert isinstance(build_parser("guided_parser", widths=(4, 4, 4, 4)), GuidedParser)
    with pytest.raises(UserError, match="guided_parser"):
        build_parser("guided_passer")
    with pytest.raises(UserError, match="four positive numbers"):
        GuidedParser(widths=(4, 4, 4))
