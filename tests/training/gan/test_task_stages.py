"""Stages of a generator in one run, terms of its own, weights that grow, the discriminator's own Adam."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from staged_generator import Coarse
from tiny_training import final_hashes, tiny_config
from torch import nn

from reposer.config import apply_overrides, config_hash, load_config
from reposer.errors import UserError
from reposer.images import to_float
from reposer.losses.image_gan import TERMS
from reposer.models.generators import GENERATORS
from reposer.storage import checkpoint
from reposer.storage.runs import read_metrics
from reposer.structures import PairBatch
from reposer.training.gan.config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    GanOutputConfig,
    LossWeights,
    OptimizerConfig,
    RampConfig,
    ScheduleConfig,
    StageConfig,
    StageWeights,
)
from reposer.training.loop import train


@pytest.fixture(autouse=True)
def _offered(monkeypatch):
    monkeypatch.setitem(GENERATORS, "coarse", Coarse)


def three() -> tuple[StageConfig, ...]:
    first = StageWeights(l1=2.0, code=0.5)
    return (
        StageConfig(name="first", share=2, weights=first, discriminator=False, lr=0.5),
        StageConfig(name="second", share=1),
        StageConfig(name="all", share=3, discriminator=False),
    )


def staged(prepared, stages=None, **changes) -> GanConfig:
    """Six steps, in stages of two, one and three; every checkpoint is kept."""
    given = three() if stages is None else stages
    values = {
        "data": DataConfig(folder=prepared, pairs_per_epoch=12),
        "generator": "coarse",
        "generator_args": {},
        "schedule": ScheduleConfig(epochs_const=1, epochs_decay=1, stages=given),
        "output": GanOutputConfig(log_every=1, validate_every=6, checkpoint_every=1, keep_last=20),
    }
    return tiny_config(prepared, **{**values, **changes})


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The run, in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATORS, "coarse", Coarse)
        run = tmp_path_factory.mktemp("staged") / "whole"
        assert train(staged(prepared), run, device="cpu").finished
    return run


def _moved(run, group: str, before: int, after: int) -> set[str]:
    """The tensors of a group that differ between two checkpoints."""
    paths = dict(checkpoint.steps(run / "checkpoints"))
    a, b = (checkpoint.load(paths[step]).groups[group] for step in (before, after))
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_each_stage_moves_its_sub_networks_alone_with_their_statistics(whole):
    names = set(Coarse().state_dict())
    coarse = {name for name in names if name.startswith("coarse")}
    assert _moved(whole, "generator", 1, 2) == coarse  # frozen: no weight and no statistic of "fine"
    assert _moved(whole, "generator", 2, 3) == names - coarse
    assert _moved(whole, "generator", 3, 6) == names


def test_the_discriminator_rests_where_a_stage_says_so(whole):
    assert not _moved(whole, "discriminator", 1, 2)
    assert _moved(whole, "discriminator", 2, 3)
    assert not _moved(whole, "discriminator", 3, 6)


def test_the_terms_and_rates_of_a_stage_are_logged(whole):
    lines = {line["step"]: line for line in read_metrics(whole) if "lr" in line}
    terms = {1: {"l1", "code"}, 2: {"l1", "code"}, 3: {"adversarial", "l1"}}
    for step, line in lines.items():
        named = {key.split("/")[1] for key in line if key.startswith("generator/")} - {"loss"}
        assert named == terms.get(step, {"l1"}), step
        assert ("discriminator/loss" in line) == (step == 3), step
    assert lines[2]["lr"] == pytest.approx(lines[3]["lr"] / 2)
    first = lines[1]
    wanted = 2 * first["generator/l1"] + 0.5 * first["generator/code"]
    assert first["generator/loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_run_stopped_at_each_boundary_ends_with_the_same_bits(prepared, whole, tmp_path):
    run = tmp_path / "run"
    for stop in (1, 2, 3):
        assert train(staged(prepared), run, device="cpu", max_minutes=0).step == stop
    assert train(staged(prepared), run, device="cpu").finished
    assert final_hashes(run) == final_hashes(whole)
    figures = [
        [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in read_metrics(folder)]
        for folder in (run, whole)
    ]
    assert figures[0] == figures[1]


def test_stages_share_the_steps_and_each_has_one(prepared):
    config = staged(prepared).with_steps(12)
    assert [config.stage(step).name for step in range(12)] == ["first"] * 4 + ["second"] * 2 + ["all"] * 6
    short = config.with_steps(3)
    assert [short.stage(step).name for step in range(3)] == ["first", "second", "all"]
    tiny = tuple(stage.changed(share=1 if stage.name == "all" else 1e-9) for stage in three())
    assert [staged(prepared, tiny).stage(step).name for step in range(3)] == ["first", "second", "all"]
    assert tiny_config(prepared).stage(0) is None


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((StageConfig(name="third", share=1),), "has no stage third; it has first, second, all"),
        ((StageConfig(name="all", share=1), StageConfig(name="all", share=1)), "comes once"),
        ((StageConfig(name="all", share=1, weights=StageWeights()),), "no term"),
        (
            (StageConfig(name="all", share=1, weights=StageWeights(adversarial=1), discriminator=False),),
            "an adversarial term, no discriminator",
        ),
    ],
)
def test_impossible_stages_are_named(prepared, stages, message):
    with pytest.raises(ValidationError, match=message):
        staged(prepared, stages)


def test_too_few_steps_and_generators_without_stages_are_named(prepared):
    with pytest.raises(ValidationError, match="2 steps are too few for 3 stages"):
        staged(prepared).with_steps(2)
    with pytest.raises(ValidationError, match="san has no stage first; it has none"):
        staged(prepared, generator="san")


def test_a_term_of_the_generators_own_is_a_setting_like_any_other(prepared, tmp_path):
    config = staged(prepared, (), weights=LossWeights(adversarial=1, l1=10, perceptual=0))
    with pytest.raises(UserError, match=r"weights\.cod: did you mean weights\.code\?"):
        apply_overrides(config, ["weights.cod=1"])
    with pytest.raises(UserError, match=r"weights\.code needs generator=coarse with coded=true"):
        apply_overrides(config, ["weights.code=1", "generator_args.coded=false"])
    config = apply_overrides(config, ["weights.code=1"]).with_steps(2)
    train(config, tmp_path, device="cpu")
    assert "code" not in TERMS
    assert all("generator/code" in line for line in read_metrics(tmp_path) if "lr" in line)
    assert load_config(GanConfig, tmp_path / "config.json") == config


def test_a_weight_grows_along_its_line(prepared, tmp_path):
    config = staged(
        prepared,
        data=DataConfig(folder=prepared, pairs_per_epoch=16),
        weights=LossWeights(adversarial=0, l1=1, perceptual=0, code=8),
        schedule=ScheduleConfig(
            epochs_const=1, epochs_decay=1, ramps={"code": RampConfig(start=0.25, begin=0.25, end=0.75)}
        ),
        gan=AdversarialConfig(discriminator=False),
        precision="float32",  # half floats round the sum by more than is allowed here
    )
    train(config, tmp_path, device="cpu")
    lines = [line for line in read_metrics(tmp_path) if "lr" in line]
    grown = [(line["generator/loss"] - line["generator/l1"]) / (8 * line["generator/code"]) for line in lines]
    rising = [0.25, 0.4375, 0.625, 0.8125]  # behind 2, 3, 4 and 5 of the 8 steps
    assert grown == pytest.approx([0.25, 0.25, *rising, 1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize(
    ("ramps", "message"),
    [
        ({"style": RampConfig(end=1)}, r"weights\.style is not above 0"),
        ({"l1": {"begin": 1, "end": 1}}, "begin"),
    ],
)
def test_impossible_ramps_are_named(prepared, ramps, message):
    with pytest.raises(ValidationError, match=message):
        staged(prepared, (), schedule=ScheduleConfig(ramps=ramps))


def test_without_a_discriminator_the_generator_is_what_it_is_with_one_that_it_never_asks(prepared, tmp_path):
    weights = LossWeights(adversarial=0, l1=10, perceptual=0)
    for name, played in (("none", False), ("idle", True)):
        game = AdversarialConfig(pool=0, discriminator=played)
        config = staged(prepared, (), weights=weights, gan=game).with_steps(2)
        train(config, tmp_path / name, device="cpu")
    alone, beside = (checkpoint.latest(tmp_path / name / "checkpoints") for name in ("none", "idle"))
    assert set(beside.groups) - set(alone.groups) == {"discriminator", "discriminator_optimizer"}
    for name, tensor in alone.groups["generator"].items():
        assert torch.equal(tensor, beside.groups["generator"][name])
    assert not any("discriminator/loss" in line for line in read_metrics(tmp_path / "none"))
    with pytest.raises(ValidationError, match=r"gan\.discriminator=true"):
        tiny_config(prepared, gan=AdversarialConfig(discriminator=False))
    again = staged(prepared, (), start_from=tmp_path / "none").with_steps(1)
    assert train(again, tmp_path / "again", device="cpu").finished  # with a discriminator of its own


def test_the_discriminator_has_an_adam_of_its_own(prepared, tmp_path):
    base = staged(prepared, ()).with_steps(2)
    own = OptimizerConfig(lr=base.optimizer.lr / 10, beta1=0.0, weight_decay=0.5)
    config = base.changed(
        gan=base.gan.changed(optimizer=own), optimizer=base.optimizer.changed(weight_decay=4e-4)
    )
    train(config, tmp_path / "run", device="cpu", max_minutes=0)
    assert train(config, tmp_path / "run", device="cpu").finished
    meta = checkpoint.latest(tmp_path / "run" / "checkpoints").meta
    (generator,), (critic,) = (
        meta[f"{name}_optimizer"]["param_groups"] for name in ("generator", "discriminator")
    )
    assert (generator["betas"], generator["weight_decay"]) == ([0.5, 0.999], 4e-4)
    assert (critic["betas"], critic["weight_decay"]) == ([0.0, 0.999], 0.5)
    assert critic["lr"] == pytest.approx(generator["lr"] / 10)


class _Itself(nn.Module):
    """Trained to give back the target from the target, as VU-Net and DPIG are; used on the source."""

    needs = ("source_image",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: PairBatch):
        return to_float(batch.target_image if self.training else batch.source_image) * self.scale


def test_a_generator_may_be_trained_to_give_back_its_target(prepared, tmp_path, monkeypatch):
    """It looks at the target in train mode alone: neither validation nor samples show it the answer."""
    monkeypatch.setitem(GENERATORS, "itself", _Itself)
    config = staged(
        prepared,
        (),
        generator="itself",
        optimizer=OptimizerConfig(lr=1e-30),
        weights=LossWeights(adversarial=0, l1=1, perceptual=0),
        gan=AdversarialConfig(discriminator=False),
    )
    train(config, tmp_path, device="cpu")
    lines = read_metrics(tmp_path)
    assert all(line["generator/l1"] == 0 for line in lines if "lr" in line)
    assert [line["validation/l1"] for line in lines if "validation/l1" in line][-1] > 0.02


@pytest.mark.slow
def test_spectral_norm_without_any_norm_trains_and_resumes_to_the_same_bits(prepared, tmp_path):
    judge = {"kind": "residual", "widths": [4, 8], "pairing": "poses", "spectral": True}
    config = staged(prepared, (), discriminator_args=judge).with_steps(2)
    train(config, tmp_path / "whole", device="cpu")
    train(config, tmp_path / "parts", device="cpu", max_minutes=0)
    train(config, tmp_path / "parts", device="cpu")
    assert final_hashes(tmp_path / "whole") == final_hashes(tmp_path / "parts")


def test_settings_that_came_later_leave_earlier_configurations_as_they_were(prepared):
    config = tiny_config(prepared)
    data = config.model_dump(mode="json")
    assert set(data["optimizer"]) == {"lr", "beta1", "beta2"}
    assert set(data["schedule"]) == {"epochs_const", "epochs_decay"}
    assert set(data["gan"]) == {"mode", "real_label", "pool", "loss_scale"}
    changed = config.changed(optimizer=config.optimizer.changed(weight_decay=0.1))
    assert changed.model_dump(mode="json")["optimizer"]["weight_decay"] == 0.1
    assert config_hash(changed) != config_hash(config)


class _Begins(Coarse):
    """Its first weight follows from the first 64 pairs."""

    def begin(self, batch: PairBatch) -> None:
        assert len(batch) == 64
        with torch.no_grad():
            self.coarse["net"][3].bias.fill_(float(to_float(batch.target_image).mean()))


def test_a_generator_may_look_at_pairs_once_before_its_first_step(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(GENERATORS, "begins", _Begins)
    config = staged(prepared, (), generator="begins", optimizer=OptimizerConfig(lr=1e-30))
    bias = "coarse.net.3.bias"
    train(config, tmp_path / "run", device="cpu", max_minutes=0)
    first = checkpoint.latest(tmp_path / "run" / "checkpoints").groups
    assert first["generator"][bias].unique().numel() == 1
    assert torch.equal(first["generator"][bias], first["ema"][bias])
    monkeypatch.setattr(_Begins, "begin", None)  # neither a resumed run nor one that starts from another
    train(config, tmp_path / "run", device="cpu")
    again = config.changed(start_from=tmp_path / "run").with_steps(1)
    train(again, tmp_path / "again", device="cpu")
    later = checkpoint.latest(tmp_path / "again" / "checkpoints").groups
    torch.testing.assert_close(later["generator"][bias], first["generator"][bias])


def test_judging_together_needs_a_pairing_that_can(prepared):
    with pytest.raises(ValidationError, match="together"):
        staged(
            prepared,
            (),
            gan=AdversarialConfig(pool=0, together=True),
            discriminator_args={"pairing": "as_printed"},
        )
