"""The adversarial game of SAN (eq. 4) on logits, and the pool of earlier generated images.

The generator's term is the non-saturating one: it maximizes log D(fake), where eq. 4 has it minimize
log(1 - D(fake)).
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.errors import UserError
from reposer.structures import PairBatch

MODES = ("bce", "lsgan")
_FIELDS = tuple(f.name for f in fields(PairBatch) if f.name not in ("more_sources", "carried"))  # of a row


def _distance(logits: Tensor, label: float, mode: str) -> Tensor:
    """How far the logits are from a label: cross-entropy of their sigmoid (bce) or squared error (lsgan)."""
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is not known", f"use one of {', '.join(MODES)}")
    logits = logits.float()
    labels = torch.full_like(logits, label)
    if mode == "bce":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits, labels)


def discriminator_adversarial_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    mode: str = "bce",
    real_label: float = 1.0,
    loss_scale: float = 0.5,
) -> Tensor:
    """The discriminator's loss, a scalar: real logits towards ``real_label``, fake ones towards 0.

    Args:
        real_logits: any shape, of (source, target) pairs.
        fake_logits: any shape, of (source, generated) pairs; the generated images are detached by the caller.
        mode: bce (eq. 4) or lsgan (least squares on the raw logits).
        real_label: 1, or 0.9 for one-sided label smoothing.
        loss_scale: factor of the sum. PATN's code halves it (default) and multiplies it by the adversarial
            weight as well; with Adam such a factor hardly matters.
    """
    return loss_scale * (_distance(real_logits, real_label, mode) + _distance(fake_logits, 0.0, mode))


def generator_adversarial_loss(fake_logits: Tensor, mode: str = "bce") -> Tensor:
    """The generator's non-saturating loss, a scalar: fake logits towards 1."""
    return _distance(fake_logits, 1.0, mode)


class ImagePool:
    """A pool of earlier generated images for the discriminator (Shrivastava et al. 2017; as in PATN).

    Until it is full, images go in and come back. From then on each image is, with probability 1/2, exchanged
    for a random one of the pool. Every image travels with its row of the batch, so that the discriminator
    always sees it beside its own condition, less further sources. Size 0 returns everything unchanged.
    """

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self._rows: list[dict[str, Tensor]] = []  # one per image: "generated" and the fields of PairBatch

    def __len__(self) -> int:
        return len(self._rows)

    def query(self, generated: Tensor, batch: PairBatch, rng: torch.Generator) -> tuple[Tensor, PairBatch]:
        """Exchange some of the images.

        Args:
            generated: (B, 3, H, W) model float.
            batch: the B rows that they were made from.
            rng: a CPU generator, the only source of randomness.

        Returns:
            (B, 3, H, W) images without gradient, and the batch of the rows that belong to them.
        """
        generated = generated.detach()
        if self.size == 0:
            return generated, batch
        columns = {"generated": generated, **batch.tensors()}
        out: list[dict[str, Tensor]] = []
        for i in range(len(generated)):
            row = {name: column[i] for name, column in columns.items()}
            if len(self._rows) < self.size:
                self._rows.append({name: value.clone() for name, value in row.items()})
            elif torch.rand((), generator=rng) < 0.5:
                k = int(torch.randint(self.size, (), generator=rng))
                kept = {name: value.clone() for name, value in row.items()}
                row, self._rows[k] = self._rows[k], kept
            out.append(row)
        joined = {name: torch.stack([row[name] for row in out]) for name in columns}
        return joined.pop("generated"), replace(batch, **joined, more_sources=None, carried=None)

    def state_dict(self) -> dict[str, Tensor]:
        """The pool as tensors with the images along the first dimension; {} while it is empty."""
        if not self._rows:
            return {}
        return {name: torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Put back what ``state_dict`` returned.

        Raises:
            UserError: columns are missing, unknown, of different lengths, or longer than the pool.
        """
        expected = {"generated", *_FIELDS} if state else set()
        lengths = {len(column) for column in state.values()}
        if set(state) != expected or len(lengths) > 1 or max(lengths, default=0) > self.size:
            raise UserError(
                f"the saved image pool (columns {sorted(state)}, lengths {sorted(lengths)}) does not fit "
                f"a pool of {self.size} images",
                "resume with the configuration that the checkpoint was made with",
            )
        columns = {name: column.to(device) for name, column in state.items()}
        count = max(lengths, default=0)
        self._rows = [{name: column[i].clone() for name, column in columns.items()} for i in range(count)]
