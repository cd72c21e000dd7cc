"""A training by the name of its preset, a generator's or a Re-ID network's: what ``reposer train`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reposer.config import apply_overrides
from reposer.training.gan.loop import train
from reposer.training.parsing.loop import train_parser
from reposer.training.record import TrainingSummary
from reposer.training.reid.loop import train_reid
from reposer.workflows.presets import PARSING_PRESETS, REID_PRESETS, find_preset


def train_preset(
    name: str,
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    threads: int | None = None,
    device: str = "auto",
    max_minutes: float | None = None,
) -> TrainingSummary:
    """Train a preset on a prepared folder, or go on with the run in ``out``.

    Args:
        name: a key of PRESETS, REID_PRESETS or PARSING_PRESETS.
        data: written by ``reposer prepare``.
        out: run folder.
        overrides: "a.b=c", on top of the preset.
        threads: of the CPU; default: PyTorch's choice.
        device: as in ``training.gan.loop.train``.
        max_minutes: save and stop after so many.

    Raises:
        UserError: as the trainings, and for an unknown preset or setting, with the nearest name.
    """
    if name in REID_PRESETS:
        recipe = REID_PRESETS[name]()
        recipe = recipe.changed(data=recipe.data.changed(folder=data), threads=threads)
        return train_reid(apply_overrides(recipe, overrides), out, device=device, max_minutes=max_minutes)
    if name in PARSING_PRESETS:
        parser = PARSING_PRESETS[name]()
        parser = parser.changed(data=parser.data.changed(folder=data), threads=threads)
        return train_parser(apply_overrides(parser, overrides), out, device=device, max_minutes=max_minutes)
    config = find_preset(name)
    config = config.changed(data=config.data.changed(folder=data), threads=threads)
    return train(apply_overrides(config, overrides), out, device=device, max_minutes=max_minutes)
