"""Every generator, and every ablation that the studies name, goes through the trainer."""

from __future__ import annotations

import json

import pytest
from tiny_training import TINY_D, TINY_SAN, tiny_config

from reposer.config import apply_overrides
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.storage.runs import read_metrics
from reposer.training.gan.config import LossWeights, ScheduleConfig
from reposer.training.loop import train

RSA = {"width": 32, "blocks": 1, "res_blocks": 0, "padding": "zeros"}
PATN = {"ngf": 4, "blocks": 2, "padding": "zeros"}
UNET = {"widths": [4, 8, 12], "blocks": 1, "heads": 2, "padding": "zeros"}
CASES = [
    ("rsa_gan", RSA, []),
    pytest.param("rsa_gan", RSA, ["generator_args.semantics=false"], marks=pytest.mark.slow),
    ("rsa_gan", RSA, ["generator_args.correspondence=false", "weights.correspondence=0"]),
    pytest.param("rsa_gan", RSA, ["generator_args.gate=none"], marks=pytest.mark.slow),
    ("patn", PATN, ["discriminator_args.head=none"]),
    ("san", TINY_SAN, ["generator_args.pose=keypoints"]),
    pytest.param("san", TINY_SAN, ["generator_args.pose=both"], marks=pytest.mark.slow),
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


def mending(prepared, **changes):
    """A training of the generator that mends carried texture, from one to three sources."""
    base = tiny_config(prepared)
    return tiny_config(
        prepared,
        data=base.data.changed(sources=3, flip=True),
        generator="transport_unet",
        generator_args=UNET,
        discriminator_args={**TINY_D, "pairing": "carried"},
        gan=base.gan.changed(pool=0),
        schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0),
        **changes,
    )


def test_carried_texture_from_several_sources_goes_through_the_trainer(prepared, tmp_path):
    weights = LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, gate=1.0, painted=1.0)
    config = apply_overrides(mending(prepared, weights=weights), ["output.log_every=1"])
    assert train(config, tmp_path, device="cpu").finished
    lines = [line for line in read_metrics(tmp_path) if "generator/l1" in line]
    assert len(lines) == 2
    assert all(0 < line["generator/gate"] < 1 and line["generator/painted"] > 0 for line in lines)


@pytest.fixture
def judge(prepared, tmp_path):
    """An embedding that says it was trained on the training people."""
    people = PackedPeople.open(prepared / "packed")
    embedding = Embedding("small", size=(32, 16))
    facts = people.training_facts("train")
    embedding.info = EmbeddingInfo(
        **{**embedding.info.model_dump(), "splits": ("train",), "trained_on": "drawn", **facts}
    )
    embedding.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_the_identity_term_is_logged_and_its_network_pinned(prepared, tmp_path, judge):
    weights = LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, identity=2.0, lent=1.0)
    config = mending(prepared, weights=weights, identity={"network": judge, "maps": 1.0})
    config = apply_overrides(config, ["output.log_every=1"])
    assert train(config, tmp_path / "run", device="cpu").finished
    lines = [line for line in read_metrics(tmp_path / "run") if "generator/l1" in line]
    assert all(0 < line["generator/identity"] < 4 and 0 < line["generator/lent"] < 2 for line in lines)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "judge" in environment["identity"]


def test_a_network_that_saw_other_people_is_refused(prepared, tmp_path, judge):
    Embedding("small", size=(32, 16)).save_pretrained(tmp_path / "stranger")
    weights = LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, identity=2.0)
    config = mending(prepared, weights=weights, identity={"network": tmp_path / "stranger"})
    with pytest.raises(UserError, match="was not trained on the training people"):
        train(config, tmp_path / "run", device="cpu")


def test_a_network_of_other_people_with_the_same_numbers_is_refused(prepared, tmp_path, judge):
    embedding = Embedding.from_pretrained(judge)
    embedding.info = embedding.info.changed(images_hash="f" * 64)
    embedding.save_pretrained(tmp_path / "others")
    weights = LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, identity=2.0)
    config = mending(prepared, weights=weights, identity={"network": tmp_path / "others"})
    with pytest.raises(UserError, match="was not trained on the training people"):
        train(config, tmp_path / "run", device="cpu")


@pytest.mark.parametrize(("share", "seed", "fits"), [(1.0, 0, False), (0.5, 1, False), (0.5, 0, True)])
def test_a_network_that_saw_more_images_is_refused(prepared, tmp_path, judge, share, seed, fits):
    """A training on a share of the images would learn from the others through it."""
    embedding = Embedding.from_pretrained(judge)
    embedding.info = embedding.info.changed(budget=share, budget_seed=seed)
    embedding.save_pretrained(tmp_path / "saw")
    weights = LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0, identity=2.0)
    config = mending(prepared, weights=weights, identity={"network": tmp_path / "saw"})
    config = apply_overrides(config, ["data.budget=0.5"])
    if fits:
        assert train(config, tmp_path / "run", device="cpu").finished
        return
    with pytest.raises(UserError, match=rf"identity\.network=.*saw: has seen {100 * share:g} % .*alone"):
        train(config, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": LossWeights(identity=1.0)},
        {"weights": LossWeights(lent=1.0)},
        {"identity": {"network": "runs/reid"}},
    ],
)
def test_identity_term_and_network_belong_together(prepared, changes):
    with pytest.raises(ValueError, match="belong together"):
        mending(prepared, **changes)


def test_a_pool_keeps_no_carried_texture(prepared):
    with pytest.raises(UserError, match="pool"):
        apply_overrides(mending(prepared), ["gan.pool=4"])
