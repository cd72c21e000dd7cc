"""The predictor of label maps: what it reads, what everybody wears, people who lack something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reposer.errors import UserError
from reposer.models.generators import build_predictor
from reposer.models.parsing_networks import ParsingPredictor, PredictedMaps, decide_maps, label_shares

TINY = {"width": 4, "halvings": 3, "res_blocks": 1}


@pytest.mark.parametrize(
    "args", [{}, {"image": False}, {"norm": "instance", "res_blocks": 0}, {"halvings": 1}]
)
def test_every_parameter_learns_at_any_size(args, make_batch):
    torch.manual_seed(0)
    net = build_predictor("parsing_predictor", **{**TINY, **args})
    scores = net(make_batch(2, 61, 30))
    assert scores.parsing.shape == (2, 20, 61, 30)
    assert scores.mask.shape == (2, 61, 30)
    (scores.parsing.square().mean() + scores.mask.square().mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_nothing_of_the_target_but_key_points_is_read(make_batch):
    torch.manual_seed(0)
    net, batch = ParsingPredictor(**TINY).eval(), make_batch(2, 64, 32)
    blind = replace(
        batch,
        target_image=255 - batch.target_image,
        target_parsing=(batch.target_parsing + 1) % 20,
        target_mask=~batch.target_mask,
        source_mask=~batch.source_mask,
    )
    with torch.inference_mode():
        assert torch.equal(net(batch).parsing, net(blind).parsing)
        for field in net.needs:
            changed = replace(batch, **{field: getattr(batch, field).flip(1)})
            assert not torch.equal(net(batch).parsing, net(changed).parsing), field


def test_shares_of_the_person_count_by_hand():
    onehot = torch.zeros(2, 20, 4, 4)
    onehot[0, 5, :2] = 1
    onehot[0, 9, 2] = 1
    onehot[0, 0, 3] = 1
    onehot[1, 0] = 1  # nobody
    shares = label_shares(onehot)
    assert shares[0, 5] == pytest.approx(8 / 12)
    assert shares[0, 9] == pytest.approx(4 / 12)
    assert shares.sum(1).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"source_keypoints": torch.full((2, 18, 2), torch.nan)},
        {"target_keypoints": torch.full((2, 18, 2), torch.nan)},
        {"target_keypoints": torch.full((2, 18, 2), -500.0)},
        {"source_parsing": torch.full((2, 64, 32), 255, dtype=torch.uint8)},
        {"source_parsing": torch.zeros((2, 64, 32), dtype=torch.uint8)},
    ],
)
def test_people_who_lack_something_give_maps_too(change, make_batch):
    scores = ParsingPredictor(**TINY)(replace(make_batch(2, 64, 32), **change))
    assert scores.parsing.isfinite().all()
    parsing, mask = decide_maps(scores)
    assert parsing.max() < 20
    assert mask.flatten(1).any(1).all()


def test_an_empty_mask_is_replaced_as_for_people_without_one():
    parsing = torch.zeros(3, 20, 2, 2)
    parsing[0, 5, 0, 0] = parsing[1, 5, 0, 0] = 9.0
    mask = torch.full((3, 2, 2), -1.0)
    mask[0, 1, 1] = 1.0
    labels, person = decide_maps(PredictedMaps(parsing, mask))
    assert labels[:2].tolist() == [[[5, 0], [0, 0]]] * 2
    assert person.tolist() == [
        [[False, False], [False, True]],
        [[True, False], [False, False]],
        [[True, True], [True, True]],
    ]


def test_impossible_arguments_are_named():
    with pytest.raises(UserError, match="halvings=0"):
        build_predictor("parsing_predictor", halvings=0)
    with pytest.raises(UserError, match="did you mean width"):
        build_predictor("parsing_predictor", widht=3)
