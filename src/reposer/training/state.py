"""What a training keeps between steps, and how a step ends: optimizers, guards, averages, means, packing.

Everything that changes lives in one object, which a checkpoint holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reposer.errors import NonFiniteError
from reposer.runtime import Runtime
from reposer.storage.checkpoint import Checkpoint, TensorGroups
from reposer.storage.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer

# ---- Optimizers, and the guard that stops before a non-finite update.


class NonFiniteStepError(NonFiniteError):
    """A loss or a gradient is NaN or infinite; raised before any weight is touched.

    Attributes:
        quantity: the loss or gradient by name.
        step: optimizer steps completed before.
        pairs: names of the images in this process's part of the batch, "source -> target".
    """

    def __init__(self, quantity: str, step: int, pairs: Sequence[str]) -> None:
        super().__init__(
            f"step {step}: {quantity} is not finite; batch: {', '.join(pairs)}",
            "nothing was updated or saved; look at these images or lower optimizer.lr",
        )
        self.quantity, self.step, self.pairs = quantity, step, tuple(pairs)


def build_adam(parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam with the fused kernel, which reads and writes each weight once (also on a CPU)."""
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of ``optimizer`` the learning rate, times the group's ``factor`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm of all gradients of ``module``, a scalar: not finite if any gradient is not."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def check_finite(quantities: Mapping[str, Tensor], step: int, pairs: Sequence[str]) -> None:
    """Refuse to go on where a quantity is NaN or infinite; one transfer from the device for all of them.

    Raises:
        NonFiniteStepError: naming the first such quantity.
    """
    values = torch.stack([value.detach().float() for value in quantities.values()]).tolist()
    for name, value in zip(quantities, values, strict=True):
        if not math.isfinite(value):
            raise NonFiniteStepError(name, step, pairs)


# ---- The averaged generator: an exponential moving average of weights and BatchNorm statistics, with a
# warm-up.
#
# The average is torch's own (AveragedModel with get_ema_multi_avg_fn). Buffers are averaged like weights: the
# running statistics of a BatchNorm must belong to the averaged weights, not to those of the last step.


def warmed_up_decay(decay: float, updates: int) -> float:
    """The decay used after ``updates`` earlier updates: min(decay, (1 + n) / (10 + n)).

    Without it a run of a few hundred steps would still carry its random start: 0.999^500 = 0.6.
    """
    return min(decay, (1 + updates) / (10 + updates))


