"""state: training goes on bit for bit after a round trip through a checkpoint; wrong shapes are named."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.storage.checkpoint import load, save
from reposer.training.state import load_into, pack_optimizer, rng_state, set_rng_state, unpack_optimizer

Build = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2, betas=(0.5, 0.999)),
    "adam amsgrad": lambda groups: torch.optim.Adam(groups, lr=1e-2, amsgrad=True),
    "adam fused": lambda groups: torch.optim.Adam(groups, lr=1e-2, fused=True),
    "adam tensor lr": lambda groups: torch.optim.Adam(groups, lr=torch.tensor(1e-2), foreach=False),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "sgd momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
}


def _network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 2, 1))


def _groups(network: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": network[0].parameters()}, {"params": network[4].parameters(), "lr": 3e-3}]


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.9  # a schedule


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("stops", [[0], [1], [3], [1, 2, 4]])
def test_training_goes_on_bit_for_bit(tmp_path: Path, build: Build, stops: list[int]) -> None:
    network = _network()
    _train(network, build_of(build, network), 6)
    reference = copy.deepcopy(network.state_dict())
    follow_up = torch.rand(4)

    network = _network()
    optimizer = build_of(build, network)
    done = 0
    for stop in stops:
        _train(network, optimizer, stop - done)
        done = stop
        tensors, rest = pack_optimizer(optimizer)
        rng, rng_rest = rng_state()
        groups = {"network": network.state_dict(), "optimizer": tensors, "rng": rng}
        path = save(tmp_path, stop, groups, {"config_hash": "", "optimizer": rest, "rng": rng_rest})

        network = _network()
        optimizer = build_of(build, network)
        _train(network, optimizer, 1)  # leaves a state that must be replaced whole
        torch.rand(stop + 5)
        found = load(path)
        load_into(network, found.groups["network"])
        unpack_optimizer(optimizer, found.groups["optimizer"], found.meta["optimizer"])
        set_rng_state(found.groups["rng"], found.meta["rng"])
    _train(network, optimizer, 6 - done)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, reference[name]), name
    assert torch.equal(torch.rand(4), follow_up)


def build_of(build: Build, network: nn.Sequential) -> torch.optim.Optimizer:
    return build(_groups(network))


def test_packed_optimizer_is_tensors_and_json_and_a_copy_when_unpacked() -> None:
    network = _network()
    optimizer = build_of(OPTIMIZERS["adam"], network)
    _train(network, optimizer, 2)
    tensors, rest = pack_optimizer(optimizer)
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
    assert json.loads(json.dumps(rest))["param_groups"][0]["betas"] == [0.5, 0.999]
    other = _network()
    fresh = build_of(OPTIMIZERS["adam"], other)
    unpack_optimizer(fresh, tensors, json.loads(json.dumps(rest)))
    assert fresh.param_groups[0]["betas"] == (0.5, 0.999)
    assert isinstance(fresh.param_groups[0]["betas"], tuple)
    before = tensors["0.exp_avg"].clone()
    _train(other, fresh, 1)
    assert torch.equal(tensors["0.exp_avg"], before)


def test_another_optimizer_is_refused() -> None:
    network = _network()
    optimizer = build_of(OPTIMIZERS["adam"], network)
    _train(network, optimizer, 1)
    tensors, rest = pack_optimizer(optimizer)
    with pytest.raises(UserError, match="other parameter groups"):
        unpack_optimizer(torch.optim.Adam(network.parameters()), tensors, rest)
    with pytest.raises(UserError, match=r"optimizer state 0.exp_avg has another shape than its parameter"):
        unpack_optimizer(optimizer, {**tensors, "0.exp_avg": torch.zeros(5)}, rest)


def _draws(sources: dict[str, Any]) -> list[Any]:
    return [
        *(torch.rand(3).tolist(), torch.randn(3).tolist()),
        *(np.random.rand(3).tolist(), np.random.randn()),  # noqa: NPY002
        *(random.random(), random.gauss(0, 1)),
        torch.rand(3, generator=sources["torch"]).tolist(),
        [
            sources["numpy"].normal(),
            int(sources["numpy"].integers(2**62)),
            float(sources["numpy"].random(dtype=np.float32)),
        ],
        [sources["python"].random(), sources["python"].gauss(0, 1)],
    ]


@pytest.mark.parametrize("before", [0, 1, 7])
def test_every_random_generator_goes_on(tmp_path: Path, before: int) -> None:
    def sources() -> dict[str, Any]:
        return {
            "torch": torch.Generator().manual_seed(1),
            "numpy": np.random.default_rng(2),
            "python": random.Random(3),
        }

    np.random.seed(4)  # noqa: NPY002 - begins without a normal draw in store
    random.seed(5)
    used = sources()
    for _ in range(before):
        _draws(used)  # an odd number of normal draws leaves one in store (Box-Muller)
    tensors, rest = rng_state(used)
    path = save(tmp_path, before, {"rng": tensors}, {"config_hash": "", "rng": rest})
    expected = [_draws(used) for _ in range(3)]
    fresh = sources()
    found = load(path)
    set_rng_state(found.groups["rng"], found.meta["rng"], fresh)
    assert [_draws(fresh) for _ in range(3)] == expected


def _spoil(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "4.weight"
    if kind == "missing":
        del state[name]
    elif kind == "unexpected":
        state["5.weight"] = torch.zeros(1)
    elif kind == "shape":
        state[name] = torch.zeros(2, 4, 3, 3)
    elif kind == "broadcastable":
        state[name] = torch.zeros(2, 4, 1, 1).expand(2, 4, 1, 1)[:1]
    else:
        state[name] = state[name].double()
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "Sequential: 4.weight is missing from the checkpoint"),
        ("unexpected", "Sequential: the checkpoint holds 5.weight, which the network does not have"),
        (
            "shape",
            r"4.weight is \(2, 4, 3, 3\) float32 in the checkpoint and \(2, 4, 1, 1\) float32 in the network",
        ),
        ("broadcastable", r"4.weight is \(1, 4, 1, 1\)"),
        ("dtype", r"4.weight is \(2, 4, 1, 1\) float64 in the checkpoint and \(2, 4, 1, 1\) float32"),
    ],
)
def test_load_into_names_the_first_difference_and_changes_nothing(kind: str, message: str) -> None:
    network = _network()
    before = copy.deepcopy(network.state_dict())
    other = {name: tensor + 1 for name, tensor in before.items()}
    with pytest.raises(UserError, match=message):
        load_into(network, _spoil(kind, other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_load_into_copies_values_and_keeps_the_memory_format() -> None:
    network = _network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = {
        name: torch.rand_like(t) if t.is_floating_point() else t + 5
        for name, t in _network().state_dict().items()
    }
    load_into(network, source)
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.state_dict().items())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    source["0.weight"].zero_()
    assert network[0].weight.abs().sum() > 0
