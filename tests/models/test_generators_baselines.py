"""What every re-built baseline must bear: people who lack joints, any size, any batch; 64 pairs by heart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.config import apply_overrides
from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.preparing.prepare import prepare_market1501
from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.generators import GENERATORS, about, build_generator
from reposer.models.texture_transport import carried_to
from reposer.rendered.dataset import write_rendered_dataset
from reposer.structures import PairBatch
from reposer.trained.networks import GENERATOR, GeneratorConfig, model_card, open_network, save_generator
from reposer.training.gan.config import DataConfig, LossWeights
from reposer.training.loop import train
from reposer.workflows.gan_presets import find_preset

# name -> arguments of a tiny one for 32x16
TINY = {
    "vunet": {"size": (32, 16), "width": 4, "cap": 8, "scales": 4},
    "pg2": {"size": (32, 16), "width": 4, "levels": 3, "fine_levels": 2, "code": 8},
    "dpig": {"size": (32, 16), "width": 4, "levels": 3, "crop": 8, "part_levels": 2, "code": 8},
    "def_gan": {"encoder": (4, 6, 8, 8), "decoder": (8, 6, 4)},
    "gfla": {"ngf": 4, "flow_ngf": 4, "hidden": 6, "attention": (3, 3)},
    "intro_flow_keypoints": {
        **{"width": 4, "widest": 8, "levels": 3, "warped": 2},
        **{"flow_width": 4, "flow_levels": 2, "radius": 2.0},
    },
}


# Those whose published weights can be imported, beside PATN.
PUBLISHED = {
    "xinggan": {"ngf": 4, "blocks": 2, "dropout": 0.0, "padding": "zeros"},
    "dptn": {"ngf": 4, "blocks": 1, "context": 1, "texture": 1},
}


@pytest.fixture(params=TINY | PUBLISHED)
def net(request):
    torch.manual_seed(0)
    made = build_generator(request.param, **(TINY | PUBLISHED)[request.param])
    if request.param in ("gfla", "dptn"):  # its own start is a grey picture
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return made


NOBODY = torch.full((18, 2), torch.nan)
LACKING = {  # joints that are missing
    "everything": range(18),
    "a shoulder": (2,),
    "both shoulders": (2, 5),
    "a hip": (11,),
    "both hips": (8, 11),
    "the neck": (1,),
    "the head": (0, 14, 15, 16, 17),
    "all but one": range(1, 18),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_people_who_lack_joints_get_finite_pictures_and_gradients(net, lacking, make_batch):
    batch = make_batch(3, 32, 16)
    for side in ("source_keypoints", "target_keypoints"):
        points = getattr(batch, side).clone()
        points[1, list(LACKING[lacking])] = torch.nan
        batch = replace(batch, **{side: points})
    for training in (True, False):
        image = net.train(training)(batch)
        assert image.shape == (3, 3, 32, 16)
        assert image.isfinite().all()
    net.train()(batch).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [torch.inf, -1e30, 0.0])
def test_joints_at_impossible_or_equal_places_give_finite_pictures(net, value, make_batch):
    points = torch.full((2, 18, 2), value)
    batch = replace(make_batch(2, 32, 16), source_keypoints=points, target_keypoints=points)
    for training in (True, False):
        assert net.train(training)(batch).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(33, 17), (64, 32), (20, 50), (16, 8), (1, 1)])
def test_any_size_comes_back(net, height, width, make_batch):
    image = net.eval()(make_batch(2, height, width))
    assert image.shape == (2, 3, height, width)
    assert image.isfinite().all()
    assert image.abs().max() <= 1


def test_a_picture_does_not_depend_on_its_batch(net, make_batch):
    net, batch = net.eval(), make_batch(4, 32, 16)
    whole = net(batch)
    assert whole.std() > 0.01
    for row in range(4):
        one = PairBatch(**{name: column[row : row + 1] for name, column in batch.tensors().items()})
        assert (net(one) - whole[row]).abs().max() <= 1 / 255


def test_memory_layout_and_half_precision_change_little(net, make_batch):
    net, batch = net.eval(), make_batch(2, 32, 16)
    plain = net(batch)
    fast = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(batch), plain, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fast(batch)
    assert half.dtype == torch.float32
    assert (half - plain).abs().mean() < 0.05


@pytest.mark.slow
def test_it_compiles(net, make_batch):
    torch.compiler.reset()
    net, batch = net.eval(), make_batch(2, 32, 16)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(batch), net(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_weights_of_another_generator_are_refused_by_name(name, tmp_path):
    other = next(one for one in TINY if one != name)
    made = build_generator(other, **TINY[other])
    config = GeneratorConfig(generator=other, generator_args=TINY[other], size=(32, 16))
    save_generator(tmp_path, made, config)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(f'"{other}"', f'"{name}"'))
    with pytest.raises(UserError, match=f"generator {name}"):
        open_network(GENERATOR, tmp_path)


@pytest.mark.parametrize("name", TINY)
def test_the_model_card_says_what_it_deviates_in(name):
    card = model_card(GeneratorConfig(generator=name, size=(128, 64)))
    assert about(name).split()[0] in card
    assert "It differs" in about(name)
    assert " ".join(about(name).split()) in " ".join(card.split())
    assert "\n\n\n" not in card
    assert "\n\n\n" not in model_card(GeneratorConfig(generator="san", size=(128, 64)))


# ---- 64 pairs by heart.

# name -> settings of a training of 300 steps, from its small preset on 64x32
OVERFIT = {
    "vunet": {"size": (64, 32), "width": 16, "cap": 40, "scales": 5, "dropout": 0.0},
    "pg2": {"size": (64, 32), "width": 16, "levels": 4, "fine_levels": 2},
    "dpig": {"size": (64, 32), "width": 16, "levels": 4, "crop": 16, "part_levels": 3, "mask_radius": 4.0},
    "def_gan": {"encoder": (24, 48, 96, 96, 96), "decoder": (96, 96, 64, 32), "dropout": 0.0},
    "gfla": {"ngf": 24, "flow_ngf": 12, "hidden": 64, "part_flow": True, "gain": 1.0},
    "intro_flow_keypoints": {
        **{"width": 16, "widest": 64, "levels": 4, "warped": 3},
        **{"flow_width": 8, "flow_levels": 3, "radius": 2.0},
    },
}


# These learn by the terms on the picture alone, in one stage: a short game has nothing to do with memory.
WITHOUT_GAME = ("pg2", "dpig")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Eight rendered people, prepared."""
    root = tmp_path_factory.mktemp("people")
    counts = {"identities": 9, "test_identities": 1, "images_per_identity": 4}
    write_rendered_dataset(root / "raw", **counts, size=(64, 32), samples=1, workers=1)
    prepare_market1501(root / "raw", root / "prepared", size=(64, 32), holdout=1)
    return root / "prepared"


