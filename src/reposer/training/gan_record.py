"""What a GAN training writes besides metrics and checkpoints: sample grids and errors on validation pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reposer import checkpoint
from reposer.data.parsing import colorize
from reposer.errors import UserError
from reposer.files import sha256_file
from reposer.grids import draw_grid
from reposer.images import to_float, to_uint8
from reposer.runtime import Runtime
from reposer.structures import PairBatch
from reposer.training.gan_config import GanConfig
from reposer.training.gan_data import GanData
from reposer.training.gan_state import GanState
from reposer.training.record import TrainingRecord

SAMPLE_TITLES = ("source", "target parsing", "generated", "target")


class GanRecord(TrainingRecord):
    """The run folder of a GAN training.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        data: training and validation pairs.
        notes: facts for environment.json.

    Raises:
        UserError: as TrainingRecord's.
    """

    counted = "pairs"
    wrote = "checkpoints/, samples/*.png, metrics.jsonl, config.json, environment.json"

    def __init__(
        self,
        config: GanConfig,
        folder: Path,
        runtime: Runtime,
        state: GanState,
        data: GanData,
        notes: dict[str, Any],
    ) -> None:
        self._config, self._state, self._data = config, state, data
        super().__init__(config, config.output, config.total_steps, folder, runtime, state, notes)
        shown = data.validation_pairs if len(data.validation_pairs) else data.pairs
        spread = np.linspace(0, len(shown) - 1, config.output.sample_pairs).astype(np.int64)  # many people
        self._sample_batch = data.batch(shown[np.unique(spread)])

    def begin(self) -> None:
        """Take the networks of ``start_from``, where it is told."""
        if self._config.start_from is not None:
            self._state.start_from(_newest(self._config.start_from))

    def inputs(self) -> dict[str, str]:
        """Prepared folder, pair lists, weights of the perceptual network, and what the run starts from."""
        perceptual = self._config.perceptual.path if self._config.feature_layers else None
        named = {} if perceptual is None else {"perceptual": sha256_file(perceptual)}
        if self._config.start_from is not None and checkpoint.latest(self.folder / "checkpoints") is None:
            named["start_from"] = sha256_file(_newest(self._config.start_from).path / "meta.json")
        return self._data.inputs() | named

    def facts(self) -> dict[str, Any]:
        """Image size and the people of the training."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}

    def show(self, last: bool) -> None:
        """See TrainingRecord."""
        if last or self._state.step % self._config.output.sample_every == 0:
            self.samples()

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
        self.write({"validation/l1": l1, "validation/mask_l1": mask_l1})

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
    found = checkpoint.of_run(run)
    if found is None:
        raise UserError(f"start_from={run}: there is no checkpoint", "name the folder of a training run")
    return found


def _pictures(images: Tensor) -> list[Any]:
    """(B, 3, H, W) uint8 -> B arrays (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).numpy())
