"""What a training keeps between steps, and how a step ends: optimizers, guards, averages, means, packing.

Everything that changes lives in one object, which a checkpoint holds exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reposer.errors import NonFiniteError, UserError
from reposer.runtime import Runtime
from reposer.storage.checkpoint import Checkpoint, TensorGroups, damage
from reposer.storage.paths import contained

# ---- State of modules, optimizers and random generators as (tensors, JSON), exactly and without pickle.
#
# What :mod:`reposer.storage.checkpoint` stores: one group of tensors and one entry of "meta" for each of
# them.

FOREIGN = "delete this checkpoint to go on from an older one, or start a new run"
RandomSource = torch.Generator | np.random.Generator | random.Random


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into ``module``; names, shapes and dtypes must be exactly those of its state dict.

    Raises:
        UserError: names the first missing, unexpected or differing key; the module is untouched.
    """
    expected = module.state_dict()
    kind, advice = type(module).__name__, "load it into the network of the configuration it was trained with"
    for name, tensor in expected.items():
        if name not in tensors:
            raise UserError(f"{kind}: {name} is missing from the checkpoint", advice)
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            have, want = (f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in (found, tensor))
            raise UserError(f"{kind}: {name} is {have} in the checkpoint and {want} in the network", advice)
    for name in tensors:
        if name not in expected:
            raise UserError(f"{kind}: the checkpoint holds {name}, which the network does not have", advice)
    module.load_state_dict(dict(tensors))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of any torch optimizer as (tensors, JSON); tensors are named ``<parameter index>.<key>``."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {"state": {}, "param_groups": []}
    for index, values in state["state"].items():
        tensors.update(
            {f"{index}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        )
        rest["state"][str(index)] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
    for number, group in enumerate(state["param_groups"]):
        tensors.update(
            {f"group{number}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
        )
        rest["param_groups"].append({k: v for k, v in group.items() if not isinstance(v, Tensor)})
    return tensors, rest


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Put the state of :func:`pack_optimizer` into an optimizer over the same parameters.

    Raises:
        UserError: other parameter groups or shapes.
    """
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["state"].items()}
    groups = [dict(group) for group in rest["param_groups"]]
    for name, tensor in tensors.items():
        owner, key = name.split(".", 1)
        target = groups[int(owner[5:])] if owner.startswith("group") else state[int(owner)]
        target[key] = tensor.clone()
    current = optimizer.param_groups
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in current]:
        raise UserError(
            "the checkpoint's optimizer has other parameter groups than this one", "use its configuration"
        )
    parameters = [p for group in current for p in group["params"]]
    for index, values in state.items():
        for key, value in values.items():
            scalar = key == "step"  # all else is of the parameter's shape
            if isinstance(value, Tensor) and value.shape != (() if scalar else parameters[index].shape):
                raise UserError(
                    f"optimizer state {index}.{key} has another shape than its parameter",
                    "use its configuration",
                )
    for group, now in zip(groups, current, strict=True):  # JSON has no tuples: betas must be one again
        group.update({k: tuple(v) for k, v in group.items() if isinstance(now.get(k), tuple)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def rng_state(sources: Mapping[str, RandomSource] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the global generators of torch (CPU, every GPU), numpy and python, and of ``sources``."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries still draw from it
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    rest: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, position, has_gauss, gauss],
        "sources": {},
    }
    if torch.cuda.is_available():
        tensors.update({f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    for key, source in (sources or {}).items():
        if isinstance(source, torch.Generator):
            tensors[f"source.{key}"] = source.get_state()
        else:
            is_numpy = isinstance(source, np.random.Generator)
            rest["sources"][key] = source.bit_generator.state if is_numpy else source.getstate()  # type: ignore[union-attr]
    return tensors, rest


def set_rng_state(
    tensors: Mapping[str, Tensor], rest: Mapping[str, Any], sources: Mapping[str, RandomSource] | None = None
) -> None:
    """Restore what :func:`rng_state` returned; the same named ``sources`` must be given."""
    torch.set_rng_state(tensors["torch"])
    name, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(_tupled(rest["python"]))
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
    for key, source in (sources or {}).items():
        if isinstance(source, torch.Generator):
            source.set_state(tensors[f"source.{key}"])
        elif isinstance(source, np.random.Generator):
            source.bit_generator.state = rest["sources"][key]
        else:
            source.setstate(_tupled(rest["sources"][key]))


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


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


def build_adam(
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
    factor: float = 1.0,
) -> torch.optim.Adam:
    """Adam with the fused kernel, which reads and writes each weight once (also on a CPU).

    Args:
        parameters: what learns.
        lr, betas, weight_decay: of Adam; the decay, times the weight, is added to the gradient.
        factor: of the learning rate that :func:`set_learning_rate` is given.
    """
    group: dict[str, Any] = {"params": list(parameters)} | ({} if factor == 1 else {"factor": factor})
    return torch.optim.Adam([group], lr=lr * factor, betas=betas, weight_decay=weight_decay, fused=True)


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
        self._sums: dict[str, Tensor] = {}  # name -> (2,) float32: sum, count

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
        if any(entry.shape != (2,) for entry in state.values()):
            raise ValueError("a mean is no sum and count")
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
            with damage(contained(checkpoint.path, f"{name}.safetensors"), FOREIGN):
                unpack_optimizer(optimizer, groups[name], meta[name])
            _match_layout(optimizer)
        self.step = checkpoint.step
        if meta["world_size"] == runtime.world_size:  # else the random generators start afresh
            with damage(checkpoint.path / "processes.safetensors", FOREIGN):
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
    if (runtime.device.type, runtime.precision) == ("cpu", "bfloat16"):
        _narrow_maps_in_float32(module)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(runtime.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _narrow_maps_in_float32(module: nn.Module) -> None:
    """Keep strided convolutions from bfloat16 where a map is one pixel wide.

    There the weights' gradient is read past the end of the map (torch 2.14 with oneDNN, processors with
    bfloat16 instructions): NaN, infinite or, worse, some number.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.stride[1] > 1:
            part.forward = partial(_by_width, part.forward)  # type: ignore[method-assign]


def _by_width(forward: Callable[..., Tensor], x: Any, *args: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.shape[-1] > 1:  # some of our own take maps in another form
        return forward(x, *args)
    with torch.autocast("cpu", enabled=False):
        return forward(x.float(), *args)


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
