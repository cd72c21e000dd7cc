"""State of modules, optimizers and random generators as (tensors, JSON), exactly and without pickle.

What :mod:`reposer.storage.checkpoint` stores: one group of tensors and one entry of "meta" for each of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reposer.errors import UserError

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
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
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
