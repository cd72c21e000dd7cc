"""RSA-GAN's modules on planted data: fusion by region, correspondence by pose, gated attention."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from reposer.errors import UserError
from reposer.models import rsa_attention as rsa_correspondence
from reposer.models.pose_maps import PoseMaps
from reposer.models.rsa_attention import GatedCrossAttention, StyleInjection, warp
from reposer.models.rsa_fusion import RegionalFusion

LEFT_ARM_LABEL, LEFT_ARM = 14, 3


def _fusion_inputs(size=(32, 16)):
    generator = torch.Generator().manual_seed(0)
    pose = PoseMaps(*(torch.rand(2, 18, side, generator=generator) for side in size))
    parsing = F.one_hot(torch.randint(0, 20, (2, *size), generator=generator), 20).permute(0, 3, 1, 2).float()
    return pose, parsing, torch.ones(2, 6, *size)


@pytest.mark.parametrize("fusion", ["gate", "film", "concat"])
def test_a_wrong_label_changes_only_the_regions_that_it_belongs_to(fusion):
    torch.manual_seed(0)
    module = RegionalFusion(32, 6, fusion=fusion).eval()
    pose, parsing, prior = _fusion_inputs()
    wrong = parsing.clone()
    wrong[:, LEFT_ARM_LABEL] = 1 - wrong[:, LEFT_ARM_LABEL]
    with torch.inference_mode():
        before, after = module.regional(pose, parsing, prior), module.regional(pose, wrong, prior)
    changed = (before != after).flatten(2).any(2).all(0)
    assert changed.tolist() == [region == LEFT_ARM for region in range(6)]


def test_the_gate_takes_the_labels_where_it_is_open_and_the_pose_where_it_is_shut():
    torch.manual_seed(0)
    module = RegionalFusion(32, 6).eval()
    pose, parsing, prior = _fusion_inputs()
    other = parsing.roll(3, 1)
    torch.nn.init.zeros_(module.mix.weight)
    with torch.inference_mode():
        for bias, depends in ((-50.0, False), (50.0, True)):
            torch.nn.init.constant_(module.mix.bias, bias)
            same = torch.allclose(module.regional(pose, parsing, prior), module.regional(pose, other, prior))
            assert same == (not depends)


def test_a_region_without_a_joint_gets_its_learned_vector():
    torch.manual_seed(0)
    module = RegionalFusion(32, 6).eval()
    torch.nn.init.zeros_(module.mix.weight)
    torch.nn.init.constant_(module.mix.bias, -50.0)  # the pose alone
    torch.nn.init.normal_(module.unseen)
    pose, parsing, prior = _fusion_inputs()
    pose.along_x[:, [5, 6, 7]] = 0.0
    with torch.inference_mode():
        regions = module.regional(pose, parsing, prior)
    expected = module.unseen[LEFT_ARM].view(1, 6, 1, 1).expand(2, 6, 8, 4)
    torch.testing.assert_close(regions[:, LEFT_ARM], expected)
    assert not torch.allclose(regions[:, 0], module.unseen[0].view(1, 6, 1, 1).expand(2, 6, 8, 4))


def _features(size=(6, 5), channels=16, seed=0):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def test_equal_poses_warp_nothing_and_a_mirrored_pose_mirrors():
    values = _features(channels=3, seed=1)
    pose = _features()
    torch.testing.assert_close(warp(pose, pose, values, 0.01), values, atol=1e-3, rtol=0)
    torch.testing.assert_close(warp(pose.flip(3), pose, values, 0.01), values.flip(3), atol=1e-3, rtol=0)
    module = StyleInjection(64, 64)
    module.align_keys()
    image, pose = _features(channels=3, seed=2), _features(channels=64)
    _, warped = module(_features(channels=64, seed=3), pose, pose.flip(3), None, image)
    torch.testing.assert_close(warped, image.flip(3), atol=1e-3, rtol=0)


def test_the_warp_is_the_softmax_of_its_definition():
    query, key, values = _features((2, 3), 4), _features((2, 3), 4, 1), _features((2, 3), 2, 2)
    found = warp(query, key, values, 0.5)
    for b in range(2):
        q, k, v = (x[b].flatten(1).T.double() for x in (query, key, values))
        for i in range(6):
            a = q[i] - q[i].mean()
            scores = [float(a @ (c - c.mean()) / (a.norm() * (c - c.mean()).norm())) / 0.5 for c in k]
            weights = [math.exp(s) for s in scores]
            expected = sum(w * row for w, row in zip(weights, v, strict=True)) / sum(weights)
            torch.testing.assert_close(found[b].flatten(1)[:, i].double(), expected, atol=1e-5, rtol=0)


def test_the_correlation_in_parts_gives_the_same_values_and_gradients(monkeypatch):
    def run():
        inputs = [_features(seed=s).requires_grad_() for s in range(3)]
        output = warp(*inputs, 0.1)
        output.square().sum().backward()
        return [output.detach(), *(x.grad for x in inputs)]

    whole = run()
    monkeypatch.setattr(rsa_correspondence, "_CHUNK_ELEMENTS", 2 * 30 * 7)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_flat_poses_give_finite_values():
    flat = torch.zeros(1, 16, 6, 5)
    values = _features(channels=3, seed=1)[:1]
    torch.testing.assert_close(
        warp(flat, flat, values, 0.01), values.mean((2, 3), keepdim=True).expand_as(values)
    )
    with pytest.raises(UserError, match="temperature"):
        StyleInjection(16, temperature=0)


def test_without_correspondence_the_style_stays_where_it_is():
    torch.manual_seed(0)
    module = StyleInjection(16, 8, warp=False).eval()
    appearance, pose = _features(seed=3), _features()
    coarse, warped = module(appearance, _features(seed=8), pose, None, _features(channels=3, seed=2))
    assert warped is None
    scale, shift = module.style(appearance).chunk(2, 1)
    places = pose.flatten(2)
    normed = (places - places.mean(2, keepdim=True)) / (
        places.var(2, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    expected = module.refine(normed.view_as(pose) * (1 + scale) + shift)
    torch.testing.assert_close(coarse, expected, atol=1e-5, rtol=1e-4)


def _attending(attention="spatial", **options):
    """A block whose query and keys compare equal with equal and whose values and output pass through."""
    block = GatedCrossAttention(32, 32, attention, "none", **options).eval()
    center = torch.zeros(32, 1, 3, 3)
    center[:, 0, 1, 1] = 1.0
    eye = torch.eye(32)[:, :, None, None]
    with torch.no_grad():
        block.query[0].weight.copy_(30 * eye)
        block.query[1].weight.copy_(center)
        for memory in (block.from_style, block.from_semantics):
            if memory is not None:
                memory[0].weight.copy_(torch.cat((eye, eye)))
                memory[1].weight.copy_(torch.cat((center, center)))
        block.out.weight.copy_(eye)
        block.feed_forward.down.weight.zero_()
    return block


def test_what_arrives_is_the_style_or_semantics_of_the_place_that_answers():
    block = _attending()
    x = _features((4, 3), 32)
    style, semantics = _features((4, 3), 32, 5), _features((4, 3), 32, 6)
    style[:, :, 0, 0] = x[:, :, 2, 1]  # the answer to place (2, 1) lies at (0, 0) of the style
    semantics[:, :, 3, 2] = x[:, :, 1, 1]  # that to (1, 1) at (3, 2) of the semantics
    with torch.inference_mode():
        arrived = block(x, style, semantics) - x
        moved = block(x, style.roll(1, 2), semantics.roll(1, 3)) - x
    wanted = block.norm_x(x)
    for place in ((2, 1), (1, 1)):
        torch.testing.assert_close(arrived[:, :, *place], wanted[:, :, *place], atol=1e-2, rtol=0)
    torch.testing.assert_close(arrived, moved, atol=1e-4, rtol=0)  # wherever the answer lies


def test_spatial_attention_is_the_formula():
    torch.manual_seed(0)
    block = GatedCrossAttention(64, 32).eval()
    x, style, semantics = (_features((3, 2), 64, s) for s in range(3))
    with torch.inference_mode():
        q = block.query(block.norm_x(x)).flatten(2)
        pairs = [
            block.from_style(block.norm_style(style)),
            block.from_semantics(block.norm_semantics(semantics)),
        ]
        k, v = torch.cat([p.flatten(2) for p in pairs], 2).chunk(2, 1)
        heads = []
        for h in range(2):
            rows = slice(32 * h, 32 * h + 32)
            weights = torch.softmax(q[:, rows].transpose(1, 2) @ k[:, rows] / 32**0.5, 2)
            heads.append(v[:, rows] @ weights.transpose(1, 2))
        attended = torch.cat(heads, 1).view_as(x)
        y = x + block.out(F.gelu(block.gate(block.norm_x(x))) * attended)
        up = block.feed_forward.up(block.norm_y(y))
        expected = y + block.feed_forward.down(F.gelu(up[:, : up.shape[1] // 2]) * up[:, up.shape[1] // 2 :])
        torch.testing.assert_close(block(x, style, semantics), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gate", ["both", "attn", "ffn", "none"])
def test_a_shut_gate_lets_nothing_through(gate):
    torch.manual_seed(0)
    block = GatedCrossAttention(32, 32, gate=gate).eval()
    assert (block.gate is not None) == (gate in ("both", "attn"))
    if block.gate is None:
        return
    torch.nn.init.zeros_(block.gate[1].weight)  # gelu(0) = 0
    torch.nn.init.zeros_(block.feed_forward.down.weight)
    x, style, semantics = (_features((3, 2), 32, s) for s in range(3))
    torch.testing.assert_close(block(x, style, semantics), x)
