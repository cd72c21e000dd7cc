"""Everything that changes during the training of a network of maps; a checkpoint holds exactly this."""

from __future__ import annotations

import torch
from torch import nn

from reposer.runtime import Runtime
from reposer.training.map_task import MapTask
from reposer.training.network_state import NetworkState
from reposer.training.running_means import RunningMeans


class ParsingState(NetworkState):
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
