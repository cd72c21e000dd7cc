"""Everything that changes during a Re-ID training, in one object; a checkpoint holds exactly this."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reposer.checkpoint import Checkpoint, Groups
from reposer.losses.identity import center_step
from reposer.models.embedding import Embedding
from reposer.models.reid_network import ReidNetwork
from reposer.runtime import Runtime
from reposer.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.structures import ReidBatch
from reposer.training.process_state import below, differences, gather, match_layout
from reposer.training.reid_config import ReidConfig
from reposer.training.reid_optimizer import build_optimizer
from reposer.training.running_means import RunningMeans


def build_network(config: ReidConfig, people: int) -> ReidNetwork:
    """The network of a training on so many people, with new weights."""
    embedding, head = Embedding(**config.embedding.model_dump()), config.head
    verification = head.verification if config.loss.verification else None
    classes = people + (config.generated.label == "extra_class")
    return ReidNetwork(
        *(embedding, classes, head.dropout, head.bias, verification), centers=config.loss.center > 0
    )


class ReidState:
    """Network, optimizer, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation, which are functions of
    it.

    Args:
        config: sizes, seeds, learning rates.
        runtime: device and process group.
        people: number of training people.
    """

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

    def pack(self, accelerator: Accelerator) -> tuple[Groups, dict[str, Any]]:
        """Tensors by group, and JSON values. A collective call: every process must make it."""
        rng, rng_rest = rng_state()
        own = {f"rng.{k}": v for k, v in rng.items()}
        own |= {f"means.{k}": v for k, v in self.means.state_dict().items()}
        optimizer, optimizer_rest = pack_optimizer(self.optimizer)
        groups = {
            "network": self.network.state_dict(),
            "optimizer": optimizer,
            "processes": {name: gather(tensor, accelerator) for name, tensor in own.items()},
        }
        world_size = accelerator.num_processes
        return groups, {"optimizer": optimizer_rest, "rng": rng_rest, "world_size": world_size}

    def restore(self, checkpoint: Checkpoint, runtime: Runtime) -> list[str]:
        """Go back to a checkpoint, bit for bit; returns what differs from it in ways that change the bits.

        Raises:
            UserError: the checkpoint belongs to another network.
        """
        groups, meta = checkpoint.groups, checkpoint.meta
        load_into(self.network, groups["network"])
        unpack_optimizer(self.optimizer, groups["optimizer"], meta["optimizer"])
        match_layout(self.optimizer)
        self.step = checkpoint.step
        if meta["world_size"] == runtime.world_size:  # else the random generators start afresh
            own = {name: tensor[runtime.rank] for name, tensor in groups["processes"].items()}
            set_rng_state(below("rng.", own), meta["rng"])
            self.means.load_state_dict(below("means.", own), runtime.device)
        return differences(meta, runtime)
