"""The presets: the paper's numbers, and that every one is a configuration that can be built and saved."""

from __future__ import annotations

import pytest
import torch
from quick import one_in

from reposer.config import apply_overrides, config_hash, differences, load_config, save_config
from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.training.config import learning_rate
from reposer.training.gan.config import GanConfig
from reposer.workflows.gan_presets import PRESETS, find_preset


def test_san_market_has_the_numbers_of_the_paper():
    config = PRESETS["san_market"]()
    assert (config.weights.adversarial, config.weights.l1, config.weights.perceptual) == (10, 15, 5)
    assert (config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2) == (2e-4, 0.5, 0.999)
    assert (config.perceptual.network, config.perceptual.layers, config.perceptual.norm) == (
        "vgg19",
        ("relu1_2",),
        "l2",
    )
    assert config.total_steps == 62_500  # san.md: "62.5 k iterations of 32"
    const, decay = (config.steps_of(e) for e in (config.schedule.epochs_const, config.schedule.epochs_decay))
    rates = [learning_rate(step, 2e-4, const, decay) for step in (0, 37_499, 37_500, 50_000, 62_499)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4, 2e-4 / 25_000])


def test_san_deepfashion_has_the_numbers_of_the_paper():
    config = PRESETS["san_deepfashion"]()
    assert (config.weights.adversarial, config.weights.l1, config.weights.perceptual) == (15, 1, 5)
    assert (config.batch_size, config.gan.pool) == (8, 0)
    assert config.total_steps == 350_000  # san.md: "350 k iterations of 8"


def test_patn_market_has_the_numbers_of_its_code():
    config = PRESETS["patn_market"]()
    weights = config.weights
    assert (weights.adversarial, weights.l1, weights.perceptual) == (5, 10, 10)
    assert (config.perceptual.norm, config.batch_size, config.gan.pool) == ("l1", 32, 50)
    assert config.total_steps == 87_500  # peers.md: "87.5 k steps on Market"
    with torch.device("meta"):
        critics = build_discriminator(**config.discriminator_args)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (critics.appearance, critics.shape)]
    assert sizes == pytest.approx([3.93e6, 3.98e6], rel=2e-3)


def test_vunet_has_the_numbers_of_its_code():
    for name, batch, steps in (("vunet_market", 16, 100_000), ("vunet_deepfashion", 8, 100_000)):
        config = PRESETS[name]()
        assert (config.total_steps, config.batch_size) == (steps, batch)
        assert [config.rate(step, steps) for step in (0, 999, 1_000)] == pytest.approx([1e-3] * 3)
        assert config.rate(50_500, steps) == pytest.approx(5e-4)
        kl = [config.weights_at(step)["kl"] * 637.5 for step in (0, 50_000, 62_500, 75_000, 99_999)]
        assert kl == pytest.approx([1e-6, 1e-6, 0.5, 1, 1], rel=1e-5)
        assert (config.optimizer.beta1, config.optimizer.beta2) == (0.5, 0.9)
        assert not config.gan.discriminator


def test_pg2_has_the_numbers_of_its_code():
    for name, batch, steps, masked in (("pg2_market", 16, 60_000, 10), ("pg2_deepfashion", 1, 80_000, 50)):
        config = PRESETS[name]()
        assert (config.total_steps, config.batch_size) == (steps, batch)
        assert [config.stage(step).name for step in (0, 21_999, 22_000)] == ["coarse", "coarse", "fine"]
        assert config.weights_at(0) == {"masked_l1": 1}
        assert config.weights_at(22_000) == {"adversarial": 1, "masked_l1": masked}
        assert config.plays(config.stage(22_000))
        assert not config.plays(config.stage(0))
        assert {config.rate(step, steps) for step in (0, 30_000, steps - 1)} == {2e-5}


