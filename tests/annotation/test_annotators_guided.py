"""A parser that sees masks where there are any: they come first, and from its maps where nobody was found."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.interfaces import AnnotatorInfo, Masks, Poses
from reposer.annotation.parser import GuidedPersonParser
from reposer.annotation.person_mask import ParsingMasker
from reposer.errors import UserError
from reposer.images import encode_png
from reposer.models.parsing_networks import GuidedParser

SIZE = (32, 16)
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def parser() -> GuidedPersonParser:
    torch.manual_seed(0)
    network = GuidedParser(widths=(4, 4, 4, 4), blocks=1).eval()
    with torch.no_grad():
        network.head.bias[0] = -5.0  # never background, so that maps without a mask show somebody
    return GuidedPersonParser(network, SIZE, AnnotatorInfo("guided"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Finder:
    """A masker and detector that finds a box in all images but the last."""

    info = AnnotatorInfo("finder")
    box = np.zeros(SIZE, np.bool_)
    box[8:24, 4:12] = True

    def masks(self, images: torch.Tensor, parsing: torch.Tensor | None = None) -> Masks:
        mask = np.stack([*[self.box] * (len(images) - 1), np.ones(SIZE, np.bool_)])
        sources = (*["network"] * (len(images) - 1), "everything")
        return Masks(mask, sources, np.full(len(images), -1))

    def joints(self, images: torch.Tensor) -> Poses:
        joints = np.full((len(images), 18, 2), np.nan, np.float32)
        joints[:2, 1] = (8, 9)
        return Poses(joints, np.zeros((len(images), 18), np.float32), np.full(len(images), -1))


@pytest.mark.parametrize("text", ["run=3/p", "a/b=c=d", "=", "rendered_parser=run=3/p", "x=maskrcnn"])
def test_a_path_of_a_parser_may_hold_an_equals_sign(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    folder = text.removeprefix("rendered_parser=")
    shutil.copytree(str(files("reposer.assets") / "parser_rendered"), folder)
    assert isinstance(AnnotatorChoice(text, "none", "none").open().parser, GuidedPersonParser)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=re.escape(folder)):  # the whole path is named
        AnnotatorChoice(text, "none", "none").open()


@pytest.mark.parametrize(("option", "kind"), [("keypoints", "keypoint detector"), ("detect", "detector")])
def test_a_misspelled_name_of_a_file_names_the_nearest(option, kind):
    choice = replace(AnnotatorChoice("rule", "none", "none"), **{option: "keypointrcn=mine.pth"})
    with pytest.raises(UserError, match=f"^{kind} keypointrcn=mine.pth: unknown: did you mean keypointrcnn"):
        choice.open_detector() if option == "detect" else choice.open()


def test_maps_keep_to_the_masks_and_nobody_found_is_what_the_map_says(parser, images):
    found = Annotators(parser, Finder().masks, Finder().joints).annotate(images, NAMES)
    for one in found[:2]:
        assert np.array_equal(one.parsing > 0, Finder.box)
        assert one.mask_source == "network"
    alone = parser(images[2:], torch.full((1, 18, 2), torch.nan))[0].numpy()
    assert np.array_equal(found[2].parsing, alone)
    assert found[2].mask_source == "parsing"
    assert np.array_equal(found[2].mask, alone > 0)


def test_without_masks_or_joints_the_image_is_enough(parser, images):
    found = Annotators(parser, ParsingMasker(), None).annotate(images, NAMES)
    assert np.array_equal(np.stack([one.parsing for one in found]), parser(images).numpy())
    assert {one.mask_source for one in found} == {"parsing"}
    assert Annotators(parser, None, None).annotate(images, NAMES)[0].mask is None


def test_masks_of_a_folder(parser, images, tmp_path):
    from reposer.annotation.person_mask import FolderMasks

    (tmp_path / "a.png").write_bytes(encode_png(Finder.box))
    found = Annotators(parser, FolderMasks(tmp_path), None).annotate(images, NAMES)
    assert np.array_equal(found[0].parsing > 0, Finder.box)
    assert np.array_equal(found[1].parsing, parser(images)[1].numpy())
    assert [problem.rule for problem in found[1].problems] == ["missing-mask"]


def test_the_rule_still_asks_for_masks():
    with pytest.raises(UserError, match="makes its maps from masks"):
        AnnotatorChoice("rule", "parsing", "none").open()
