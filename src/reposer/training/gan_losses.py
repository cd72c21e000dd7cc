"""The two objectives of an image GAN: SAN's eq. 4 (adversarial), 5 (L1), 6 (perceptual) and their sum, eq. 7.

Both functions get the generated images from outside: one forward pass of the generator serves both steps, and
its BatchNorm statistics move once a step. Nothing else changes: the generator is not updated between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reposer.losses import adversarial
from reposer.losses.adversarial import ImagePool
from reposer.losses.perceptual import PerceptualNetwork, perceptual_loss
from reposer.losses.reconstruction import l1_loss
from reposer.structures import PairBatch
from reposer.training.gan_config import AdversarialConfig, LossWeights

Parts = dict[str, Tensor]  # name -> detached scalar, for the log


@dataclass(frozen=True, slots=True)
class GanNetworks:
    """The networks that play, and the fixed one that looks on."""

    generator: nn.Module  # PairBatch -> (B, 3, H, W) in [-1, 1]
    discriminator: nn.Module  # (source image, image, PairBatch, fake) -> logits
    perceptual: PerceptualNetwork | None  # None where the perceptual weight is 0
    perceptual_norm: str = "l2"


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


def generator_loss(
    nets: GanNetworks, batch: PairBatch, generated: Tensor, options: AdversarialConfig, weights: LossWeights
) -> tuple[Tensor, Parts]:
    """What the generator minimizes, eq. 7: alpha adversarial + beta L1 + gamma perceptual.

    Args:
        nets: the networks; the discriminator's weights should not require gradients here.
        batch: B pairs; target_image is what the generator shall make, in [-1, 1].
        generated: (B, 3, H, W) in [-1, 1], with its graph.
        options: mode of the adversarial term (the non-saturating one).
        weights: alpha, beta, gamma; a term of weight 0 is neither computed nor logged.

    Returns:
        the loss, a scalar, and its unweighted terms.
    """
    adversarial_term = l1_term = perceptual_term = zero = generated.new_zeros(())
    if weights.adversarial:
        logits = nets.discriminator(batch.source_image, generated, batch, fake=True)
        adversarial_term = adversarial.generator_adversarial_loss(logits, options.mode)
    if weights.l1:
        l1_term = l1_loss(generated, batch.target_image)
    if nets.perceptual is not None:
        perceptual_term = perceptual_loss(
            nets.perceptual, generated, batch.target_image, nets.perceptual_norm
        )
    total = (
        weights.adversarial * adversarial_term + weights.l1 * l1_term + weights.perceptual * perceptual_term
    )
    parts = {"loss": total, "adversarial": adversarial_term, "l1": l1_term, "perceptual": perceptual_term}
    return total, {f"generator/{name}": part.detach() for name, part in parts.items() if part is not zero}
