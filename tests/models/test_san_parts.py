"""The Semantic Attention Block by hand: codes of two channels, branches of one known convolution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reposer.models.layers import init_weights, onehot_parsing
from reposer.models.san import SemanticAttentionBlock

APPEARANCE, SEMANTIC = (1.0, -2.0), (0.5, 3.0)
# 2x2 channel matrix of the mask branch; 3x3 kernels carry it at their center
MASK = (
    (1.0, 0.5),
    (-1.0, 0.25),
)
MASK_BIAS = (0.1, -0.2)
GATED = ((2.0, 0.0), (1.0, -1.0))  # of the appearance branch, where there is one
UPDATE = ((1.0, 0.0, 0.5, 0.0), (0.0, -1.0, 0.0, 2.0))  # [F_t ; F_s] -> F_t


def times(matrix: tuple[tuple[float, ...], ...], x: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(m * v for m, v in zip(row, x, strict=True)) for row in matrix)


def set_center(stack: nn.Module, matrix: tuple[tuple[float, ...], ...], bias: tuple[float, ...]) -> None:
    (layer,) = stack.children()
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 1, 1] = torch.tensor(matrix)
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor(bias))


def run(**args: Any) -> tuple[list[float], list[float]]:
    """Both codes after one block on maps of 2x2 equal pixels; checks that the pixels stay equal."""
    block = SemanticAttentionBlock(2, n_convs=1, **args)
    rows = 1 if args.get("mask_channels") == 1 else 2
    set_center(block.mask_conv, MASK[:rows], MASK_BIAS[:rows])
    set_center(block.update_conv, UPDATE, (0.0, 0.0))
    if block.appearance_conv is not None:
        set_center(block.appearance_conv, GATED, (0.0, 0.0))

    def spread(x: tuple[float, ...]) -> Tensor:
        return torch.tensor(x).view(1, 2, 1, 1).expand(1, 2, 2, 2)

    codes = block(spread(APPEARANCE), spread(SEMANTIC))
    for code in codes:
        torch.testing.assert_close(code, code[:, :, :1, :1].expand_as(code))
    return tuple(code[0, :, 0, 0].tolist() for code in codes)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("args", "gated"),
    [
        ({}, SEMANTIC),  # eq. 2 as printed: F_s = A * F_t + F_s
        ({"gate_source": "appearance"}, APPEARANCE),
        ({"gate_source": "appearance_conv"}, times(GATED, APPEARANCE)),
        ({"mask_channels": 1}, SEMANTIC),
        ({"share_conv": True}, SEMANTIC),
    ],
)
def test_one_block_by_hand(args: dict[str, Any], gated: tuple[float, ...]) -> None:
    logits = [m + b for m, b in zip(times(MASK, SEMANTIC), MASK_BIAS, strict=True)]
    used = [logits[0]] * 2 if args.get("mask_channels") == 1 else logits
    attention = [1 / (1 + math.exp(-x)) for x in used]
    appearance = [a * g + s for a, g, s in zip(attention, gated, APPEARANCE, strict=True)]
    carried = logits if args.get("share_conv") else SEMANTIC
    semantic = times(UPDATE, (*carried, *appearance))  # eq. 3 takes the new appearance code
    assert run(**args) == (pytest.approx(appearance, rel=1e-5), pytest.approx(semantic, rel=1e-5))


def test_a_block_leaves_its_inputs_alone() -> None:
    block = SemanticAttentionBlock(4).apply(init_weights)
    codes = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    before = [code.clone() for code in codes]
    block(*codes)
    assert all(torch.equal(code, kept) for code, kept in zip(codes, before, strict=True))


def test_branches_have_three_convolutions_two_norms_two_activations_and_end_bare() -> None:
    block = SemanticAttentionBlock(4)
    for branch in (block.mask_conv, block.update_conv):
        leaves = [type(layer) for layer in branch.modules() if not list(layer.children())]
        assert leaves == [*(nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU) * 2, nn.Conv2d]


def test_onehot_of_labels_outside_the_schema_is_zero() -> None:
    onehot = onehot_parsing(torch.tensor([[[0, 6, 7, 255]]], dtype=torch.uint8), labels=7)
    assert onehot.shape == (1, 7, 1, 4)
    assert onehot.nonzero().tolist() == [[0, 0, 0, 0], [0, 6, 0, 1]]
