"""People cut out of photos: the rules of the boxes by hand, whole photos through the job, provenance."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from annotate_runner import StubParser, edit_rows, flip, stubs, tree
from annotate_runner import cut as cut_file
from PIL import Image
from torch import nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import Annotators
from reposer.annotation.faults import annotation_faults
from reposer.annotation.interfaces import AnnotatorInfo
from reposer.annotation.keypoints import RcnnKeypoints
from reposer.annotation.makers import LONG_SIDE, PHOTO_COLUMNS, choose_cuts, find_people
from reposer.annotation.person_mask import DetectorMasker
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.jobs.workers import Step
from reposer.workflows.verify import verify_folder

SIZE = (400, 600)  # of a photo


def cut(boxes, scores=None, size=SIZE):
    scores = [0.9] * len(boxes) if scores is None else scores
    return choose_cuts(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores), size)


def test_margin_and_rounding():
    cuts, dropped = cut([[100, 50, 160, 250.5]])
    assert not dropped
    # 5 % of 60 and of 200.5 on each side, outwards
    assert cuts[0].box == (97, 39, 163, 261)
    assert cuts[0].flags == ()


def test_at_the_border():
    cuts, _ = cut([[-20, 50, 60, 250], [500, 90, 599, 399], [200, 3, 300, 300], [100, 300, 160, 397.9]])
    assert [one.flags for one in cuts] == [("at-border",), (), (), ("at-border",)]
    assert cuts[0].box == (0, 40, 63, 260)  # 60 pixels are left of its 80: 3 of margin
    assert cuts[3].box == (495, 74, 600, 400)
    assert [one.box[0] for one in cuts] == sorted(one.box[0] for one in cuts)


def test_tiny_boxes_are_left_out():
    cuts, dropped = cut([[10, 10, 33.9, 200], [10, 10, 200, 73.9], [300, 100, 324, 164]])
    assert [one.box for one in cuts] == [(298, 96, 326, 168)]
    assert [one.rule for one in dropped] == ["tiny-box", "tiny-box"]
    assert "24x190 pixels; at least 24x64" in dropped[0].message


def test_one_person_twice_and_people_who_overlap():
    boxes = [[100, 100, 200, 300], [104, 100, 204, 300], [150, 100, 250, 300], [160, 150, 200, 260]]
    cuts, dropped = cut(boxes, [0.8, 0.95, 0.9, 0.7])
    assert [one.rule for one in dropped] == ["same-person"]  # the first, whose score is lower
    assert [one.score for one in cuts] == [0.95, 0.9, 0.7]
    # 54 of the second's and third's 100 columns are common; the last lies wholly in both
    assert [one.flags for one in cuts] == [("overlapped",), ("overlapped",), ("overlapped",)]
    apart, _ = cut([[100, 100, 200, 300], [160, 100, 260, 300]])
    assert [one.flags for one in apart] == [(), ()]


def test_the_order_of_boxes_does_not_matter():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 150, (30, 2))], axis=1)
    scores = rng.uniform(0.5, 1, 30).round(1)
    expected = choose_cuts(boxes, scores, SIZE)
    for _ in range(20):
        order = rng.permutation(30)
        cuts, dropped = choose_cuts(boxes[order], scores[order], SIZE)
        assert cuts == expected[0]
        assert sorted(map(str, dropped)) == sorted(map(str, expected[1]))
    for one in expected[0]:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= SIZE[1]
        assert 0 <= top < bottom <= SIZE[0]
    assert cut([]) == ([], [])


class Redness(nn.Module):
    """Finds red rectangles, one for each shade; answers as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        answers = []
        for image in images:
            boxes = []
            red = image[0] - image[1]
            for shade in (1.0, 0.8, 0.6):
                rows, columns = torch.nonzero((red - shade).abs() < 0.05, as_tuple=True)
                if len(rows) > 50:
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            count = len(boxes)
            answers.append(
                {
                    "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    "scores": torch.linspace(0.9, 0.8, count),
                    "labels": torch.ones(count, dtype=torch.int64),
                }
            )
        return answers


def redness():
    return Redness().eval(), AnnotatorInfo("redness", "cd" * 32)


