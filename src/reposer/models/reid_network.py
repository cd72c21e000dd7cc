"""The network of a Re-ID training: an embedding with the heads that only training needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reposer.models.embedding import Embedding
from reposer.models.layers import check_choice

COMPARISONS = ("square", "product", "abs")


class ReidOutput(NamedTuple):
    """What the losses compare."""

    pooled: Tensor  # (B, D) feature before the neck
    logits: Tensor  # (B, K) of the classes
    pair_logits: Tensor | None  # (B / 2, 2) different or same, of rows p and p + B / 2


class ReidNetwork(nn.Module):
    """An embedding, a classifier on its feature, and where asked for a verification head on pairs.

    Args:
        embedding: what remains after training.
        classes: K, number of training people.
        dropout: before both heads.
        bias: of the classifier.
        verification: what the verification head looks at: "square" (a - b)^2, the Square layer of Zheng et
            al. (arXiv 1611.05666); "product" a b, its author's later code; "abs" |a - b|; None: no such head.
            Features are those before the neck, not normalized.
        centers: keep a center (D,) of each class's features before the neck, from N(0, 1) on, for a center
            loss; a buffer, since it moves by a rule of its own and not by the optimizer.
    """

    def __init__(
        self,
        embedding: Embedding,
        classes: int,
        dropout: float = 0.0,
        bias: bool = True,
        verification: str | None = None,
        centers: bool = False,
    ) -> None:
        super().__init__()
        check_choice("verification", verification, (*COMPARISONS, None))
        self.embedding = embedding
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding.dimension, classes, bias=bias)
        nn.init.normal_(self.classifier.weight, std=0.001)  # as IDE and Bag of Tricks
        if bias:
            nn.init.zeros_(self.classifier.bias)
        self.verification = verification
        self.verifier = nn.Linear(embedding.dimension, 2) if verification else None
        self.centers: Tensor | None  # (K, D)
        self.register_buffer("centers", torch.randn(classes, embedding.dimension) if centers else None)

    def forward(self, image: Tensor) -> ReidOutput:
        """(B, 3, H, W) uint8 or model float, used at its size; with a verification head two halves, pairs."""
        pooled, feature = self.embedding.features(image)
        logits = self.classifier(self.dropout(feature))
        if self.verifier is None:
            return ReidOutput(pooled, logits, None)
        first, second = pooled.chunk(2)
        compared = compare_pairs(first, second, str(self.verification))
        return ReidOutput(pooled, logits, self.verifier(self.dropout(compared)))


def compare_pairs(first: Tensor, second: Tensor, how: str) -> Tensor:
    """(P, D) and (P, D) -> (P, D), by one of COMPARISONS."""
    if how == "product":
        return first * second
    difference = first - second
    return difference.square() if how == "square" else difference.abs()
