"""Everything that changes during the training of a network of maps; a checkpoint holds exactly this."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from reposer.checkpoint import Checkpoint, Groups
from reposer.runtime import Runtime
from reposer.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.training.map_task import MapTask
from reposer.training.process_state import below, differences, gather, match_layout
from reposer.training.running_means import RunningMeans


class ParsingState:
    """Network, optimizer, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation.

    Args:
        task: makes the network, knows the learning rates.
        runtime: device and process group.

    Attributes:
        notes: facts about the first weights.
    """

    def __init__(self, task: MapTask, runtime: Runtime) -> None:
        network, self.notes = task.build()
        if runtime.world_size > 1 and runtime.device.type == "cuda":  # there is none for CPUs
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network: nn.Module = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _build_optimizer(self.network, task)
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done

    def set_rate(self, rate: float) -> None:
        """Give every group the rate times its factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

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


def _build_optimizer(network: nn.Module, task: MapTask) -> torch.optim.Optimizer:
    """AdamW; two groups for each learning rate, slowest first: biases and norms, without decay; the rest."""
    options = task.config.optimizer
    named = [(task.rate_factor(name), parameter) for name, parameter in network.named_parameters()]
    groups = []
    for factor in sorted({factor for factor, _ in named}):
        for small in (True, False):
            chosen = [p for rate, p in named if rate == factor and (p.dim() < 2) == small]
            decay = 0.0 if small else options.weight_decay
            groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)
