"""Helpers of the state objects: tensors of every process, names below a prefix, what changes the bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from reposer.runtime import Runtime


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
