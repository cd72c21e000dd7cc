"""State that every training has: tensors of every process, and one network with its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reposer.runtime import Runtime
from reposer.storage.checkpoint import Checkpoint, TensorGroups
from reposer.storage.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer
from reposer.training.optimizers import RunningMeans

# ---- Helpers of the state objects: tensors of every process, names below a prefix, what changes the bits.


def gather(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """(world size, ...) on the CPU: the tensor of every process, in the order of their numbers."""
    if accelerator.num_processes == 1:
        return tensor[None].cpu()
    carried = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor  # gloo knows no bool
    gathered: Tensor = accelerator.gather(carried[None].to(accelerator.device).contiguous())
    return gathered.cpu().to(tensor.dtype)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's averages the layout of their weights: fused kernels read both in storage order."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def differences(meta: Mapping[str, Any], runtime: Runtime) -> list[str]:
    """What differs from the checkpoint with this ``meta`` in ways that change the bits, a line each."""
    return [
        f"{what}: {then} in the checkpoint, {now} here"
        for what, then, now in (
            ("torch", meta["torch"], str(torch.__version__)),
            ("threads", meta["threads"], runtime.threads),
            ("processes", meta["world_size"], runtime.world_size),
        )
        if then != now
    ]


# ---- What every training of one network has in its state, and how a checkpoint holds it.


class NetworkState:
    """Network, optimizer, unlogged means, random generators, and the step; subclasses make them."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    means: RunningMeans
    step: int  # optimizer steps done

    def pack(self, accelerator: Accelerator) -> tuple[TensorGroups, dict[str, Any]]:
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