def photo(*people, size=SIZE):
    pixels = np.full((*size, 3), 60, np.uint8)
    pixels[..., 2] = np.arange(size[1]) % 200
    for (left, top, right, bottom), shade in zip(people, (255, 204, 153), strict=False):
        pixels[top:bottom, left:right] = (shade, 0, 0)
    return pixels


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "beach").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    upright = photo((100, 50, 180, 300), (300, 40, 400, 398))
    Image.fromarray(np.rot90(upright)).save(folder / "beach/two.png", exif=turned)
    Image.fromarray(photo()).save(folder / "nobody.png")
    Image.fromarray(photo((10, 10, 40, 60))).save(folder / "far.png")
    Image.fromarray(photo((250, 100, 330, 300))).save(folder / "one.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder, upright


def test_photos_become_crops_with_provenance(photos, tmp_path):
    folder, upright = photos
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    report = annotate(folder, out, stubs, redness)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    crops = {str(p.relative_to(out)) for p in out.rglob("*_p*.png")} - {
        str(p.relative_to(out)) for kind in ("parsing", "mask") for p in (out / kind).rglob("*.png")
    }
    assert crops == {"beach/two_p01.png", "beach/two_p02.png", "one_p01.png"}
    rows = {r["file"]: r for r in pq.read_table(out / "annotation/manifest").to_pylist()}
    first, second = rows["beach/two_p01.png"], rows["beach/two_p02.png"]
    assert (first["photo"], first["box"]) == ("beach/two.png", [96, 37, 184, 313])
    assert first["box_score"] == pytest.approx(0.9)
    assert "at-border" in second["flags"]
    assert "at-border" not in first["flags"]
    left, top, right, bottom = first["box"]
    crop = Image.open(out / "beach/two_p01.png")
    assert np.array_equal(np.array(crop), upright[top:bottom, left:right])
    assert not crop.getexif()
    assert np.array(Image.open(out / "parsing/beach/two_p01.png")).shape == (bottom - top, right - left)
    assert report.annotated == 3
    assert report.rules == {"format": 1, "no-person": 2, "tiny-box": 1}
    listed = (out / "annotation/problems.csv").read_text()
    assert "far.png,,box,tiny-box,a person of 30x50 pixels; at least 24x64 are needed; left out" in listed
    assert "nobody.png,,image,no-person" in listed
    assert "broken.jpg,,image,format" in listed
    settings = json.loads((out / "annotation/photos/job.json").read_text())["settings"]
    assert settings["detector"]["name"] == "redness"
    again = annotate(folder, out, stubs, redness)
    assert again.work.written == 0
    prepared = prepare_people(
        "folders", out, tmp_path / "prepared", options={"anonymous": True}, pairs="parsing"
    )
    assert prepared.annotations["mask"] == 3


def test_verify_finds_faults_between_photos_and_crops(photos, tmp_path):
    folder, _ = photos
    out = tmp_path / "out"
    annotate(folder, out, stubs, redness)
    assert annotation_faults(out) == []
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    part = "annotation/photos/manifest/part-00000.parquet"
    cases = {
        "crop": (lambda r: flip(r / "one_p01.png"), "one_p01.png: the image differs from its sha256"),
        "photos' part": (lambda r: cut_file(r / part), f"{part}: is damaged"),
        "photos' plan": (
            lambda r: cut_file(r / "annotation/photos/plan.json"),
            "photos/plan.json: is not valid",
        ),
        "box": (
            edit_rows(part, PHOTO_COLUMNS, lambda rows: [{**r, "box": [1, 2, 3, 4]} for r in rows]),
            ", box: is not what",
        ),
        "crop of nothing": (
            edit_rows(part, PHOTO_COLUMNS, lambda rows: [{**r, "crop": None} for r in rows]),
            "comes from no photo",
        ),
        "crop not annotated": (
            edit_rows(part, PHOTO_COLUMNS, lambda rows: [*rows, {**rows[0], "crop": "x_p01.png"}]),
            ", crop: x_p01.png is not annotated",
        ),
        "photo without row": (
            edit_rows(part, PHOTO_COLUMNS, lambda rows: [r for r in rows if r["file"] != "nobody.png"]),
            "has no row for nobody.png",
        ),
        "stray": (
            lambda r: shutil.copy(r / "one_p01.png", r / "one_p07.png"),
            "one_p07.png: the image is in no row of the manifest; delete it",
        ),
    }
    for name, (inject, told) in cases.items():
        shutil.rmtree(out)
        shutil.copytree(whole, out)
        inject(out)
        faults = annotation_faults(out)
        assert any(told in fault for fault in faults), (name, faults)
    shutil.rmtree(out)
    (out / "annotation").mkdir(parents=True)
    shutil.copytree(whole / "annotation/photos", out / "annotation/photos")
    with pytest.raises(UserError, match=r"there is no report\.json|shards are not there"):
        verify_folder(out)


def test_a_new_photo_and_processes(photos, tmp_path):
    folder, _ = photos
    out = tmp_path / "out"
    annotate(folder, out, stubs, redness)
    Image.fromarray(photo((20, 50, 90, 200))).save(folder / "new.png")
    report = annotate(folder, out, stubs, redness)
    assert (report.images, report.work.written) == (4, 1)
    assert (out / "parsing/new_p01.png").is_file()


@pytest.mark.parametrize("steps", [("all",), ("plan", "work", "finish", "work", "finish")], ids=len)
def test_crops_of_people_who_are_no_longer_there_go_with_their_annotations(photos, tmp_path, steps):
    folder, _ = photos
    out = tmp_path / "out"
    annotate(folder, out, stubs, redness)
    crops = {name for name in tree(out) if re.search(r"_p\d\d\.png$", name)}
    gone = {name for name in crops if "two_p0" in name}
    assert len(gone) == 6
    Image.fromarray(photo()).save(folder / "beach/two.png")  # nobody is left on it
    for step in steps:
        annotate(folder, out, stubs, redness, AnnotateOptions(step=Step(step, lease=1)))
    assert {name for name in tree(out) if re.search(r"_p\d\d\.png$", name)} == crops - gone
    assert annotation_faults(out) == []


def test_photos_need_a_folder_of_their_own(photos, tmp_path):
    folder, _ = photos
    with pytest.raises(UserError, match="give --out"):
        annotate(folder, None, stubs, redness)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"letter\.txt: is there already"):
        annotate(folder, tmp_path / "full", stubs, redness)
    (tmp_path / "empty").mkdir()
    Image.fromarray(photo()).save(tmp_path / "empty/nobody.png")
    with pytest.raises(UserError, match="nobody was found in 1 photo"):
        annotate(tmp_path / "empty", tmp_path / "o", stubs, redness)