def test_dpig_has_the_numbers_of_its_code():
    config = PRESETS["dpig_market"]()
    assert (config.total_steps, config.batch_size) == (120_000, 16)
    assert config.terms == {"adversarial": 1, "l1": 20}
    steps = (0, 49_999, 50_000, 99_999, 100_000, 119_999)
    rates = [config.rate(step, 120_000) / 2e-5 for step in steps]
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])
    short = config.with_steps(12)
    assert [short.rate(step, 12) / 2e-5 for step in (4, 5, 9, 10)] == pytest.approx([1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("name", ["vunet_market_small", "pg2_market_small", "dpig_market_small"])
def test_a_small_baseline_has_the_budget_of_the_small_san(name):
    san, config = PRESETS["san_market_small"](), PRESETS[name]()
    assert (config.batch_size, config.total_steps) == (san.batch_size, san.total_steps)
    assert (config.data, config.ema_decay, config.output) == (san.data, san.ema_decay, san.output)
    with torch.device("meta"):
        net = build_generator(config.generator, **config.generator_args)
    assert 3.3e6 < sum(p.numel() for p in net.parameters()) < 5.2e6


def test_gfla_weighs_each_layer_of_style_alike_and_sees_images_as_its_code_does():
    large, small = PRESETS["gfla_market"](), PRESETS["gfla_market_small"]()
    for config in (large, small, PRESETS["gfla_deepfashion"]()):
        assert config.weights.style / len(config.perceptual.style_layers) == 500
        assert not config.perceptual.normalize
    last = small.weights_at(small.total_steps - 1)
    assert last == large.weights_at(large.total_steps - 1) | {"style": 1000, "part_flow": 1}
    assert PRESETS["san_market"]().perceptual.normalize


@pytest.mark.parametrize("term", ["flow_error", "visibility", "flow_in_parts"])
def test_a_term_of_one_stage_is_refused_in_the_others(term):
    """It would be missed in the middle of a run, when the stage before has been trained."""
    config = PRESETS["intro_flow_keypoints_market_small"]()
    with pytest.raises(UserError, match=f"has no term {term}, which flow has: give features"):
        apply_overrides(config, [f"weights.{term}=1"])
    apply_overrides(PRESETS["gfla_market_small"](), ["weights.part_flow=2"])  # both its stages have it


def test_the_small_presets_differ_from_the_small_san_in_generator_and_critics_only():
    san = PRESETS["san_market_small"]()
    for name in ("san_keypoints_market_small", "patn_market_small"):
        config = PRESETS[name]()
        same = config.changed(
            generator=san.generator,
            generator_args=san.generator_args,
            discriminator_args=san.discriminator_args,
        )
        assert same == san


def test_the_demo_needs_no_outside_weights():
    assert PRESETS["san_demo"]().weights.perceptual == 0


@pytest.mark.parametrize("name", one_in(2, PRESETS, start=1))
def test_a_preset_survives_a_save_and_its_arguments_fit_the_networks(name, tmp_path):
    config = PRESETS[name]()
    assert PRESETS[name].__doc__  # which the page of settings prints
    save_config(config, tmp_path / "config.json")
    assert differences(load_config(GanConfig, tmp_path / "config.json"), config) == []
    with torch.device("meta"):
        build_discriminator(**config.discriminator_args)
        build_generator(config.generator, **config.generator_args)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("san_market", "2cf23978fab4"), ("rsa_market_small", "8c01df789b2c"), ("patn_market", "71c04253d05a")],
)
def test_a_preset_keeps_its_hash_so_that_runs_go_on_and_stages_are_found(name, digest):
    """A new setting is one of ``later`` of its class: at its default no file names it."""
    assert config_hash(PRESETS[name]())[:12] == digest


def test_an_override_of_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match="pairs_per_epoch"):
        apply_overrides(PRESETS["san_market"](), ["data.pair_per_epoch=3"])


def test_an_unknown_preset_names_the_nearest():
    assert find_preset("san_demo") == PRESETS["san_demo"]()
    with pytest.raises(UserError, match="did you mean san_market"):
        find_preset("san_markt")
