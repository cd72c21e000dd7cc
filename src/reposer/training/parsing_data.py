"""The batches of a parser's training by step, and the people who are only watched."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.packed import PackedPeople
from reposer.data.parsing_transforms import draw_parsing_transforms, transform_parsing
from reposer.data.reid_samplers import draw_images
from reposer.data.samplers import rank_slice
from reposer.errors import UserError
from reposer.structures import MISSING_LABEL
from reposer.training.parsing_config import ParsingConfig


class ParsingData:
    """A prepared folder as training batches of images and maps; images without a map are left out.

    Args:
        config: names the folder, the people and the augmentation.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: no prepared folder, no map, nobody left to train on, or a batch that cannot be shared.
    """

    def __init__(self, config: ParsingConfig, rank: int = 0, world_size: int = 1) -> None:
        self.people = PackedPeople.open(config.data.folder / "packed")
        rows = np.flatnonzero(np.isin(self.people.splits, config.data.splits))
        rows = rows[[bool((self.people.parsing[row] != MISSING_LABEL).any()) for row in rows]]
        pids = np.unique(self.people.pids[rows])
        held = config.data.tuning_people
        if len(pids) <= held:
            problem = f"{len(pids)} people with maps in {', '.join(config.data.splits)}, {held} to hold out"
            raise UserError(f"{config.data.folder}: {problem}", "prepare a data set with parsing maps")
        tuning = np.isin(self.people.pids[rows], pids[len(pids) - held :])
        self.rows: NDArray[np.int64] = rows[~tuning]
        self.tuning: NDArray[np.int64] = rows[tuning]
        self.pids: NDArray[np.int64] = pids[: len(pids) - held]
        if config.batch_size % world_size:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {world_size} processes",
                f"make it a multiple of {world_size}",
            )
        self._config = config
        self._part = rank_slice(config.batch_size, rank, world_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return -int(-self._config.optimizer.epochs * len(self.rows) // self._config.batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images (b, 3, H, W) uint8, maps (b, H, W) uint8 and names of this process in a step."""
        config, augment = self._config, self._config.augment
        rows = self.rows[draw_images(len(self.rows), config.batch_size, config.seed, step)][self._part]
        draws = draw_parsing_transforms(
            config.batch_size, augment.zoom, augment.shift, augment.flip, augment.light, config.seed, step
        )[self._part]
        images, maps = transform_parsing(*self.read(rows), draws)
        return images, maps, [self.people.names[row] for row in rows]

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(b, 3, H, W) uint8 and (b, H, W) uint8 as they are stored."""
        images = torch.from_numpy(np.take(self.people.images, rows, axis=0)).permute(0, 3, 1, 2)
        return images, torch.from_numpy(np.take(self.people.parsing, rows, axis=0))
