"""Everything that changes during a Re-ID training; its optimizer, its teacher, what it writes."""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.config import load_config
from reposer.errors import UserError
from reposer.images import resize
from reposer.losses.identity import center_step, pairwise_distance
from reposer.models.embedding import Embedding, ReidNetwork
from reposer.runtime import Runtime
from reposer.storage import checkpoint
from reposer.storage.files import sha256_file
from reposer.storage.state import load_into
from reposer.structures import ReidBatch
from reposer.training.optimizers import RunningMeans
from reposer.training.record import RunWriter
from reposer.training.reid.config import ReidConfig, ReidOptimizerConfig
from reposer.training.reid.data import ReidData
from reposer.training.state import NetworkState

# ---- The optimizer of a Re-ID training: groups of parameters with their factors, and the rate of a step.


def build_optimizer(network: ReidNetwork, config: ReidOptimizerConfig) -> torch.optim.Optimizer:
    """SGD or Adam over four groups: backbone and heads, weights and (biases, norms) or the classifier's bias.

    Each group carries its "factor": its rate is the schedule's times that.
    """
    groups = []
    alone = id(network.classifier.bias)
    backbone = {id(p) for p in network.embedding.backbone.parameters()}
    for in_backbone in (True, False):
        for small in (False, True):  # vectors are biases and norms
            own_rate = (
                (lambda p: id(p) == alone) if config.biases == "classifier" else (lambda p: p.dim() < 2)
            )
            chosen = [
                p
                for p in network.parameters()
                if p.requires_grad and (id(p) in backbone) == in_backbone and own_rate(p) == small
            ]
            factor = (config.backbone_factor if in_backbone else 1.0) * (config.bias_factor if small else 1.0)
            decay = config.weight_decay if config.bias_decay or not small else 0.0
            if chosen:
                groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    if config.kind == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def scheduled_rate(step: int, config: ReidConfig) -> float:
    """Learning rate of the update after ``step`` completed ones: a pure function of the step.

    Warm-up: from warmup_factor in a straight line to 1 over the warm-up's steps. Then either gamma for every
    milestone passed, or a half cosine over the remaining steps, which would reach 0 at the last.
    """
    schedule = config.schedule
    warmup, total = config.steps_of(schedule.warmup_epochs), config.total_steps
    if step < warmup:
        return config.optimizer.lr * (schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup)
    if schedule.decay == "cosine":
        return config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    passed = bisect_right([config.steps_of(epoch) for epoch in sorted(schedule.milestones)], step)
    return float(config.optimizer.lr * schedule.gamma**passed)


# ---- Everything that changes during a Re-ID training, in one object; a checkpoint holds exactly this.


def build_network(config: ReidConfig, people: int) -> ReidNetwork:
    """The network of a training on so many people, with new weights."""
    embedding, head = Embedding(**config.embedding.model_dump()), config.head
    verification = head.verification if config.loss.verification else None
    classes = people + (config.generated.label == "extra_class")
    network = ReidNetwork(
        *(embedding, classes, head.dropout, head.bias, verification), centers=config.loss.center > 0
    )
    if network.verifier is not None and head.verifier_std is not None:
        nn.init.normal_(network.verifier.weight, std=head.verifier_std)
        nn.init.zeros_(network.verifier.bias)
    return network


class ReidState(NetworkState):
    """Network, optimizer, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation, which are functions of
    it.

    Args:
        config: sizes, seeds, learning rates.
        runtime: device and process group.
        people: number of training people.
    """

    network: ReidNetwork

    def __init__(self, config: ReidConfig, runtime: Runtime, people: int) -> None:
        network: nn.Module = build_network(config, people)
        if runtime.world_size > 1 and runtime.device.type == "cuda":  # there is none for CPUs
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        assert isinstance(network, ReidNetwork)
        self.network = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done
        torch.manual_seed(config.seed + runtime.rank)  # processes draw different dropout masks

    def move_centers(self, pooled: Tensor, batch: ReidBatch, rate: float, accelerator: Accelerator) -> None:
        """A step of the class centers, where there are some, by the features (B, D) that their loss saw."""
        centers = self.network.centers
        if centers is not None:
            step = center_step(pooled.detach(), batch.label, batch.weight * batch.known, centers)
            centers.add_(accelerator.reduce(step, "mean"), alpha=rate)


# ---- What a Re-ID training writes besides metrics and checkpoints; what it refuses to resume.

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


class ReidWriter(RunWriter):
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
        UserError: as RunWriter's; or a generated set or teacher is not that of the run.
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


# ---- A finished Re-ID training as the teacher of another: its opinion on whom a generated image shows.


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
