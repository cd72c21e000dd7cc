"""The parser without training, on drawn and on rendered people."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reposer.annotation.annotators import AnnotatorChoice
from reposer.annotation.interfaces import AUTO
from reposer.annotation.parser import PARSERS, open_parser
from reposer.annotation.rule_parser import RuleParser, skin
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError
from reposer.generation.targets import canonical_pose
from reposer.metrics.similarity import label_confusion
from reposer.rendered.renderer import plan_shot, render_shots

SKIN, CLOTH = (205, 150, 125), (40, 60, 140)
GROUPS = np.array([0, 1, 1, 5, 2, 3, 3, 3, 6, 4, 3, 3, 4, 2, 5, 5, 6, 6, 7, 7], np.uint8)


def drawn(bare: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A standing person of 128 x 64 pixels: image, joints, mask; limbs of skin or of cloth."""
    joints = canonical_pose("front") * 33 + (32, 62)
    y, x = np.mgrid[:128, :64]
    image = np.full((128, 64, 3), 200, np.uint8)
    mask = (np.abs(x - 32) < 17) & (y > 4) & (y < 120)
    image[mask] = CLOTH
    if bare:
        near = (y > 64) & (y < 112)
        for joint in (3, 4, 6, 7):
            near |= np.hypot(x - joints[joint, 0], y - joints[joint, 1]) < 9
        image[mask & (near | (y < 22))] = SKIN
    tensors = (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(joints), torch.from_numpy(mask))
    return tensors[0][None], tensors[1][None].float(), tensors[2][None]


def at(parsing: torch.Tensor, joints: torch.Tensor, joint: int) -> str:
    x, y = joints[0, joint].round().int().tolist()
    return LIP_LABELS[int(parsing[0, y, x])]


def test_skin_tells_bare_limbs_and_joints_tell_sides():
    image, joints, mask = drawn(bare=True)
    parsing = RuleParser()(image, joints, mask)
    assert ((parsing > 0) == mask).all()
    names = [at(parsing, joints, joint) for joint in (3, 6, 10, 13)]
    assert names[:2] == ["right-arm", "left-arm"]
    assert at(parsing, joints, 9) == "right-leg"
    assert at(parsing, joints, 0) == "face"
    image, joints, mask = drawn(bare=False)
    parsing = RuleParser()(image, joints, mask)
    assert [at(parsing, joints, joint) for joint in (3, 4, 9, 12)] == ["upper-clothes"] * 2 + ["pants"] * 2
    assert at(parsing, joints, 0) == "hair"


def test_a_person_without_joints_is_taken_to_stand():
    image, joints, mask = drawn(bare=False)
    nothing = torch.full_like(joints, torch.nan)
    guessed, known = (RuleParser()(image, one, mask) for one in (nothing, joints))
    assert (guessed == known)[mask].float().mean() > 0.6
    assert (RuleParser()(image, joints, torch.zeros_like(mask)) == 0).all()


def test_a_map_does_not_depend_on_the_others_of_its_batch():
    people = [drawn(bare) for bare in (True, False)] * 9
    images, joints, masks = (torch.cat([one[i] for one in people]) for i in range(3))
    together = RuleParser()(images, joints, masks)
    for i in (0, 1, 17):
        assert torch.equal(
            together[i : i + 1], RuleParser()(*(x[i : i + 1] for x in (images, joints, masks)))
        )


def test_skin_is_skin_of_every_shade_and_no_cloth():
    shades = torch.tensor(
        [[(232, 190, 170), (198, 134, 100), (120, 75, 55)], [CLOTH, (60, 60, 60), (40, 140, 60)]]
    )
    found = skin(shades.permute(2, 0, 1)[None].to(torch.uint8))[0]
    assert found[0].all()
    assert not found[1].any()


def test_rendered_people_are_parsed_by_groups():
    people = render_shots([plan_shot(0, pid, index) for pid in range(1, 11) for index in (0, 3)])
    images = torch.from_numpy(people.images).permute(0, 3, 1, 2)
    parsing = RuleParser()(images, torch.from_numpy(people.keypoints), torch.from_numpy(people.masks))
    confusion = label_confusion(
        GROUPS[people.parsing].astype(np.uint8), GROUPS[parsing.numpy()].astype(np.uint8), 8
    )
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert iou[0] == 1  # background is what the masks say
    assert iou[1:].mean() > 0.4, iou
    assert np.trace(confusion) / confusion.sum() > 0.85


def test_auto_is_the_best_that_is_here(monkeypatch):
    monkeypatch.delitem(PARSERS, "rendered_parser", raising=False)
    assert open_parser(AUTO).info.name == "rule"
    monkeypatch.setitem(PARSERS, "rendered_parser", lambda weights, sides, **how: "shipped")
    assert open_parser(AUTO) == "shipped"


def test_a_map_that_is_made_from_masks_needs_some(tmp_path):
    with pytest.raises(UserError, match="--parser rule: makes its maps from masks: use --mask auto"):
        AnnotatorChoice("rule", "parsing", "none").open()
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="--parser rule: makes its maps from keypoints"):
        AnnotatorChoice("rule", str(tmp_path / "masks"), "none").open()
    with pytest.raises(UserError, match="has no weights"):
        open_parser("rule", tmp_path)
