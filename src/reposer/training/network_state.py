"""What every training of one network has in its state, and how a checkpoint holds it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from reposer.checkpoint import Checkpoint, Groups
from reposer.runtime import Runtime
from reposer.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.training.process_state import below, differences, gather, match_layout
from reposer.training.running_means import RunningMeans


class NetworkState:
    """Network, optimizer, unlogged means, random generators, and the step; subclasses make them."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    means: RunningMeans
    step: int  # optimizer steps done

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
