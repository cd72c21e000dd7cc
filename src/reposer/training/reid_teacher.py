"""A finished Re-ID training as the teacher of another: its opinion on whom a generated image shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer import checkpoint
from reposer.config import load_config
from reposer.errors import UserError
from reposer.files import sha256_file
from reposer.images import resize
from reposer.runtime import Runtime
from reposer.state import load_into
from reposer.structures import ReidBatch
from reposer.training.reid_config import ReidConfig
from reposer.training.reid_state import build_network


class Teacher:
    """The network of a run's newest checkpoint, frozen, in eval mode.

    Args:
        run_dir: of a Re-ID training of the same people, without an extra class.
        pids: (K,) of the classes of the training that it shall teach.
        runtime: device.

    Raises:
        UserError: no run, no checkpoint, an extra class, or other people.
    """

    def __init__(self, run_dir: Path, pids: NDArray[np.int64], runtime: Runtime) -> None:
        config = load_config(ReidConfig, run_dir / "config.json")
        found = checkpoint.of_run(run_dir)
        if found is None:
            raise UserError(f"{run_dir}: has no checkpoint yet", "train longer, or choose another teacher")
        if found.meta.get("pids") != pids.tolist():
            theirs = len(found.meta.get("pids", []))
            raise UserError(
                f"{run_dir}: knows {theirs} people, not the same {len(pids)} that are trained on",
                "choose a teacher trained on the same people",
            )
        if config.generated.label == "extra_class":
            raise UserError(f"{run_dir}: has an extra class for generated images", "choose another teacher")
        network = build_network(config, len(pids))
        load_into(network, found.groups["network"])
        self._network = network.to(runtime.device).eval().requires_grad_(False)
        self._size = config.augment.crop
        self.content_hash = sha256_file(found.path / "network.safetensors")

    def logits(self, batch: ReidBatch) -> Tensor:
        """(B, K) for a batch on the device: of generated images what the teacher says, of real ones 0."""
        result = torch.zeros((len(batch), self._network.classifier.out_features), device=batch.image.device)
        if batch.generated.any():
            with torch.no_grad():
                images = resize(batch.image[batch.generated], self._size)
                feature = self._network.embedding.features(images).feature
                result[batch.generated] = self._network.classifier(feature).float()
        return result
