"""A predictor's training: pairs of one person to the target's maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.data.parsing_scores import label_confusion, mean_iou
from reposer.losses.segmentation import parsing_loss, person_loss
from reposer.models.generators import build_predictor
from reposer.models.parsing_predictor import decide_maps
from reposer.runtime import Runtime
from reposer.structures import NUM_LABELS
from reposer.training.gan_data import GanData
from reposer.training.predictor_config import PredictorConfig

_VALIDATION_BATCH = 64
DICE_SMOOTHING = 1.0  # pixels; rsa_gan.md's form of Dice


class PredictorTask:
    """A MapTask.

    Args:
        config: of the training.
        runtime: which process of how many this is.
    """

    def __init__(self, config: PredictorConfig, runtime: Runtime) -> None:
        self.config = config
        self._data = GanData(config, runtime.rank, runtime.world_size)

    @property
    def people(self) -> PackedPeople:
        """See MapTask."""
        return self._data.people

    @property
    def total_steps(self) -> int:
        """See MapTask."""
        return self.config.total_steps

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """See MapTask."""
        network = build_predictor(self.config.predictor, **self.config.predictor_args)
        return network, {"initial": "random weights"}

    def rate_factor(self, parameter: str) -> float:
        """See MapTask."""
        return 1.0

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """See MapTask."""
        (part,) = self._data.parts(step)
        batch = part.batch.to(runtime.device)
        with runtime.autocast():
            scores = network(batch)
        weights = self.config.loss
        loss, parts = parsing_loss(
            scores.parsing, batch.target_parsing, weights.cross_entropy, weights.dice, DICE_SMOOTHING
        )
        person = person_loss(scores.mask, batch.target_mask)
        return loss + weights.mask * person, parts | {"parsing/mask": person.detach()}, list(part.names)

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """See MapTask: agreement with the true maps of the validation pairs."""
        pairs, most = self._data.validation_pairs, self.config.output.validation_images
        if not len(pairs):
            return {}
        pairs = pairs[np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        both = either = 0
        for start in range(0, len(pairs), _VALIDATION_BATCH):
            batch = self._data.batch(pairs[start : start + _VALIDATION_BATCH])
            with torch.inference_mode(), runtime.autocast():
                parsing, mask = (x.cpu() for x in decide_maps(network(batch.to(runtime.device))))
            confusion += label_confusion(batch.target_parsing.numpy(), parsing.numpy())
            both += int((mask & batch.target_mask).sum())
            either += int((mask | batch.target_mask).sum())
        return {"validation/miou": mean_iou(confusion), "validation/mask_iou": both / max(either, 1)}

    def inputs(self) -> dict[str, str]:
        """See MapTask."""
        return self._data.inputs()

    def facts(self) -> dict[str, Any]:
        """See MapTask."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}
