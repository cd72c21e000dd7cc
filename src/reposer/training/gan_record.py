"""What a GAN training writes (metrics, samples, validation, checkpoints), and how it goes on."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

from reposer import checkpoint
from reposer.config import config_hash
from reposer.data.parsing import colorize
from reposer.errors import UserError
from reposer.grids import draw_grid
from reposer.images import to_float, to_uint8
from reposer.runs import Run
from reposer.runtime import Runtime
from reposer.structures import PairBatch
from reposer.training.gan_config import GanConfig
from reposer.training.gan_data import GanData
from reposer.training.gan_state import GanState

SAMPLE_TITLES = ("source", "target parsing", "generated", "target")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GanSummary:
    """What a call of ``train`` came to."""

    folder: Path  # the run folder
    step: int  # optimizer steps done in all
    total_steps: int
    minutes: float  # of this call
    last: dict[str, float]  # the last figures of each name

    @property
    def finished(self) -> bool:
        """Whether the whole schedule is done."""
        return self.step >= self.total_steps

    def __str__(self) -> str:
        state = "finished" if self.finished else "stopped; the same command goes on from here"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.last.items())
        lines = [f"step {self.step} of {self.total_steps}, {self.minutes:.1f} minutes, {state}", figures]
        wrote = "checkpoints/, samples/*.png, metrics.jsonl, tensorboard/, config.json, environment.json"
        return "\n".join(line for line in [*lines, f"{self.folder}: {wrote}"] if line)


class GanRecord:
    """The run folder of a training, and everything that is done once in a while.

    All processes make the same calls; the first one writes.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        data: training and validation pairs.
        notes: facts for environment.json.

    Raises:
        UserError: the folder holds a run of another configuration, foreign files, or only damaged
            checkpoints.
    """

    def __init__(
        self,
        config: GanConfig,
        folder: Path,
        runtime: Runtime,
        state: GanState,
        data: GanData,
        notes: dict[str, Any],
    ) -> None:
        self.folder, self.last = folder, dict[str, float]()
        self._config, self._runtime, self._state, self._data = config, runtime, state, data
        self._started = time.monotonic()
        self._run: Run | None = None
        self._tracker: TensorBoardTracker | None = None
        if runtime.is_main:
            opened = Run.open(folder, config) if Run.exists(folder) else None
            self._run = opened or Run.create(folder, config, runtime.describe() | notes)
        runtime.accelerator.wait_for_everyone()
        try:
            self._saved_step = self._resume()
            if self._run is not None:
                self._run.rewind(state.step)
                self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=state.step + 1)
                self._tracker.start()
        except BaseException:
            self.close()
            raise
        shown = data.validation_pairs if len(data.validation_pairs) else data.pairs
        spread = np.linspace(0, len(shown) - 1, config.output.sample_pairs).astype(np.int64)  # many people
        self._sample_batch = data.batch(shown[np.unique(spread)])

    def _resume(self) -> int:
        """Put the state back; returns the step of the newest good checkpoint, -1 where there is none."""
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            if self._config.start_from is not None:
                self._state.start_from(_newest(self._config.start_from))
            return -1
        differences = self._state.restore(found, self._runtime)
        if differences and self._runtime.is_main:
            _log.warning("resumed run will not be bit-identical: %s", "; ".join(differences))
        return found.step

    def log(self, lr: float, pairs_per_second: float) -> None:
        """Write the means since the last time."""
        means = self._state.means.means()
        self._state.means.clear()
        if self._runtime.world_size > 1:
            means = self._runtime.accelerator.reduce(means, "mean")
        self._write(
            {**{k: float(v) for k, v in means.items()}, "lr": lr, "pairs_per_second": pairs_per_second}
        )

    def samples(self) -> None:
        """Write a grid of the fixed sample pairs, made by the averaged generator."""
        if self._run is None:
            return
        generated = self._generate(self._sample_batch)
        batch = self._sample_batch
        columns = (
            _pictures(batch.source_image),
            [colorize(map_) for map_ in batch.target_parsing.numpy()],
            _pictures(to_uint8(generated)),
            _pictures(batch.target_image),
        )
        grid = draw_grid(list(zip(*columns, strict=True)), SAMPLE_TITLES, scale=2, groups=2)
        self._run.save_sample(f"step_{self._state.step:08d}", grid)
        if self._tracker is not None:
            self._tracker.log_images({"samples": grid[None]}, self._state.step, dataformats="NHWC")

    def validate(self) -> None:
        """Mean absolute error on validation pairs, in [0, 1], of the whole image and of the target person."""
        pairs = self._data.validation_pairs[: self._config.output.validate_pairs]
        if self._run is None or not len(pairs):
            return
        errors: list[Tensor] = []
        for start in range(0, len(pairs), 32):
            batch = self._data.batch(pairs[start : start + 32])
            difference = (self._generate(batch) - to_float(batch.target_image)).abs().mean(1) / 2  # (B, H, W)
            inside = (difference * batch.target_mask).sum((1, 2)) / batch.target_mask.sum((1, 2)).clamp(min=1)
            errors.append(torch.stack([difference.mean((1, 2)), inside], dim=1))
        l1, mask_l1 = torch.cat(errors).double().mean(0).tolist()
        self._write({"validation/l1": l1, "validation/mask_l1": mask_l1})

    def save(self) -> None:
        """Write a checkpoint of this step unless there is one, then remove the oldest."""
        if self._saved_step == self._state.step:
            return
        groups, meta = self._state.pack(self._runtime.accelerator)
        if self._run is not None:
            meta["config_hash"] = config_hash(self._config)
            people = self._data.people  # what a user of the generator must know without the data at hand
            meta |= {"size": list(people.size), "identity_hash": people.identity_hash("train")}
            checkpoint.save(self._run.checkpoints, self._state.step, groups, meta)
            checkpoint.prune(self._run.checkpoints, self._config.output.keep_last)
        self._saved_step = self._state.step
        self._runtime.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Give the folder free."""
        if self._tracker is not None:
            self._tracker.finish()
        if self._run is not None:
            self._run.close()

    def summary(self) -> GanSummary:
        """What this call came to."""
        minutes = (time.monotonic() - self._started) / 60
        return GanSummary(self.folder, self._state.step, self._config.total_steps, minutes, self.last)

    def _write(self, values: dict[str, float]) -> None:
        self.last |= values
        if self._run is not None and self._tracker is not None:
            self._run.log(self._state.step, values)
            self._tracker.log(values, self._state.step)

    @torch.inference_mode()
    def _generate(self, batch: PairBatch) -> Tensor:
        with self._runtime.autocast():
            generated: Tensor = self._state.ema.module(batch.to(self._runtime.device))
        return generated.float().cpu()


def _newest(run: Path) -> checkpoint.Checkpoint:
    """The newest good checkpoint of another run.

    Raises:
        UserError: it has none.
    """
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise UserError(f"start_from={run}: there is no checkpoint", "name the folder of a training run")
    return found


def _pictures(images: Tensor) -> list[Any]:
    """(B, 3, H, W) uint8 -> B arrays (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).numpy())
