"""The settings of every training, and how epochs become steps and steps become learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol, Self

from pydantic import Field

from reposer.config import Config
from reposer.errors import MOST_AT_ONCE, MOST_SIDE_BY_SIDE, UserError
from reposer.storage.paths import printable


class OutputConfig(Config):
    """What is written how often; every figure counts optimizer steps."""

    log_every: int = Field(default=25, ge=1)
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_last: int = Field(default=2, ge=2)  # checkpoints


class TrainingConfig(Config):
    """The settings of every training; frozen, typed, saved into the run folder."""

    # images (or pairs) of one optimizer step, over all processes
    batch_size: int = Field(default=32, ge=2, le=MOST_AT_ONCE)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # of the CPU; None: PyTorch's choice
    threads: int | None = Field(default=None, ge=1, le=MOST_SIDE_BY_SIDE)
    seed: int = 0
    output: OutputConfig = OutputConfig()

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the update that follows ``step`` completed ones of ``total``.

        A pure function of the step, so that a resumed run cannot be off.
        """
        raise NotImplementedError


class EpochsConfig(TrainingConfig):
    """A training whose epoch is a number of draws that its configuration names."""

    @property
    def epoch(self) -> int:
        """Images (or pairs) that are drawn in an epoch."""
        raise NotImplementedError

    @property
    def epochs(self) -> float:
        """Epochs of the whole schedule."""
        raise NotImplementedError

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return self.steps_of(self.epochs)

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least 1 where ``epochs`` > 0."""
        return steps_of(epochs, self.epoch, self.batch_size)

    def with_steps(self, steps: int) -> Self:
        """The same recipe in so many optimizer steps: the schedule keeps its shape."""
        changed = self.stretched(steps * self.batch_size)
        if changed.total_steps == steps:
            return changed
        # steps are rounded up: half an image keeps floats on the right side
        return self.stretched(steps * self.batch_size - 0.5)

    def stretched(self, images: float) -> Self:
        """The same schedule over so many drawn images (or pairs)."""
        raise NotImplementedError


def steps_of(epochs: float, epoch: int, batch_size: int) -> int:
    """Optimizer steps of so many epochs of ``epoch`` images, at least 1 where ``epochs`` > 0."""
    return -int(-epochs * epoch // batch_size)


def learning_rate(step: int, lr: float, steps_const: int, steps_decay: int) -> float:
    """Learning rate of the update that follows ``step`` completed ones: constant, then linear to 0.

    The rate would reach 0 at step ``steps_const + steps_decay``, where training ends; the last update still
    has lr / steps_decay.
    """
    if step < steps_const:
        return lr
    return lr * max(0.0, 1.0 - (step - steps_const) / max(steps_decay, 1))


def half_cosine(step: int, warmup: int, total: int) -> float:
    """1 at step ``warmup``, then half a cosine that would reach 0 at step ``total``, where training ends."""
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


# ---- What a training's other networks may have seen: teachers, judges, what it begins with.


class Budget(Protocol):
    """A share of each training person's images (``data.samplers.budget_rows``)."""

    @property
    def budget(self) -> float: ...
    @property
    def budget_seed(self) -> int: ...


class Seen(Budget, Protocol):
    """What a network says of the images that it was trained on."""

    @property
    def identity_hash(self) -> str: ...
    @property
    def images_hash(self) -> str: ...


def same_people(seen: Seen, facts: Mapping[str, str]) -> bool:
    """Whether these are the same people: the same numbers and, where that is recorded, the same images.

    Args:
        facts: ``PackedPeople.training_facts`` of this training.
    """
    same = seen.identity_hash == facts["identity_hash"]
    return same and seen.images_hash in ("", facts["images_hash"])


def check_budget(setting: str, seen: Seen, own: Budget, facts: Mapping[str, str]) -> None:
    """Refuse a network that has seen training images which the budget of this training leaves out.

    Raises:
        UserError: names the setting and both shares.
    """
    inside = seen.budget <= own.budget and seen.budget_seed == own.budget_seed
    if own.budget < 1 and same_people(seen, facts) and not inside:
        raise UserError(
            f"{printable(setting)}: has seen {100 * seen.budget:g} % of each person's images (budget_seed"
            f" {seen.budget_seed}), and this training is to see {100 * own.budget:g} % (budget_seed"
            f" {own.budget_seed}) alone",
            f"train one with --set data.budget={own.budget:g} --set data.budget_seed={own.budget_seed}",
        )
