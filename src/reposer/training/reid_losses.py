"""The objective of a Re-ID training: classification + triplets + centers + verification, weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from reposer.losses.identity import center_loss, identity_loss, triplet_loss, verification_loss
from reposer.models.reid_network import ReidOutput
from reposer.structures import ReidBatch
from reposer.training.reid_config import ReidLossConfig

Parts = dict[str, Tensor]  # name -> detached scalar, for the log


def reid_loss(
    output: ReidOutput, batch: ReidBatch, weights: ReidLossConfig, centers: Tensor | None = None
) -> tuple[Tensor, Parts]:
    """What the network minimizes.

    Args:
        output: of the network for the batch.
        batch: B images with labels; where a verification loss is asked for, two halves that are pairs.
        weights: a term of weight 0 is neither computed nor logged. With 1 and 1, identification and
            verification are Zheng et al.'s 0.5 id_a + 0.5 id_b + verification.
        centers: (K, D) of the classes, where a center loss is asked for.

    Returns:
        the loss, a scalar, and its unweighted terms with the share of images (pairs) classified correctly.
    """
    identity = triplet = center = verification = zero = output.pooled.new_zeros((), dtype=torch.float32)
    parts: Parts = {}
    if weights.identity:
        identity = identity_loss(output.logits, batch.label, batch.weight, weights.smoothing)
        parts["accuracy"] = (output.logits.argmax(1) == batch.label).float().mean()
    if weights.triplet:
        triplet = triplet_loss(output.pooled, batch.label, batch.weight, weights.margin)
    if weights.center and centers is not None:
        center = center_loss(output.pooled, batch.label, batch.weight, centers)
    if weights.verification and output.pair_logits is not None:
        first, second = batch.label.chunk(2)
        weight = torch.minimum(*batch.weight.chunk(2))
        verification = verification_loss(output.pair_logits, first == second, weight)
        parts["pair_accuracy"] = ((output.pair_logits.argmax(1) == 1) == (first == second)).float().mean()
    total = weights.identity * identity + weights.triplet * triplet + weights.center * center
    total = total + weights.verification * verification
    terms = {"loss": total, "identity": identity, "triplet": triplet, "center": center}
    terms["verification"] = verification
    parts = {name: term for name, term in terms.items() if term is not zero} | parts
    return total, {f"reid/{name}": part.detach() for name, part in parts.items()}
