"""What a Re-ID training writes (metrics, validation, checkpoints), and how it goes on."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

from reposer import checkpoint
from reposer.config import config_hash
from reposer.errors import UserError
from reposer.losses.identity import pairwise_distance
from reposer.runs import Run
from reposer.runtime import Runtime
from reposer.training.reid_config import ReidConfig
from reposer.training.reid_data import ReidData
from reposer.training.reid_state import ReidState

_VALIDATION_BATCH, _VALIDATION_IMAGES = 64, 2000
_log = logging.getLogger(__name__)


def nearest_is_same(features: Tensor, pids: Tensor, camids: Tensor) -> float | None:
    """Share of images whose nearest image of another camera shows the same person.

    Over the images whose person was seen by another camera too; None where there are none.

    Args:
        features: (N, D).
        pids: (N,).
        camids: (N,).
    """
    other = camids[:, None] != camids[None, :]
    same = (pids[:, None] == pids[None, :]) & other
    nearest = pairwise_distance(features).masked_fill(~other, torch.inf).argmin(1)
    hits = same.gather(1, nearest[:, None])[:, 0][same.any(1)]
    return float(hits.double().mean()) if len(hits) else None


@dataclass(frozen=True, slots=True)
class ReidSummary:
    """What a call of ``train_reid`` came to."""

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
        wrote = "checkpoints/, metrics.jsonl, tensorboard/, config.json, environment.json"
        return "\n".join(line for line in [*lines, f"{self.folder}: {wrote}"] if line)


class ReidRecord:
    """The run folder of a training, and everything that is done once in a while.

    All processes make the same calls; the first one writes.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        data: training batches and validation images.
        notes: facts for environment.json.
        inputs: hashes of what the configuration names only by its place.

    Raises:
        UserError: the folder holds a run of another configuration, foreign files, or only damaged
            checkpoints; a generated set or teacher is not that of the run.
    """

    def __init__(
        self,
        config: ReidConfig,
        folder: Path,
        runtime: Runtime,
        state: ReidState,
        data: ReidData,
        notes: dict[str, Any],
        inputs: dict[str, str],
    ) -> None:
        self.folder, self.last = folder, dict[str, float]()
        self._config, self._runtime, self._state, self._data = config, runtime, state, data
        self._inputs = inputs
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

    def _resume(self) -> int:
        """Put the state back; returns the step of the newest good checkpoint, -1 where there is none."""
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            return -1
        before = found.meta.get("inputs", {})
        changed = sorted(k for k in before | self._inputs if before.get(k) != self._inputs.get(k))
        if changed:
            raise UserError(
                f"{self.folder}: {' and '.join(changed)} changed since the run was started",
                "put back what it was started with, or choose another folder for a new run",
            )
        differences = self._state.restore(found, self._runtime)
        if differences and self._runtime.is_main:
            _log.warning("resumed run will not be bit-identical: %s", "; ".join(differences))
        return found.step

    def log(self, rate: float, images_per_second: float) -> None:
        """Write the means since the last time."""
        means = self._state.means.means()
        self._state.means.clear()
        if self._runtime.world_size > 1:
            means = self._runtime.accelerator.reduce(means, "mean")
        figures = {name: float(value) for name, value in means.items()}
        self._write(figures | {"lr": rate, "images_per_second": images_per_second})

    def validate(self) -> None:
        """A quick figure to watch, from held-out people; CMC and mAP come from ``reposer reid evaluate``."""
        rows = self._data.validation[:_VALIDATION_IMAGES]
        if self._run is None or not len(rows):
            return
        embedding = self._state.network.embedding.eval()
        people, chunks = self._data.people, []
        with torch.inference_mode(), self._runtime.autocast():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                images = torch.from_numpy(people.images[rows[start : start + _VALIDATION_BATCH]])
                chunks.append(embedding(images.permute(0, 3, 1, 2).to(self._runtime.device)).cpu())
        embedding.train()
        pids, camids = torch.from_numpy(people.pids[rows]), torch.from_numpy(people.camids[rows])
        share = nearest_is_same(torch.cat(chunks).float(), pids, camids)
        if share is not None:
            self._write({"validation/nearest_is_same": share})

    def save(self) -> None:
        """Write a checkpoint of this step unless there is one, then remove the oldest."""
        if self._saved_step == self._state.step:
            return
        groups, meta = self._state.pack(self._runtime.accelerator)
        if self._run is not None:
            splits = self._config.data.splits
            meta["config_hash"] = config_hash(self._config)
            meta |= {"pids": self._data.pids.tolist(), "splits": list(splits)}
            meta |= {"identity_hash": self._data.people.identity_hash(*splits), "inputs": self._inputs}
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

    def summary(self) -> ReidSummary:
        """What this call came to."""
        minutes = (time.monotonic() - self._started) / 60
        return ReidSummary(self.folder, self._state.step, self._config.total_steps, minutes, self.last)

    def _write(self, values: dict[str, float]) -> None:
        self.last |= values
        if self._run is not None and self._tracker is not None:
            self._run.log(self._state.step, values)
            self._tracker.log(values, self._state.step)
