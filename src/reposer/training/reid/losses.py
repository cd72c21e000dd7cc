"""The objective of a Re-ID training: classification + triplets + centers + verification, weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from reposer.losses.identity import (
    center_loss,
    identity_loss,
    teacher_loss,
    triplet_loss,
    uniform_loss,
    verification_loss,
)
from reposer.models.embedding import ReidOutput
from reposer.structures import ReidBatch
from reposer.training.reid.config import GeneratedConfig, ReidLossConfig

Parts = dict[str, Tensor]  # name -> detached scalar, for the log
REAL_ONLY = GeneratedConfig()


def reid_loss(
    output: ReidOutput,
    batch: ReidBatch,
    weights: ReidLossConfig,
    centers: Tensor | None = None,
    generated: GeneratedConfig = REAL_ONLY,
    teacher: Tensor | None = None,
) -> tuple[Tensor, Parts]:
    """What the network minimizes.

    Every term is one mean over all B images, each times its weight. Generated images whose label does not
    say whom they show (uniform, teacher, extra_class) take part in the classification only.

    Args:
        output: of the network for the batch.
        batch: B images with labels; where a verification loss is asked for, two halves that are pairs.
        weights: a term of weight 0 is neither computed nor logged. With 1 and 1, identification and
            verification are Zheng et al.'s 0.5 id_a + 0.5 id_b + verification.
        centers: (K, D) of the classes, where a center loss is asked for.
        generated: what the generated images among the B are to teach.
        teacher: (B, K) logits, where that is the teacher's opinion.

    Returns:
        the loss, a scalar, and its unweighted terms with the share of images (pairs) classified correctly.
    """
    identity = triplet = center = verification = zero = output.pooled.new_zeros((), dtype=torch.float32)
    parts: Parts = {}
    if weights.identity:
        identity = _classification(output.logits, batch, weights.smoothing, generated, teacher)
        parts["accuracy"] = _accuracy(output.logits, batch)
    if generated.folder is not None:
        parts["generated_share"] = batch.generated.float().mean()
    if weights.triplet:
        triplet = triplet_loss(output.pooled, batch.label, batch.weight, weights.margin, batch.known)
    if weights.center and centers is not None:
        center = center_loss(output.pooled, batch.label, batch.weight * batch.known, centers)
    if weights.verification and output.pair_logits is not None:
        first, second = batch.label.chunk(2)
        weight = torch.minimum(*(batch.weight * batch.known).chunk(2))
        verification = verification_loss(output.pair_logits, first == second, weight)
        parts["pair_accuracy"] = ((output.pair_logits.argmax(1) == 1) == (first == second)).float().mean()
    total = weights.identity * identity + weights.triplet * triplet + weights.center * center
    total = total + weights.verification * verification
    terms = {"loss": total, "identity": identity, "triplet": triplet, "center": center}
    terms["verification"] = verification
    parts = {name: term for name, term in terms.items() if term is not zero} | parts
    return total, {f"reid/{name}": part.detach() for name, part in parts.items()}


def _classification(
    logits: Tensor, batch: ReidBatch, smoothing: float, generated: GeneratedConfig, teacher: Tensor | None
) -> Tensor:
    """The recipe's cross-entropy for real images, the label policy's loss for generated ones."""
    if generated.label in ("source", "extra_class"):  # the policy is in the labels
        return identity_loss(logits, batch.label, batch.weight, smoothing)
    weight = batch.weight * batch.generated
    real = identity_loss(logits, batch.label, batch.weight * ~batch.generated, smoothing)
    if generated.label == "smoothed":
        return real + identity_loss(logits, batch.label, weight, generated.smoothing)
    if generated.label == "uniform":
        return real + uniform_loss(logits, weight)
    if teacher is None:
        raise ValueError("label=teacher needs the teacher's logits")
    return real + teacher_loss(logits, teacher, weight)


def _accuracy(logits: Tensor, batch: ReidBatch) -> Tensor:
    """Share of the real images that are classified correctly; 0 where the batch has none."""
    hits = (logits.argmax(1) == batch.label).float()
    real = (~batch.generated).float()
    return (hits * real).sum() / real.sum().clamp(min=1)