def test_a_first_look_at_photos(photos):
    folder, _ = photos
    report = annotate(folder, folder.parent / "out", stubs, redness, AnnotateOptions(sample=4))
    assert report.root == folder.parent / "out/annotation/sample"
    assert report.annotated >= 1


def test_a_large_photo_is_looked_at_smaller_and_cut_at_its_own_size():
    pixels = photo((1000, 500, 1400, 1700), size=(2000, 3000))

    class Looking(Redness):
        def forward(self, images):
            assert max(images[0].shape[1:]) == LONG_SIDE
            return super().forward(images)

    boxes, scores = find_people(Looking().eval(), pixels)
    assert scores[0] == pytest.approx(0.9)  # the others are the soft edges
    assert np.abs(boxes[0] - [1000, 500, 1400, 1700]).max() < 2 * 3000 / LONG_SIDE


def tiny(kind, **more):
    """A torchvision R-CNN of the real class with a small body, random, for which everything is a person."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 7, 8, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
    backbone = BackboneWithFPN(body, {"0": "0", "2": "1"}, [4, 8], 8)
    network = kind(
        backbone,
        min_size=160,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(((64,), (96,), (128,)), ((1.0, 2.0),) * 3),
        rpn_post_nms_top_n_test=40,
        box_head=TwoMLPHead(8 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 2),
        box_detections_per_img=6,
        **more,
    ).eval()
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([-3.0, 3.0]))
    return network


def test_real_detectors_of_random_weights_through_the_whole_way(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (300, 400, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    network = tiny(
        MaskRCNN, mask_head=MaskRCNNHeads(8, (16,), 1), mask_predictor=MaskRCNNPredictor(16, 16, 2)
    )

    def annotators():
        masker = DetectorMasker(network, AnnotatorInfo("tiny masks"))
        return Annotators(
            StubParser(),
            masker,
            RcnnKeypoints(
                tiny(
                    KeypointRCNN,
                    keypoint_head=KeypointRCNNHeads(8, (16,)),
                    keypoint_predictor=KeypointRCNNPredictor(16, 17),
                ),
                AnnotatorInfo("tiny joints"),
            ),
        )

    report = annotate(folder, out, annotators, lambda: (network, AnnotatorInfo("tiny boxes")))
    cuts, dropped = choose_cuts(*find_people(network, pixels), (300, 400))
    assert report.annotated == len(cuts) > 0
    assert sum(report.rules.values()) == len(dropped)
    rows = pq.read_table(out / "annotation/manifest").to_pylist()
    assert {tuple(row["box"]) for row in rows} == {one.box for one in cuts}
    for row in rows:
        left, top, right, bottom = row["box"]
        crop = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)[None].contiguous()
        expected = DetectorMasker(network, AnnotatorInfo(""))(crop, StubParser()(crop))
        mask = np.array(Image.open(out / row["mask"]))
        assert row["mask_source"] == expected.source[0]
        assert (mask == expected.mask[0]).mean() > 0.99


def test_workers_cut_people_out_and_then_annotate_them(photos, tmp_path):
    folder, _ = photos
    annotate(folder, tmp_path / "whole", stubs, redness)

    def step(name):
        how = AnnotateOptions(step=Step(name, lease=1))
        return str(annotate(folder, tmp_path / "out", stubs, redness, how))

    assert "is planned: 1 of 1 shards" in step("plan")
    assert "5 images made here" in step("work")
    assert "is planned: 1 of 1 shards" in step("finish")  # of the cutting: the people are known now
    assert "3 images made here" in step("work")
    step("finish")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
