"""Both objectives against the formulas of the paper, written with exp and log."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reposer.losses.image_gan import (
    GanNetworks,
    ImagePool,
    closed_gate_loss,
    discriminator_loss,
    generator_loss,
    identity_distance,
)
from reposer.losses.perceptual import PerceptualNetwork
from reposer.structures import Carried, MoreSources, PairBatch


class _MeanDifference(nn.Module):
    """One logit an image: a weight times the mean difference of the image from its source."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        return self.weight * (image - source_image).mean((1, 2, 3))


def _batch() -> PairBatch:
    shape = (2, 3, 4, 4)
    labels, mask, joints = (
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        torch.ones(2, 4, 4, dtype=torch.bool),
        torch.zeros(2, 18, 2),
    )
    return PairBatch(
        source_image=torch.zeros(shape),
        target_image=torch.full(shape, 0.5),
        source_parsing=labels,
        target_parsing=labels,
        source_mask=mask,
        target_mask=mask,
        source_keypoints=joints,
        target_keypoints=joints,
        pids=torch.tensor([1, 2]),
    )


def _random_vgg() -> PerceptualNetwork:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (64, 3, 3, 3), "0.bias": (64,), "2.weight": (64, 64, 3, 3), "2.bias": (64,)}
    return PerceptualNetwork(
        "vgg19", ("relu1_2",), {k: torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()}
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_discriminators_loss_is_half_the_cross_entropy_of_eq_4():
    nets = GanNetworks(nn.Identity(), _MeanDifference(), None)
    generated = torch.full((2, 3, 4, 4), -0.25, requires_grad=True)
    loss, parts = discriminator_loss(nets, _batch(), generated, ImagePool(0), torch.Generator())
    expected = 0.5 * (-math.log(_sigmoid(2 * 0.5)) - math.log(1 - _sigmoid(2 * -0.25)))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts["discriminator/real_logit"].item() == pytest.approx(1.0)
    assert parts["discriminator/fake_logit"].item() == pytest.approx(-0.5)
    loss.backward()
    assert generated.grad is None, "the discriminator's step must not reach the generator"


def test_the_generators_loss_is_the_weighted_sum_of_eq_7():
    vgg = _random_vgg()
    nets = GanNetworks(nn.Identity(), _MeanDifference(), vgg)
    generated = torch.full((2, 3, 4, 4), 0.1, requires_grad=True)
    batch = _batch()
    total, parts = generator_loss(nets, batch, generated, {"adversarial": 10, "l1": 15, "perceptual": 5})
    features = [vgg(x.detach())[0] for x in (generated, batch.target_image)]
    terms = {
        "adversarial": -math.log(_sigmoid(2 * 0.1)),  # non-saturating
        "l1": 0.4,
        "perceptual": (features[0] - features[1]).square().mean().item(),
    }
    for name, value in terms.items():
        assert parts[f"generator/{name}"].item() == pytest.approx(value, rel=1e-5)
    expected = 10 * terms["adversarial"] + 15 * terms["l1"] + 5 * terms["perceptual"]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert generated.grad is not None


def test_a_term_of_weight_zero_is_not_computed():
    nets = GanNetworks(nn.Identity(), nn.Identity(), None)  # calling this discriminator would fail
    total, parts = generator_loss(
        nets,
        _batch(),
        torch.zeros(2, 3, 4, 4),
        {"adversarial": 0, "l1": 2, "perceptual": 0},
    )
    assert total.item() == pytest.approx(1.0)
    assert set(parts) == {"generator/loss", "generator/l1"}


def test_the_identity_distance_by_hand():
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    maps = torch.ones(2, 3, 2, 1), torch.ones(2, 3, 2, 1)
    maps[1][0, :, 0] = -1.0  # one of four places points the other way
    ours, theirs = zip(features, maps, strict=True)
    assert identity_distance(ours, theirs).item() == pytest.approx((1 + 0) / 2, abs=1e-6)
    assert identity_distance(ours, theirs, maps=3.0).item() == pytest.approx(0.5 + 3 * 2 / 4, abs=1e-6)
    assert identity_distance(ours, ours, maps=3.0).item() == pytest.approx(0, abs=1e-6)


def test_the_identity_term_compares_with_the_target_and_teaches_the_generator():
    def network(image: Tensor) -> tuple[Tensor, Tensor]:
        return image.mean((2, 3)), image

    batch = _batch()
    nets = GanNetworks(nn.Identity(), _MeanDifference(), None, identity=network, identity_maps=1.0)
    target = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = replace(batch, target_image=target)
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss, parts = generator_loss(nets, batch, image, {"identity": 2.0})
    wanted = identity_distance(network(image), network(target), 1.0)
    assert loss.item() == pytest.approx(2 * wanted.item(), rel=1e-6)
    assert parts["generator/identity"].item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_the_wanted_feature_may_lie_halfway_between_target_and_source():
    """Halfway by direction, however long the features are; the maps are the target's."""

    def network(image: Tensor) -> tuple[Tensor, Tensor]:
        return image[:, :2, 0, 0], image

    def shows(x: float, y: float) -> Tensor:
        return torch.tensor([x, y, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)

    batch = replace(_batch(), target_image=shows(1, 0), source_image=shows(0, 9))
    for wanted, angle in (("target", math.pi / 4), ("both", 0.0)):
        nets = GanNetworks(nn.Identity(), nn.Identity(), None, identity=network, identity_wanted=wanted)
        loss, _ = generator_loss(nets, batch, shows(1, 1), {"identity": 1.0})
        assert loss.item() == pytest.approx(1 - math.cos(angle), abs=1e-6)
        nets = replace(nets, generator=lambda rows: shows(1, 1)[: len(rows)])
        loss, _ = generator_loss(nets, batch, shows(1, 1), {"lent": 1.0})
        assert loss.item() == pytest.approx(1 - math.cos(angle), abs=1e-6)
    nets = GanNetworks(nn.Identity(), nn.Identity(), None, identity=network, identity_wanted="both")
    loss, _ = generator_loss(replace(nets, identity_maps=2.0), batch, shows(1, 0), {"identity": 1.0})
    assert loss.item() == pytest.approx(1 - math.cos(math.pi / 4), abs=1e-6)


class _Dressed(nn.Module):
    """The source's colors, scaled, on the target's mask; nothing carried to other targets may be left."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, batch: PairBatch) -> Tensor:
        assert batch.carried is None
        more = 0.0 if batch.more_sources is None else batch.more_sources.image.float().mean(1)
        return self.scale * (batch.source_image + more) * batch.target_mask[:, None]


@pytest.mark.parametrize(("pairs", "lenders"), [(1, [0]), (3, [1, 2]), (4, [2, 3])])
@pytest.mark.parametrize("further", [False, True])
def test_the_lent_term_asks_who_half_of_the_sources_are_in_the_other_halfs_poses(pairs, lenders, further):
    rng = torch.Generator().manual_seed(pairs)
    source, target = (torch.rand(pairs, 3, 4, 4, generator=rng) for _ in range(2))
    mask = torch.rand(pairs, 4, 4, generator=rng) < 0.5
    labels, joints = torch.zeros(pairs, 4, 4, dtype=torch.uint8), torch.zeros(pairs, 18, 2)
    plane = torch.zeros(pairs, 1, 4, 4)
    carried = Carried(source, plane, source, torch.zeros(pairs, 4, 4, 2), plane[:, 0].long())
    more = MoreSources(
        image=torch.rand(pairs, 2, 3, 4, 4, generator=rng),
        parsing=labels[:, None].repeat(1, 2, 1, 1),
        mask=mask[:, None].repeat(1, 2, 1, 1),
        keypoints=joints[:, None].repeat(1, 2, 1, 1),
        known=torch.ones(pairs, 2, dtype=torch.bool),
    )
    batch = PairBatch(
        *(source, target, labels, labels, mask, mask, joints, joints, torch.arange(pairs)),
        more_sources=more if further else None,
        carried=carried,
    )
    generator = _Dressed()
    identity = lambda image: (image.flatten(2).amax(2), image)  # noqa: E731  a network in one line
    nets = GanNetworks(generator, nn.Identity(), None, identity=identity, identity_maps=5.0)
    loss, parts = generator_loss(nets, batch, source, {"lent": 3.0})

    wanted = []
    for row, lender in enumerate(lenders):
        colors = source[row] + (more.image[row].mean(0) if further else 0)
        made = 0.5 * colors * mask[lender]
        ours, theirs = (image.flatten(1).amax(1).tolist() for image in (made, target[row]))
        lengths = math.hypot(*ours) * math.hypot(*theirs)
        wanted.append(1 - sum(a * b for a, b in zip(ours, theirs, strict=True)) / lengths)
    assert parts["generator/lent"].item() == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)
    assert loss.item() == pytest.approx(3 * parts["generator/lent"].item(), rel=1e-6)
    loss.backward()
    assert generator.scale.grad is not None


def test_the_gate_term_counts_what_is_trusted():
    batch, gate = _batch(), torch.full((2, 1, 4, 4), 0.25)
    validity = torch.zeros(2, 1, 4, 4)
    validity[0, 0, 0] = 1.0
    gate[0, 0, 0, 0] = 1.0
    carried = Carried(torch.zeros(2, 3, 4, 4), validity, *(torch.zeros(2, 3, 4, 4),) * 3)
    assert closed_gate_loss(gate, replace(batch, carried=carried)).item() == pytest.approx((3 * 0.75) / 4)
    nothing = replace(carried, validity=torch.zeros_like(validity))
    assert closed_gate_loss(gate, replace(batch, carried=nothing)).item() == 0
    with pytest.raises(ValueError, match="carried"):
        closed_gate_loss(gate, batch)
