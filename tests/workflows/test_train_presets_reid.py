"""The recipes say what their papers say."""

from __future__ import annotations

import pytest

from reposer.config import load_config, save_config
from reposer.models.embedding import Embedding
from reposer.training.reid.config import ReidConfig, ReidLossConfig
from reposer.training.reid.task import build_network
from reposer.workflows.train import REID_PRESETS, bot, ide2016, reid_small, siamese2017, siamese_small


@pytest.mark.parametrize("name", REID_PRESETS)
def test_a_preset_survives_its_file_and_builds_its_network(name, tmp_path):
    config = REID_PRESETS[name]()
    save_config(config, tmp_path / "config.json")
    assert load_config(ReidConfig, tmp_path / "config.json") == config
    embedding = Embedding(**config.embedding.model_dump())
    dimensions = {"resnet50": 2048, "mobilenet_v2": 1280, "mobilenet_v2_keras": 1280, "small": 512}
    assert embedding.dimension == dimensions[config.embedding.backbone]


def test_ide_learns_50_000_steps_of_16():
    config = ide2016()
    assert config.total_steps == 50_000
    rates = [config.rate(step, config.total_steps) for step in (0, 19_999, 20_000, 39_999, 40_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    assert (config.batch_size, config.data.sampler, config.head.dropout) == (16, "images", 0)
    augment, optimizer, embedding = config.augment, config.optimizer, config.embedding
    assert augment.resize == augment.crop == embedding.size == (224, 224)  # squashed, no crop
    assert (augment.flip, augment.erase, augment.pad) == (True, 0, 0)
    assert (optimizer.kind, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (optimizer.bias_factor, optimizer.bias_decay, optimizer.biases) == (2, False, "classifier")
    assert (embedding.freeze_norm, embedding.neck, config.initial) == (True, "none", "imagenet")
    assert config.loss == ReidLossConfig()  # plain classification


def test_the_small_siamese_recipe_keeps_its_length():
    assert siamese_small().total_steps == reid_small().total_steps


def test_bag_of_tricks_warms_up_and_steps_down():
    config = bot()
    epoch = config.steps_of(1)
    rates = [config.rate(int(e * epoch), config.total_steps) for e in (0, 5, 10, 39, 41, 71)]
    assert rates == pytest.approx([3.5e-6, 3.5e-4 * 0.505, 3.5e-4, 3.5e-4, 3.5e-5, 3.5e-6], rel=0.01)
    assert config.people_per_batch == 16
    assert (config.loss.center, config.loss.center_rate) == (5e-4, 0.5)
    assert (config.loss.smoothing, config.loss.triplet, config.loss.margin) == (0.1, 1, 0.3)
    assert (config.augment.erase, config.augment.pad, config.augment.crop) == (0.5, 10, (256, 128))
    assert (config.embedding.neck, config.embedding.backbone_args) == ("bn", {"last_stride": 1})
    assert config.head.bias is False
    assert reid_small().loss.center == 0


def test_siamese_takes_48_pairs_and_multiplies_rates():
    config = siamese2017()
    assert config.batch_size // 2 == 48
    assert config.total_steps == 75 * (12_936 // 48) == 20_175  # every image once an epoch as a first one
    verifier = build_network(config, 7).verifier
    assert float(verifier.weight.detach().std()) == pytest.approx(0.0038, rel=0.05)
    assert not verifier.bias.any()
    optimizer = config.optimizer
    trunk = optimizer.lr * optimizer.backbone_factor
    assert (trunk, optimizer.lr) == pytest.approx((1e-4, 1e-3))
    assert trunk * optimizer.bias_factor == pytest.approx(2e-3)
    assert (config.loss.identity, config.loss.verification, config.head.dropout) == (1, 1, 0.9)
    assert (config.augment.resize, config.augment.crop) == ((256, 256), (224, 224))
    assert (config.embedding.size, config.embedding.window, config.embedding.mirror) == ((256, 256), 7, True)
    assert config.head.verification == "square"
    epoch = config.steps_of(1)
    rates = [config.rate(int(e * epoch) + 1, config.total_steps) for e in (0, 69, 71)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4])
