"""Every generator, and every ablation that the studies name, goes through the trainer."""

from __future__ import annotations

import pytest
from tiny_training import TINY_D, TINY_SAN, tiny_config

from reposer.config import apply_overrides
from reposer.storage.runs import read_metrics
from reposer.training.gan.config import LossWeights, ScheduleConfig
from reposer.training.loop import train

RSA = {"width": 32, "blocks": 1, "res_blocks": 0, "padding": "zeros"}
PATN = {"ngf": 4, "blocks": 2, "padding": "zeros"}
CASES = [
    ("rsa_gan", RSA, []),
    ("rsa_gan", RSA, ["generator_args.semantics=false"]),
    ("rsa_gan", RSA, ["generator_args.correspondence=false", "weights.correspondence=0"]),
    ("rsa_gan", RSA, ["generator_args.gate=none"]),
    ("patn", PATN, ["discriminator_args.head=none"]),
    ("san", TINY_SAN, ["generator_args.pose=keypoints"]),
    ("san", TINY_SAN, ["generator_args.pose=both"]),
]


@pytest.mark.parametrize(("name", "args", "overrides"), CASES)
def test_two_steps_are_finite_and_counted(prepared, tmp_path, name, args, overrides):
    correspondence = 1.0 if name == "rsa_gan" else 0.0
    config = tiny_config(
        prepared,
        generator=name,
        generator_args=args,
        discriminator_args={**TINY_D, "pose": True},
        weights=LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, correspondence=correspondence),
        schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0),
    )
    config = apply_overrides(config, [*overrides, "output.log_every=1"])
    summary = train(config, tmp_path, device="cpu")
    assert (summary.step, summary.finished) == (2, True)
    lines = [line for line in read_metrics(tmp_path) if "generator/l1" in line]
    assert len(lines) == 2
    assert ("generator/correspondence" in lines[0]) == bool(config.weights.correspondence)
