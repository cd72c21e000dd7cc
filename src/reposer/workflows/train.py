"""A training by the name of its preset, a generator's or a Re-ID network's: what ``reposer train`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reposer.config import apply_overrides
from reposer.errors import find
from reposer.training.loop import train
from reposer.training.run_writer import TrainingSummary
from reposer.workflows.presets import PARSING_PRESETS, PRESETS, REID_PRESETS


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
        device: as in ``training.loop.train``.
        max_minutes: save and stop after so many.

    Raises:
        UserError: as the trainings, and for an unknown preset or setting, with the nearest name.
    """
    others = {**REID_PRESETS, **PARSING_PRESETS}
    config = others[name]() if name in others else find("preset", name, PRESETS, *others)()
    config = config.changed(data=config.data.changed(folder=data), threads=threads)
    return train(apply_overrides(config, overrides), out, device=device, max_minutes=max_minutes)
