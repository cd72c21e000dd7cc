"""The generator that mends carried texture: its gate by hand, what it reads, sizes, batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.texture_transport import transport, with_carried
from reposer.models.transport_unet import SourceAttention, TransportUNet, transport_unet_size
from reposer.structures import PairBatch

TINY: dict[str, Any] = {"widths": (4, 8, 12), "blocks": 1, "heads": 2, "padding": "zeros"}


@pytest.fixture
def batch(make_batch: Any) -> PairBatch:
    made: PairBatch = make_batch(2)
    return made


def seeded(**args: Any) -> TransportUNet:
    torch.manual_seed(0)
    return TransportUNet(**{**TINY, **args})


def test_the_image_is_carried_and_painted_as_the_gate_says(batch: PairBatch) -> None:
    net = seeded().eval()
    image, parts = net(batch, parts=True)
    assert image.shape == batch.source_image.shape
    carried = transport(batch).image
    torch.testing.assert_close(image, parts.gate * carried + (1 - parts.gate) * parts.painted)
    assert parts.gate.min() > 0
    assert parts.gate.max() < 1
    assert torch.equal(net(batch), image)


def test_without_a_gate_the_network_paints_everything(batch: PairBatch) -> None:
    image, parts = seeded(gate="none").eval()(batch, parts=True)
    assert torch.equal(image, parts.painted)
    assert not parts.gate.any()


def test_a_gate_that_starts_open_begins_with_the_carried_picture(batch: PairBatch) -> None:
    image = seeded(gate_bias=12.0).eval()(batch)
    assert (image - transport(batch).image).abs().max() < 1e-2


def test_the_target_image_is_never_read(batch: PairBatch) -> None:
    net = seeded().eval()
    assert torch.equal(net(replace(batch, target_image=255 - batch.target_image)), net(batch))


def test_what_was_carried_before_is_taken_as_it_is(batch: PairBatch) -> None:
    net = seeded().eval()
    assert torch.equal(net(with_carried(batch)), net(batch))
    other = with_carried(batch)
    assert other.carried is not None
    turned = replace(other, carried=replace(other.carried, image=-other.carried.image))
    assert not torch.equal(net(turned), net(batch))


def test_any_size(make_batch: Any) -> None:
    for height, width in ((30, 22), (64, 32), (17, 9)):
        assert seeded().eval()(make_batch(2, height, width)).shape == (2, 3, height, width)


def test_a_picture_does_not_depend_on_its_batch(make_batch: Any) -> None:
    net, batch = seeded().eval(), make_batch(4)
    whole = net(batch)
    for row in range(4):
        one = PairBatch(**{name: column[row : row + 1] for name, column in batch.tensors().items()})
        assert (net(one) - whole[row]).abs().max() < 2 / 255


def test_every_parameter_learns(batch: PairBatch) -> None:
    net = seeded().train()
    image, parts = net(batch, parts=True)
    (image.square().mean() + parts.gate.mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_attention_by_hand() -> None:
    """Two heads by literal loops over the places of the target."""
    torch.manual_seed(1)
    net = SourceAttention(4, 2)
    target, source = torch.randn(1, 4, 3, 2), torch.randn(1, 4, 3, 2)
    query, both = net.query(target).flatten(2)[0], net.key_value(source).flatten(2)[0]
    key, value = both[:4], both[4:]
    found = torch.zeros(4, 6)
    for head in range(2):
        rows = slice(2 * head, 2 * head + 2)
        for place in range(6):
            weights = (key[rows].T @ query[rows, place] / 2**0.5).softmax(0)
            found[rows, place] = value[rows] @ weights
    wanted = target + net.out(found.view(1, 4, 3, 2))
    torch.testing.assert_close(net(target, source), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "args", [{"widths": (4, 8)}, {"widths": (4, 9, 12)}, {"heads": 0}, {"gate": "half"}, {"blocks": -1}]
)
def test_impossible_arguments_are_named(args: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build_generator("transport_unet", **{**TINY, **args})


def test_sizes() -> None:
    small = TransportUNet(**transport_unet_size("small"))
    assert 1.4e6 < sum(p.numel() for p in small.parameters()) < 1.7e6
    with pytest.raises(UserError, match="small"):
        transport_unet_size("smal")


def test_a_discriminator_beside_the_carried_picture(batch: PairBatch) -> None:
    torch.manual_seed(0)
    judge = build_discriminator(pairing="carried", ndf=4, blocks=1).eval()
    image = torch.zeros_like(batch.source_image).float()
    logits = judge(batch.source_image, image, batch)
    assert torch.equal(judge(batch.source_image, image, with_carried(batch)), logits)
    moved = replace(batch, source_image=255 - batch.source_image)
    assert not torch.equal(judge(moved.source_image, image, moved), logits)
