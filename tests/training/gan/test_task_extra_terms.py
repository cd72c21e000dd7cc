"""The terms of RSA-GAN in the generator's loss, and a training that uses all of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from tiny_training import final_hashes, tiny_config
from torch import nn

from reposer.config import apply_overrides, load_config
from reposer.errors import UserError
from reposer.images import to_float
from reposer.losses import image_gan
from reposer.losses.image_gan import GanNetworks, correspondence_loss, generate, parsing_head_loss
from reposer.models.generators import GENERATORS
from reposer.storage.runs import read_metrics
from reposer.structures import PairBatch
from reposer.training.gan.config import GanConfig, LossWeights
from reposer.training.loop import train


def _batch() -> PairBatch:
    maps = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    image = torch.full((1, 3, 4, 4), 0.5)
    points = torch.zeros(1, 18, 2)
    return PairBatch(image, image, maps, maps, mask, mask, points, points, torch.zeros(1, dtype=torch.int64))


def test_the_correspondence_counts_on_the_target_person_only():
    warped = torch.zeros(1, 3, 2, 2)
    warped[..., 1, 1] = 100.0  # off the person
    assert correspondence_loss(warped, _batch()).item() == pytest.approx(0.5)
    warped[..., 0, 0] = 0.75
    assert correspondence_loss(warped, _batch()).item() == pytest.approx(0.25)
    nobody = replace(_batch(), target_mask=torch.zeros(1, 4, 4, dtype=torch.bool))
    assert correspondence_loss(torch.zeros(1, 3, 2, 2), nobody).item() == pytest.approx(0.5)


def test_the_parsing_term_is_the_cross_entropy_of_the_labeled_pixels():
    logits = torch.zeros(1, 20, 2, 2)
    logits[0, 5, 0, 0] = 2.0
    parsing = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    parsing[0, 0, 0] = 5
    assert parsing_head_loss(logits, parsing).item() == pytest.approx(-2 + math.log(19 + math.e**2), rel=1e-5)
    parsing[:] = 255
    assert parsing_head_loss(logits, parsing).item() == 0


def test_a_generator_is_asked_for_its_parts_only_where_a_term_needs_them():
    class Plain(nn.Module):
        def forward(self, batch: PairBatch) -> torch.Tensor:
            return batch.source_image

    image, auxiliary = generate(GanNetworks(Plain(), nn.Identity(), None), _batch())
    assert auxiliary is None
    assert torch.equal(image, _batch().source_image)


def test_terms_without_a_generator_that_has_them_are_refused(prepared):
    for weights, args, name in (
        (LossWeights(correspondence=1), {}, "san"),
        (LossWeights(parsing=1), {"width": 32}, "rsa_gan"),
        (LossWeights(correspondence=1), {"width": 32, "correspondence": False}, "rsa_gan"),
    ):
        with pytest.raises(ValidationError, match="rsa_gan with"):
            tiny_config(prepared, generator=name, generator_args=args, weights=weights)


@pytest.mark.slow
def test_rsa_gan_trains_with_every_term_and_resumes_to_the_same_bits(prepared, tmp_path):
    config = tiny_config(
        prepared,
        generator="rsa_gan",
        generator_args={"width": 32, "blocks": 1, "res_blocks": 0, "parsing_head": True, "padding": "zeros"},
        discriminator_args={"ndf": 4, "blocks": 1, "padding": "zeros", "pose": True},
        weights=LossWeights(adversarial=1, l1=5, perceptual=0, correspondence=1, parsing=0.1),
    )
    whole = train(config, tmp_path / "whole", device="cpu")
    train(config, tmp_path / "parts", device="cpu", max_minutes=0)
    again = train(config, tmp_path / "parts", device="cpu")
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    named = {key for line in lines for key in line}
    assert {"generator/correspondence", "generator/parsing", "generator/l1"} <= named
    assert final_hashes(tmp_path / "whole") == final_hashes(tmp_path / "parts")
    assert whole.step == again.step


def test_a_further_term_is_one_line_of_the_dict(prepared, tmp_path, monkeypatch):
    config = tiny_config(prepared)
    with pytest.raises(UserError, match=r"unknown key weights\.brightness"):
        apply_overrides(config, ["weights.brightness=0.5"])
    monkeypatch.setitem(image_gan.TERMS, "brightness", lambda made: made.image.mean().square())
    with pytest.raises(UserError, match=r"weights\.brightnes: did you mean weights\.brightness\?"):
        apply_overrides(config, ["weights.brightnes=0.5"])
    with pytest.raises(UserError, match="greater than or equal to 0"):
        apply_overrides(config, ["weights.brightness=-1"])
    config = apply_overrides(config, ["weights.brightness=0.5"])
    config = config.changed(weights=config.weights.changed(l1=5.0))
    train(config, tmp_path, device="cpu")
    assert "generator/brightness" in read_metrics(tmp_path)[0]
    assert load_config(GanConfig, tmp_path / "config.json") == config
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"config\.json: unknown key weights\.brightness"):
        load_config(GanConfig, tmp_path / "config.json")


class _Halves(nn.Module):
    """A generator with an auxiliary output: the mean color of the lower half."""

    extra_terms: ClassVar = {"lower": "lower_half"}

    def __init__(self, lower_half: bool = True) -> None:
        super().__init__()
        self.needs, self.total_stride = ("source_image",), 1
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, batch: PairBatch, parts: bool = False):
        image = self.layer(to_float(batch.source_image)).tanh()
        return (image, image[:, :, 16:].mean((2, 3))) if parts else image


def test_a_generator_says_itself_which_terms_it_offers(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(GENERATORS, "halves", _Halves)
    monkeypatch.setitem(image_gan.TERMS, "lower", lambda made: made.auxiliary.square().mean())
    with pytest.raises(UserError, match=r"weights\.lower needs generator=halves with lower_half=true"):
        apply_overrides(tiny_config(prepared), ["weights.lower=1"])
    config = tiny_config(prepared, generator="halves", generator_args={})
    with pytest.raises(UserError, match=r"weights\.lower needs generator=halves with lower_half=true"):
        apply_overrides(config, ["weights.lower=1", "generator_args.lower_half=false"])
    train(apply_overrides(config, ["weights.lower=1"]), tmp_path, device="cpu")
    assert "generator/lower" in read_metrics(tmp_path)[0]