def trivial(batch: PairBatch) -> float:
    """L1 of the best that learns next to nothing: the source, the median picture, label colors."""
    target, carried = to_float(batch.target_image), carried_to(batch)
    median = target.median(0).values.expand_as(target)
    guesses = (to_float(batch.source_image), median, carried.image, carried.colors)
    return min(float((guess - target).abs().mean()) for guess in guesses)


def at_home(weights: LossWeights) -> LossWeights:
    """Without the terms that look at outside weights."""
    outside = ("perceptual", "content", "style", "contextual", "correctness", "nearest")
    return weights.changed(**{term: 0.0 for term in outside if term in weights.of_terms()})


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERFIT)
def test_it_learns_64_pairs_by_heart(name, pairs, tmp_path):
    assert set(OVERFIT) == set(TINY) <= set(GENERATORS)
    preset = find_preset(f"{name}_market_small")
    stages = tuple(
        stage.changed(weights=stage.weights and at_home(stage.weights)) for stage in preset.schedule.stages
    )
    weights = at_home(preset.weights)
    if name in WITHOUT_GAME:
        weights, stages = weights.changed(adversarial=0.0), ()
        schedule, gan = preset.schedule.changed(ramps={}), preset.gan.changed(discriminator=False)
        preset = preset.changed(weights=weights, gan=gan, schedule=schedule)
    config = preset.changed(
        data=DataConfig(folder=pairs, max_pairs=64, validation_pairs="", pairs_per_epoch=300 * 16),
        generator_args=OVERFIT[name],
        weights=weights if preset.weights.l1 or name == "pg2" else weights.changed(l1=10.0),
        schedule=preset.schedule.changed(stages=stages),
        threads=1,
        ema_decay=0.9,
    ).with_steps(300)
    if "size" in config.discriminator_args or config.discriminator_args.get("kind") == "dcgan":
        config = apply_overrides(config, ["discriminator_args.size=[64,32]"])
    train(config, tmp_path / "run", device="cpu")
    people = PackedPeople.open(pairs / "packed")
    rows = load_pairs(pairs / "pairs_train.csv", people.name_index())[:64]
    assert len(rows) == 64
    batch = people.pair_batch(*np.asarray(rows).T)
    net = open_network(GENERATOR, tmp_path / "run").network
    net.train(name == "dpig")  # what it learns by heart is the target from the target's own code
    with torch.inference_mode():
        made = net(batch)
    assert float((made - to_float(batch.target_image)).abs().mean()) < trivial(batch)
