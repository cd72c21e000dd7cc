"""The two objectives of an image GAN: SAN's eq. 4 (adversarial), 5 (L1), 6 (perceptual) and their sum, eq. 7.

Each is a function of networks and batch that returns the weighted sum and its parts, which are logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.losses import adversarial
from reposer.losses.adversarial import ImagePool
from reposer.losses.perceptual import (
    PerceptualNetwork,
    content_loss,
    contextual_loss,
    layer_differences,
    style_loss,
)
from reposer.structures import PairBatch
from reposer.training.gan.config import AdversarialConfig, LossWeights

# ---- The pixel-wise reconstruction loss of SAN (eq. 5).


def l1_loss(generated: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of model-float images (B, 3, H, W), in [0, 2]; a scalar.

    Eq. 5 writes a norm without an average; PATN's code averages, and so do we: the weights of eq. 7 fit that.
    """
    return F.l1_loss(generated.float(), target.float())


# ---- The two objectives of an image GAN: SAN's eq. 4 (adversarial), 5 (L1), 6 (perceptual) and their sum,
# eq. 7.
#
# Both functions get the generated images from outside: one forward pass of the generator serves both steps,
# and its BatchNorm statistics move once a step. Nothing else changes: the generator is not updated between
# the two.

Parts = dict[str, Tensor]  # name -> detached scalar, for the log


@dataclass(frozen=True, slots=True)
class GanNetworks:
    """The networks that play, and the fixed one that looks on."""

    generator: nn.Module  # PairBatch -> (B, 3, H, W) in [-1, 1]
    discriminator: nn.Module  # (source image, image, PairBatch, fake) -> logits
    perceptual: PerceptualNetwork | None  # None where every term that needs it has weight 0
    perceptual_norm: str = "l2"
    feature_layers: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # loss term -> its layers; empty: perceptual, all


def discriminator_loss(
    nets: GanNetworks,
    batch: PairBatch,
    generated: Tensor,
    options: AdversarialConfig,
    pool: ImagePool,
    pool_rng: torch.Generator,
) -> tuple[Tensor, Parts]:
    """What the discriminator minimizes: telling (I_s, I_t) from (I_s, generated), eq. 4.

    Args:
        nets: the networks; gradients reach the discriminator only.
        batch: B pairs; target_image is what the generator shall make.
        generated: (B, 3, H, W) in [-1, 1]; its graph is cut here.
        options: mode, real label, scale.
        pool: earlier fakes with the rows they belong to, which replace some of the batch's.
        pool_rng: the pool's only source of randomness.

    Returns:
        the loss, a scalar, and its parts: the loss and the mean logits of real and fake images.
    """
    fake, fake_batch = pool.query(generated.detach(), batch, pool_rng)
    real_logits = nets.discriminator(batch.source_image, batch.target_image, batch)
    fake_logits = nets.discriminator(fake_batch.source_image, fake, fake_batch, fake=True)
    loss = adversarial.discriminator_loss(
        real_logits, fake_logits, options.mode, options.real_label, options.loss_scale
    )
    parts = {"loss": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
    return loss, {f"discriminator/{name}": part.detach() for name, part in parts.items()}


def generate(nets: GanNetworks, batch: PairBatch, weights: LossWeights) -> tuple[Tensor, Any]:
    """The images (B, 3, H, W), and what the auxiliary terms look at where one of them has a weight."""
    if weights.correspondence or weights.parsing:
        generated, parts = nets.generator(batch, parts=True)
        return generated, parts
    return nets.generator(batch), None


def generator_loss(
    nets: GanNetworks,
    batch: PairBatch,
    generated: Tensor,
    options: AdversarialConfig,
    weights: LossWeights,
    auxiliary: Any = None,
) -> tuple[Tensor, Parts]:
    """What the generator minimizes: eq. 7, alpha adversarial + beta L1 + gamma perceptual, and further terms.

    Args:
        nets: the networks; the discriminator's weights should not require gradients here.
        batch: B pairs; target_image is what the generator shall make, in [-1, 1].
        generated: (B, 3, H, W) in [-1, 1], with its graph.
        options: mode of the adversarial term (the non-saturating one).
        weights: of the terms; a term of weight 0 is neither computed nor logged.
        auxiliary: second result of ``generate``, for the terms correspondence and parsing.

    Returns:
        the loss, a scalar, and its unweighted terms.
    """
    terms: Parts = {}
    if weights.adversarial:
        logits = nets.discriminator(batch.source_image, generated, batch, fake=True)
        terms["adversarial"] = adversarial.generator_adversarial_loss(logits, options.mode)
    if weights.l1:
        terms["l1"] = l1_loss(generated, batch.target_image)
    if nets.perceptual is not None:
        terms |= _feature_terms(nets, nets.perceptual, generated, batch.target_image)
    if weights.correspondence:
        terms["correspondence"] = correspondence_loss(auxiliary.warped_source, batch)
    if weights.parsing:
        terms["parsing"] = parsing_head_loss(auxiliary.parsing_logits, batch.target_parsing)
    total = sum((getattr(weights, name) * term for name, term in terms.items()), generated.new_zeros(()))
    parts = {"loss": total, **terms}
    return total, {f"generator/{name}": part.detach() for name, part in parts.items()}


def correspondence_loss(warped: Tensor, batch: PairBatch) -> Tensor:
    """Mean absolute difference of the warped small source image and the small target, on the target's mask.

    Args:
        warped: (B, 3, h, w) in [-1, 1]. batch: its target_image is model float. An empty mask counts as full.
    """
    size = (warped.shape[2], warped.shape[3])
    target = F.adaptive_avg_pool2d(batch.target_image.float(), size)
    weight = F.adaptive_avg_pool2d(batch.target_mask.unsqueeze(1).float(), size)
    weight = torch.where(weight.sum((1, 2, 3), keepdim=True) > 0, weight, 1.0)
    return ((warped.float() - target).abs() * weight).sum() / (3 * weight.sum())


def parsing_head_loss(logits: Tensor, parsing: Tensor) -> Tensor:
    """Cross-entropy of (B, 20, h, w) logits with the (B, H, W) label map, taken at the nearest pixel.

    Pixels without a label (MISSING_LABEL) are left out; 0 where there is none with one.
    """
    small = F.interpolate(parsing.unsqueeze(1).float(), logits.shape[2:], mode="nearest").squeeze(1).long()
    known = small < logits.shape[1]
    losses = F.cross_entropy(logits.float(), torch.where(known, small, 0), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def _feature_terms(
    nets: GanNetworks, network: PerceptualNetwork, generated: Tensor, target: Tensor
) -> dict[str, Tensor]:
    """Terms on the maps of the perceptual network: one pass for each of the two images."""
    with torch.no_grad():
        wanted = dict(zip(network.layers, network(target), strict=True))
    maps = dict(zip(network.layers, network(generated), strict=True))
    terms = {}
    for term, layers in (nets.feature_layers or {"perceptual": network.layers}).items():
        ours, theirs = [maps[name] for name in layers], [wanted[name] for name in layers]
        if term == "perceptual":
            terms[term] = torch.stack(layer_differences(ours, theirs, nets.perceptual_norm)).sum()
        else:
            terms[term] = FEATURE_LOSSES[term](ours, theirs)
    return terms


FEATURE_LOSSES = {"content": content_loss, "style": style_loss, "contextual": contextual_loss}
