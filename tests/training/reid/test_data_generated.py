"""Generated images in whole trainings and in the objective: policies against a loop, the same bits again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_sets import write_set
from tiny_training import final_hashes

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.losses.embedding import triplet_loss
from reposer.models.embedding import ReidOutput
from reposer.runtime import setup
from reposer.storage import checkpoint
from reposer.structures import ReidBatch
from reposer.trained.networks import EMBEDDING, of_run
from reposer.training.loop import train
from reposer.training.reid import task as reid
from reposer.training.reid.config import (
    AugmentConfig,
    EmbeddingConfig,
    GeneratedConfig,
    HeadConfig,
    ReidConfig,
    ReidDataConfig,
    ReidLossConfig,
    ReidOptimizerConfig,
    ReidOutputConfig,
    ReidScheduleConfig,
)
from reposer.training.reid.data import ReidData
from reposer.training.reid.task import Teacher, reid_loss

SLOW = pytest.mark.slow
SLOW_LABELS = [pytest.param(label, marks=SLOW) for label in ("smoothed", "uniform", "extra_class")]
SLOW_SAMPLERS = [pytest.param(sampler, marks=SLOW) for sampler in ("images", "pairs")]


def tiny(
    folder: Path, generated: GeneratedConfig | None = None, sampler: str = "people", **changes
) -> ReidConfig:
    """8 steps of 8 images of six people, a checkpoint every 3 steps."""
    losses = {"images": {}, "people": {"triplet": 1.0, "smoothing": 0.1}, "pairs": {"verification": 1.0}}
    values = {
        "data": ReidDataConfig(folder=folder, images_per_epoch=32, sampler=sampler, images_per_person=4),
        "augment": AugmentConfig(resize=(32, 16), crop=(32, 16), pad=2, erase=0.5),
        "embedding": EmbeddingConfig(backbone="small", backbone_args={"widths": [4, 6, 8]}, size=(32, 16)),
        "head": HeadConfig(dropout=0.2),
        "optimizer": ReidOptimizerConfig(lr=2e-3),
        "schedule": ReidScheduleConfig(epochs=2),
        "loss": ReidLossConfig(**losses[sampler]),
        "output": ReidOutputConfig(log_every=3, validate_every=100, checkpoint_every=3),
        "generated": generated or GeneratedConfig(),
        "batch_size": 8,
        "threads": 1,
    }
    return ReidConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory) -> Path:
    people = PackedPeople.open(prepared / "packed")
    return write_set(tmp_path_factory.mktemp("generated") / "set", people)


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny(prepared), run, device="cpu")
    return run


# ---- the objective


def _batch(weight: float, known: bool, extra: bool) -> tuple[ReidOutput, ReidBatch]:
    torch.manual_seed(0)
    generated = torch.tensor([False, True] * 4)
    label = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    batch = ReidBatch(
        image=torch.zeros(8, 3, 4, 4, dtype=torch.uint8),
        label=torch.where(generated, 5, label) if extra else label,
        camid=torch.zeros(8, dtype=torch.long),
        weight=torch.where(generated, weight, 1.0),
        generated=generated,
        known=~generated | known,
    )
    classes = 6 if extra else 5
    return ReidOutput(torch.randn(8, 3), torch.randn(8, classes), torch.randn(4, 2)), batch


def _slow(label: str, output: ReidOutput, batch: ReidBatch, teacher: torch.Tensor) -> float:
    """Mean over all images of weight x (sum over classes of -target log p, less the teacher's entropy)."""
    total, classes = 0.0, output.logits.shape[1]
    for i in range(8):
        log_p = torch.log_softmax(output.logits[i].double(), 0).tolist()
        made = bool(batch.generated[i])
        smoothing = {"smoothed": 0.3, "uniform": 1.0}.get(label, 0.1) if made else 0.1
        target = [smoothing / classes + (1 - smoothing) * (k == int(batch.label[i])) for k in range(classes)]
        entropy = 0.0
        if made and label == "teacher":
            target = torch.softmax(teacher[i].double(), 0).tolist()
            entropy = -sum(q * math.log(q) for q in target)
        loss = -sum(q * value for q, value in zip(target, log_p, strict=True)) - entropy
        total += float(batch.weight[i]) * loss
    return total / 8


@pytest.mark.parametrize("label", ["source", "smoothed", "uniform", "teacher", "extra_class"])
def test_every_policy_equals_the_loop(label):
    options = {"teacher": Path("run")} if label == "teacher" else {}
    options |= {"smoothing": 0.3} if label == "smoothed" else {}
    generated = GeneratedConfig(folder=Path("set"), label=label, weight=0.4, **options)
    output, batch = _batch(0.4, generated.known, label == "extra_class")
    teacher = torch.randn(8, 5)
    weights = ReidLossConfig(identity=1.0, smoothing=0.1, triplet=1.0, verification=1.0)
    total, parts = reid_loss(output, batch, weights, None, generated, teacher if label == "teacher" else None)
    assert parts["reid/identity"].item() == pytest.approx(_slow(label, output, batch, teacher), rel=1e-5)
    hits = (output.logits.argmax(1) == batch.label)[~batch.generated]
    assert parts["reid/accuracy"].item() == pytest.approx(hits.float().mean().item())
    assert parts["reid/generated_share"].item() == 0.5
    assert total.item() == pytest.approx(
        sum(parts[f"reid/{name}"].item() for name in ("identity", "triplet", "verification")), rel=1e-5
    )
    # comparisons between images: all of them, or the real ones only
    if generated.known:
        triplet = triplet_loss(output.pooled, batch.label, batch.weight, 0.3).item()
        pairs = [0.4 if bool(batch.generated[i] | batch.generated[i + 4]) else 1.0 for i in range(4)]
    else:
        real = ~batch.generated
        triplet = triplet_loss(output.pooled[real], batch.label[real], torch.ones(4), 0.3).item() / 2
        pairs = [0.0 if bool(batch.generated[i] | batch.generated[i + 4]) else 1.0 for i in range(4)]
    assert parts["reid/triplet"].item() == pytest.approx(triplet, rel=1e-5)
    log_p = torch.log_softmax(output.pair_logits, 1)
    same = [int(batch.label[i] == batch.label[i + 4]) for i in range(4)]
    slow = -sum(weight * log_p[i, same[i]].item() for i, weight in enumerate(pairs)) / 4
    assert parts["reid/verification"].item() == pytest.approx(slow, rel=1e-5)


def test_camstyle_is_a_weight_of_real_over_generated_times_a_constant():
    """CamStyle adds the two means; one mean over B with weight R / G on the generated is R / B of that."""
    output, batch = _batch(3 / 5, True, False)
    generated = torch.tensor([False] * 3 + [True] * 5)
    batch = replace(batch, weight=torch.where(generated, 3 / 5, 1.0), generated=generated)
    config = GeneratedConfig(folder=Path("set"), label="smoothed", weight=3 / 5)
    total, _ = reid_loss(output, batch, ReidLossConfig(), None, config)
    cross_entropy = torch.nn.functional.cross_entropy
    camstyle = cross_entropy(output.logits[:3], batch.label[:3])
    camstyle += cross_entropy(output.logits[3:], batch.label[3:], label_smoothing=0.1)
    assert total.item() == pytest.approx(camstyle.item() * 3 / 8, rel=1e-5)


# ---- batches


def test_a_batch_mixes_within_its_epochs_only(prepared, made):
    """Epochs are 4 steps; generated images from epoch 1 to 2."""
    config = tiny(
        prepared, GeneratedConfig(folder=made, real_share=0.5, start_epoch=1, stop_epoch=2, weight=0.5)
    )
    data, real = ReidData(config), ReidData(tiny(prepared))
    for step in range(12):
        batch, names = data.batch(step)
        plain, plain_names = real.batch(step)
        if 4 <= step < 8:
            assert batch.generated.sum() == 4
            assert [name.endswith("_g01.png") for name in names] == batch.generated.tolist()
            assert torch.equal(batch.weight, torch.where(batch.generated, 0.5, 1.0))
        else:
            assert names == plain_names
            assert torch.equal(batch.image, plain.image)
            assert torch.equal(batch.weight, plain.weight)


@pytest.mark.parametrize("sampler", ["images", "people", "pairs"])
@pytest.mark.parametrize("share", [None, 0.5])
def test_processes_share_one_mixed_batch(prepared, made, sampler, share):
    config = tiny(prepared, GeneratedConfig(folder=made, real_share=share), sampler)
    whole, _ = ReidData(config).batch(3)
    assert 0 < whole.generated.sum() < 8
    parts = [ReidData(config, rank, 2).batch(3)[0] for rank in range(2)]
    order = [torch.cat([part.image.chunk(2)[half] for part in parts]) for half in (0, 1)]
    joined = torch.cat(order) if sampler == "pairs" else torch.cat([part.image for part in parts])
    assert torch.equal(joined, whole.image)


def test_a_budget_shrinks_the_people_but_not_the_classes(prepared):
    whole = ReidData(tiny(prepared))
    data = ReidDataConfig(folder=prepared, images_per_epoch=32, sampler="people", budget=0.5, budget_seed=4)
    half = ReidData(tiny(prepared, data=data))
    assert half.pids.tolist() == whole.pids.tolist()
    assert (len(whole.real), len(half.real)) == (24, 12)


# ---- whole trainings


@pytest.mark.parametrize("label", ["source", *SLOW_LABELS, pytest.param("teacher", marks=pytest.mark.slow)])
def test_stopping_and_going_on_gives_the_same_bits(prepared, made, teacher, tmp_path, monkeypatch, label):
    share = 0.5 if label in ("smoothed", "extra_class") else None
    taught = {"teacher": teacher} if label == "teacher" else {}
    generated = GeneratedConfig(folder=made, label=label, real_share=share, start_epoch=0.5, **taught)
    config = tiny(prepared, generated)
    assert train(config, tmp_path / "whole", device="cpu").finished
    calls: list[int] = []

    def failing(*args):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return reid_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(reid, "reid_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts", device="cpu")
    train(config, tmp_path / "parts", device="cpu")
    assert final_hashes(tmp_path / "parts") == final_hashes(tmp_path / "whole")
    classifier = checkpoint.latest(tmp_path / "whole" / "checkpoints").groups["network"]["classifier.weight"]
    assert len(classifier) == (7 if label == "extra_class" else 6)
    notes = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert (notes["real_images"], notes["generated"]) == (24, {"images": 24, "notes": []})


@pytest.mark.parametrize("sampler", ["people", *SLOW_SAMPLERS])
def test_before_they_start_generated_images_change_no_bit(prepared, made, tmp_path, sampler):
    train(tiny(prepared, sampler=sampler), tmp_path / "real", device="cpu")
    late = GeneratedConfig(folder=made, start_epoch=99)
    train(tiny(prepared, late, sampler), tmp_path / "late", device="cpu")
    tensors = [
        checkpoint.latest(tmp_path / name / "checkpoints").groups["network"] for name in ("real", "late")
    ]
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name


def test_another_set_or_teacher_is_not_gone_on_with(prepared, made, teacher, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    folder = write_set(tmp_path / "set", people)
    config = tiny(prepared, GeneratedConfig(folder=folder))
    train(config, tmp_path / "run", device="cpu", max_minutes=0)
    folder.rename(tmp_path / "away")
    write_set(folder, people, change=lambda rows: rows[0].update(kept=False))
    with pytest.raises(UserError, match="generated changed since the run was started"):
        train(config, tmp_path / "run", device="cpu")


def test_a_teacher_says_what_its_classifier_says_in_use(prepared, made, teacher):
    runtime = setup("cpu", "float32", 1, 0)
    data = ReidData(tiny(prepared, GeneratedConfig(folder=made, real_share=0.5)))
    batch, _ = data.batch(0)
    values = checkpoint.latest(teacher / "checkpoints").groups["network"]
    logits = Teacher(teacher, data, ReidDataConfig(folder=prepared), runtime).logits(batch)
    assert (logits[~batch.generated] == 0).all()
    again = Teacher(teacher, data, ReidDataConfig(folder=prepared), runtime).logits(batch)
    assert torch.equal(logits, again)  # no dropout
    feature = of_run(EMBEDDING, teacher).network.features(batch.image[batch.generated]).feature
    expected = feature @ values["classifier.weight"].T + values["classifier.bias"]
    torch.testing.assert_close(logits[batch.generated], expected)


def test_a_teacher_of_other_people_or_of_more_images_is_refused(prepared, teacher, monkeypatch):
    runtime, own = setup("cpu", "float32", 1, 0), ReidDataConfig(folder=prepared)
    data = ReidData(tiny(prepared))
    half = own.changed(budget=0.5)
    with pytest.raises(UserError, match=r"has seen 100 % of each person's images .* is to see 50 %"):
        Teacher(teacher, data, half, runtime)
    facts = data.people.training_facts("train")
    others = facts | {"images_hash": "f" * 64}  # the same numbers, worn by others
    monkeypatch.setattr(data.people, "training_facts", lambda *_: others)
    with pytest.raises(UserError, match="was trained on other images, or on other people"):
        Teacher(teacher, data, own, runtime)
    data.pids = np.arange(1, 6)
    with pytest.raises(UserError, match="not the same 5 that are trained on"):
        Teacher(teacher, data, own, runtime)


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": "teacher", "folder": "set"},
        {"teacher": "run", "folder": "set"},
        {"label": "uniform"},
        {"folder": "set", "start_epoch": 2, "stop_epoch": 2},
        {"folder": "set", "real_share": 0.9},
        {"folder": "set", "real_share": 1.0},
    ],
)
def test_settings_that_do_not_fit_are_refused(prepared, wrong):
    with pytest.raises(
        ValueError, match=r"belong together|no folder|stop_epoch|none of one kind|less than 1"
    ):
        tiny(prepared, GeneratedConfig(**wrong))


def test_a_label_that_nothing_would_learn_is_refused(prepared, made):
    loss = ReidLossConfig(identity=0.0, triplet=1.0)
    with pytest.raises(ValueError, match=r"label=uniform needs loss\.identity"):
        tiny(prepared, GeneratedConfig(folder=made, label="uniform"), loss=loss)