def build_ema(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``module`` in eval mode that ``update_parameters(module)`` moves towards it.

    Args:
        module: the bare network (not wrapped for several processes).
        decay: weight of the old average in the long run, in [0, 1).
    """

    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        blend: Any = get_ema_multi_avg_fn(warmed_up_decay(decay, int(updates)))  # type: ignore[no-untyped-call]
        blend(averaged, current, updates)

    ema = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    ema.requires_grad_(False)
    return ema.eval()


# ---- Means of a training's figures since the last line of its log, kept on the device: no transfer in a
# step.


class RunningMeans:
    """Sums of named scalars; part of the training's state, so that a resumed run logs the same lines."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> (2,) float64 on the CPU or float32: sum, count

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one more value of each name (detached scalars)."""
        for name, value in values.items():
            entry = torch.stack([value.float(), torch.ones((), device=value.device)])
            self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def means(self) -> dict[str, Tensor]:
        """The mean of each name, scalars."""
        return {name: entry[0] / entry[1] for name, entry in self._sums.items()}

    def clear(self) -> None:
        """Start again."""
        self._sums = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Sum and count of each name, (2,)."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Put back what ``state_dict`` returned."""
        self._sums = {name: entry.to(device) for name, entry in state.items()}


# ---- Everything that changes during a training, in one object.


class TrainingState:
    """Networks, optimizers, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation, which are functions of
    it. The networks are the bare ones: what Accelerate or DDP wraps around them is not saved.

    Args:
        networks: by the name of their group in a checkpoint.
        optimizers: by the name of their group and entry in a checkpoint.
        sources: random generators besides the global ones.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        sources: Mapping[str, torch.Generator] | None = None,
    ) -> None:
        self.networks, self.optimizers, self._sources = dict(networks), dict(optimizers), dict(sources or {})
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done

    def update(self, title: str, name: str, parts: Mapping[str, Tensor], images: Sequence[str]) -> None:
        """Let the only network, or the one of ``name``, learn from its gradients.

        Args:
            title: of the gradient in an error.
            name: of the network.
            parts: figures of the loss.
            images: names of this process's part of the batch.

        Raises:
            NonFiniteStepError: a figure or a gradient is NaN or infinite; nothing is updated.
        """
        optimizer = self.optimizers["optimizer" if name == "network" else f"{name}_optimizer"]
        gradient = gradient_norm(self.networks[name])
        check_finite({**parts, f"{title}/gradient": gradient}, self.step, images)
        optimizer.step()
        optimizer.zero_grad()

    def pack(self, accelerator: Accelerator) -> tuple[TensorGroups, dict[str, Any]]:
        """Tensors by group, and JSON values. A collective call: every process must make it."""
        rng, rng_rest = rng_state(self._sources)
        own = {f"rng.{k}": v for k, v in rng.items()} | self.own_tensors()
        own |= {f"means.{k}": v for k, v in self.means.state_dict().items()}
        groups = {name: network.state_dict() for name, network in self.networks.items()}
        meta: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            groups[name], meta[name] = pack_optimizer(optimizer)
        groups["processes"] = {name: _gather(tensor, accelerator) for name, tensor in own.items()}
        return groups, meta | {"rng": rng_rest, "world_size": accelerator.num_processes}

    def restore(self, checkpoint: Checkpoint, runtime: Runtime) -> list[str]:
        """Go back to a checkpoint, bit for bit; returns what differs from it in ways that change the bits.

        Raises:
            UserError: the checkpoint belongs to other networks.
        """
        groups, meta = checkpoint.groups, checkpoint.meta
        for name, network in self.networks.items():
            load_into(network, groups[name])
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, groups[name], meta[name])
            _match_layout(optimizer)
        self.step = checkpoint.step
        if meta["world_size"] == runtime.world_size:  # else the random generators start afresh
            # clone: torch.set_rng_state reads a view from the start of its storage
            own = {name: tensor[runtime.rank].clone() for name, tensor in groups["processes"].items()}
            set_rng_state(below("rng.", own), meta["rng"], self._sources)
            self.load_own_tensors(own, runtime.device)
            self.means.load_state_dict(below("means.", own), runtime.device)
        return _differences(meta, runtime)

    def own_tensors(self) -> dict[str, Tensor]:
        """What each process has for itself besides random generators and means; subclasses say."""
        return {}

    def load_own_tensors(self, own: Mapping[str, Tensor], device: torch.device) -> None:
        """Put back what ``own_tensors`` returned; ``own`` holds more."""


def place(module: nn.Module, runtime: Runtime, channels_last: bool = True) -> nn.Module:
    """On the device, in the memory layout; BatchNorm over all processes on GPUs (there is none for CPUs)."""
    if runtime.world_size > 1 and runtime.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(runtime.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def wrap(network: nn.Module, runtime: Runtime, compiled: bool = False, unused: bool = False) -> nn.Module:
    """The network as a step calls it: compiled where asked for, and wrapped for several processes.

    Args:
        network: the bare one.
        runtime: device and process group.
        compiled: by torch.compile.
        unused: some parameters may get no gradient.
    """
    if compiled:
        network.compile()
    # DDP would copy BatchNorm buffers between processes before each forward pass, and autograd refuses that
    # where a network is called twice. SyncBatchNorm keeps them equal on GPUs; on CPUs the first process's are
    # saved.
    runtime.accelerator.ddp_handler = DistributedDataParallelKwargs(
        broadcast_buffers=False, find_unused_parameters=unused
    )
    wrapped: nn.Module = runtime.accelerator.prepare(network)
    return wrapped


# ---- Tensors of every process, names below a prefix, what changes the bits.


def _gather(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """(world size, ...) on the CPU: the tensor of every process, in the order of their numbers."""
    if accelerator.num_processes == 1:
        return tensor[None].cpu()
    carried = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor  # gloo knows no bool
    gathered: Tensor = accelerator.gather(carried[None].to(accelerator.device).contiguous())
    return gathered.cpu().to(tensor.dtype)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's averages the layout of their weights: fused kernels read both in storage order."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _differences(meta: Mapping[str, Any], runtime: Runtime) -> list[str]:
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
