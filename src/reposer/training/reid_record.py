"""What a Re-ID training writes besides metrics and checkpoints; what it refuses to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reposer.losses.identity import pairwise_distance
from reposer.runtime import Runtime
from reposer.training.record import TrainingRecord
from reposer.training.reid_config import ReidConfig
from reposer.training.reid_data import ReidData
from reposer.training.reid_state import ReidState

_VALIDATION_BATCH, _VALIDATION_IMAGES = 64, 2000


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


class ReidRecord(TrainingRecord):
    """The run folder of a Re-ID training.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        data: training batches and validation images.
        notes: facts for environment.json.
        inputs: hashes of what the configuration names only by its place.

    Raises:
        UserError: as TrainingRecord's; or a generated set or teacher is not that of the run.
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
        self._config, self._state, self._data, self._given = config, state, data, inputs
        super().__init__(config, config.output, config.total_steps, folder, runtime, state, notes)

    def inputs(self) -> dict[str, str]:
        """Prepared folder, first weights, generated set and teacher."""
        return self._given

    def facts(self) -> dict[str, Any]:
        """The people of the training."""
        splits = self._config.data.splits
        facts = {"pids": self._data.pids.tolist(), "splits": list(splits)}
        return facts | self._data.people.training_facts(*splits)

    def validate(self) -> None:
        """A quick figure to watch, from held-out people unless ``output.held_out`` is false.

        CMC and mAP come from ``reposer reid evaluate``.
        """
        rows = self._data.validation[:_VALIDATION_IMAGES]
        if self._run is None or not len(rows) or not self._config.output.held_out:
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
            self.write({"validation/nearest_is_same": share})
