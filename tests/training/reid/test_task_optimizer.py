"""Parameter groups and the learning rate of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from reposer.models.embedding import Embedding, ReidNetwork
from reposer.training.reid.config import ReidConfig, ReidDataConfig, ReidOptimizerConfig, ReidScheduleConfig
from reposer.training.reid.task import build_optimizer
from reposer.training.state import set_learning_rate


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_every_parameter_has_its_factor_and_decay(kind):
    network = ReidNetwork(Embedding("small"), classes=3)
    config = ReidOptimizerConfig(kind=kind, lr=0.5, backbone_factor=0.1, bias_factor=2.0, bias_decay=False)
    optimizer = build_optimizer(network, config)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = {
        "embedding.backbone.stem.0.weight": (0.05, 5e-4),
        "embedding.backbone.stem.1.weight": (0.1, 0),
        "embedding.neck.weight": (1.0, 0),
        "classifier.weight": (0.5, 5e-4),
        "classifier.bias": (1.0, 0),
    }
    named = dict(network.named_parameters())
    for name, pair in expected.items():
        assert rates[id(named[name])] == pytest.approx(pair), name
    trained = {id(p) for p in named.values() if p.requires_grad}
    assert set(rates) == trained
    assert id(named["embedding.neck.bias"]) not in rates


def test_only_the_classifiers_bias_has_its_own_factor_and_decay():
    network = ReidNetwork(Embedding("small"), classes=3)
    config = ReidOptimizerConfig(kind="sgd", lr=0.5, bias_factor=2.0, bias_decay=False, biases="classifier")
    optimizer = build_optimizer(network, config)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    special = id(network.classifier.bias)
    assert rates.pop(special) == (1.0, 0)
    assert set(rates.values()) == {(0.5, 5e-4)}  # norms and all weights


def test_a_half_cosine_after_the_warm_up():
    config = ReidConfig(
        data=ReidDataConfig(folder=Path("x"), images_per_epoch=640),
        optimizer=ReidOptimizerConfig(lr=1.0),
        schedule=ReidScheduleConfig(epochs=11, warmup_epochs=1, warmup_factor=0.2, decay="cosine"),
    )
    assert config.total_steps == 110
    rates = [config.rate(step, config.total_steps) for step in (0, 5, 10, 60, 110)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 0.5, 0.0])
