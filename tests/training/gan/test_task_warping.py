"""Generators that warp: trained, resumed to the same bits, generated with, exported, told apart by name."""

from __future__ import annotations

import json

import pytest
from tiny_training import final_hashes, tiny_config

from reposer.config import apply_overrides
from reposer.errors import UserError
from reposer.generation.batch import GenerateOptions
from reposer.generation.pose_transfer import PoseTransfer
from reposer.storage.runs import read_metrics
from reposer.training.gan.config import (
    AdversarialConfig,
    GanConfig,
    LossWeights,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    StageWeights,
)
from reposer.training.loop import train
from reposer.workflows.export_run import export_run
from reposer.workflows.generate import generate_pair_list


def _def_gan(prepared) -> GanConfig:
    return tiny_config(
        prepared,
        generator="def_gan",
        generator_args={"encoder": [4, 6, 8, 8], "decoder": [8, 6, 4]},
        discriminator_args={"kind": "patch", "pairing": "poses", "widths": [4, 6], "strides": [2, 2, 2]},
        gan=AdversarialConfig(pool=4, loss_scale=1.0),
    )


def _gfla(prepared) -> GanConfig:
    flow = StageWeights(flow_regularity=0.1, part_flow=1.0)
    return tiny_config(
        prepared,
        generator="gfla",
        generator_args={"ngf": 4, "flow_ngf": 4, "hidden": 4, "attention": [3, 3], "part_flow": True},
        discriminator_args={"kind": "residual", "widths": [4, 6], "spectral": True},
        weights=LossWeights(adversarial=1.0, l1=5.0, perceptual=0.0, flow_regularity=0.1),
        gan=AdversarialConfig(mode="lsgan", pool=0, optimizer=OptimizerConfig(lr=1e-5, beta1=0.0)),
        schedule=ScheduleConfig(
            stages=(
                StageConfig(name="flow", share=1, weights=flow, discriminator=False),
                StageConfig(name="all", share=1),
            )
        ),
    )


def _intro_flow(prepared) -> GanConfig:
    flow = StageWeights(flow_error=1.0, visibility=1.0, flow_in_parts=5.0)
    return tiny_config(
        prepared,
        generator="intro_flow_keypoints",
        generator_args={"width": 4, "widest": 8, "levels": 3, "warped": 2, "flow_width": 4, "flow_levels": 2},
        discriminator_args={
            "kind": "patch",
            "pairing": "source_pose",
            "widths": [4, 6],
            "strides": [2, 1, 1],
        },
        gan=AdversarialConfig(pool=0, optimizer=OptimizerConfig(lr=2e-5, weight_decay=4e-4)),
        schedule=ScheduleConfig(
            stages=(
                StageConfig(name="flow", share=1, weights=flow, discriminator=False, lr=0.5),
                StageConfig(name="features", share=1, discriminator=False),
                StageConfig(name="features_gan", share=1),
                StageConfig(name="blend", share=1),
            ),
        ),
    )


CASES = {"def_gan": _def_gan, "gfla": _gfla, "intro_flow_keypoints": _intro_flow}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name != "def_gan" else ()) for name in CASES],
)
def run(request, prepared, tmp_path_factory):
    """A whole run of four steps, and its configuration."""
    config = apply_overrides(CASES[request.param](prepared), ["output.log_every=1"]).with_steps(4)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert train(config, folder, device="cpu").finished
    return folder, config


def test_every_step_is_finite_and_logs_the_terms_of_its_stage(run):
    folder, config = run
    lines = {line["step"]: line for line in read_metrics(folder) if "lr" in line}
    assert lines
    for step, line in lines.items():
        named = {key.split("/")[1] for key in line if key.startswith("generator/")}
        assert named - {"loss", "gradient"} == set(config.weights_at(step - 1)), step


def test_a_run_stopped_and_gone_on_ends_with_the_same_bits(run, prepared, tmp_path):
    folder, config = run
    assert train(config, tmp_path / "parts", device="cpu", max_minutes=0).step == 1
    assert train(config, tmp_path / "parts", device="cpu").finished
    assert final_hashes(tmp_path / "parts") == final_hashes(folder)
    with pytest.raises(UserError, match="generator"):
        train(tiny_config(prepared), tmp_path / "parts", device="cpu")


def test_pictures_come_of_run_and_export_alike(run, prepared, tmp_path):
    folder, config = run
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join((prepared / "pairs_val.csv").read_text().splitlines()[:4]) + "\n")
    export_run(folder, tmp_path / "export", license_text="none", trained_on="drawn rectangles")
    made = []
    for name, place in (("run", folder), ("export", tmp_path / "export")):
        transfer = PoseTransfer.from_pretrained(place)
        assert transfer.config.generator == config.generator
        out = tmp_path / f"pictures_{name}"
        generate_pair_list(transfer, prepared, pairs, out, GenerateOptions())
        made.append({path.name: path.read_bytes() for path in out.rglob("*.png")})
    assert len(made[0]) == 3
    assert made[0] == made[1]


def test_weights_of_another_generator_are_refused_by_name(run, tmp_path):
    folder, _ = run
    export_run(folder, tmp_path / "export", license_text="none", trained_on="drawn rectangles")
    settings = json.loads((tmp_path / "export" / "config.json").read_text())
    settings |= {"generator": "patn", "generator_args": {"ngf": 4, "blocks": 1}}
    (tmp_path / "export" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="do not belong to generator patn"):
        PoseTransfer.from_pretrained(tmp_path / "export")
