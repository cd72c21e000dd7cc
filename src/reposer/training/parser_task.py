"""A parser's training: images to the maps that were given for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.data.parsing_scores import label_confusion, mean_iou
from reposer.files import sha256_file
from reposer.losses.segmentation import parsing_loss
from reposer.models.parsing_network import ParsingNetwork, load_imagenet
from reposer.runtime import Runtime
from reposer.structures import NUM_LABELS
from reposer.training.parsing_config import ParsingConfig
from reposer.training.parsing_data import ParsingData

_VALIDATION_BATCH = 64


class ParserTask:
    """A MapTask.

    Args:
        config: of the training.
        runtime: which process of how many this is.
    """

    def __init__(self, config: ParsingConfig, runtime: Runtime) -> None:
        self.config = config
        self._data = ParsingData(config, runtime.rank, runtime.world_size)
        self._initial: dict[str, str] = {}  # hash of the first weights' file

    @property
    def people(self) -> PackedPeople:
        """See MapTask."""
        return self._data.people

    @property
    def total_steps(self) -> int:
        """See MapTask."""
        return self._data.total_steps

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """See MapTask."""
        network = ParsingNetwork(**self.config.parser.model_dump())
        if self.config.initial == "random":
            return network, {"initial": "random weights"}
        file = load_imagenet(network, self.config.initial_path)
        self._initial = {"initial": sha256_file(file)}
        return network, {"initial": f"ImageNet weights {file.name}"}

    def rate_factor(self, parameter: str) -> float:
        """See MapTask."""
        return self.config.optimizer.encoder_factor if parameter.startswith("encoder.") else 1.0

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """See MapTask."""
        images, maps, names = self._data.batch(step)
        with runtime.autocast():
            scores = network(images.to(runtime.device))
        weights = self.config.loss
        loss, parts = parsing_loss(scores, maps.to(runtime.device), weights.cross_entropy, weights.dice)
        return loss, parts, names

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """See MapTask: agreement with the maps of the people who are held out."""
        rows, most = self._data.tuning, self.config.output.validation_images
        if not len(rows):
            return {}
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        for start in range(0, len(rows), _VALIDATION_BATCH):
            images, maps = self._data.read(rows[start : start + _VALIDATION_BATCH])
            with torch.inference_mode(), runtime.autocast():
                predicted = network(images.to(runtime.device)).argmax(1).to(torch.uint8).cpu()
            confusion += label_confusion(maps.numpy(), predicted.numpy())
        accuracy = float(np.trace(confusion) / max(confusion.sum(), 1))
        return {"validation/miou": mean_iou(confusion), "validation/accuracy": accuracy}

    def inputs(self) -> dict[str, str]:
        """See MapTask."""
        return {"prepared": self._data.people.content_hash} | self._initial

    def facts(self) -> dict[str, Any]:
        """See MapTask."""
        people = self._data.people
        return {
            "pids": self._data.pids.tolist(),
            **people.training_facts(*self.config.data.splits),
            "size": list(people.size),
        }
