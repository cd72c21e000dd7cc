"""Masks and keypoints from tiny R-CNNs and a tiny ViTPose; the choice of the main person by hand."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from reposer.annotation.interfaces import (
    AnnotatorInfo,
    KeypointDetector,
    PersonMasker,
    detect,
    load_detector,
    main_person,
)
from reposer.annotation.keypoints import RcnnKeypoints, open_keypoint_detector
from reposer.annotation.networks import TransformersNetwork
from reposer.annotation.person_mask import DetectorMasker, FolderMasks, ParsingMasker, open_masker
from reposer.data.records import AnnotationError
from reposer.errors import UserError
from reposer.structures import MISSING_LABEL
from reposer.weights.files import LicenseError

INFO = AnnotatorInfo("tiny")


class Fixed(nn.Module):
    """A detector that finds what it is told to find; answers as torchvision's do."""

    def __init__(self, *answers: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))  # tells the device
        self.answers = answers
        self.seen: list[torch.Tensor] = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        self.seen = images
        return list(self.answers)


def found(boxes, scores, labels=None, size=(16, 8), **more) -> dict[str, torch.Tensor]:
    masks = torch.zeros(len(boxes), 1, *size)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[0, y0:y1, x0:x1] = 0.9
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels or [1] * len(boxes)),
        "masks": masks,
        **more,
    }


def tiny_backbone() -> BackboneWithFPN:
    body = nn.Sequential(nn.Conv2d(3, 4, 7, 8, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
    return BackboneWithFPN(body, {"0": "0", "2": "1"}, [4, 8], 8)


def tiny(kind):
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 128, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    sizes |= {"rpn_anchor_generator": _anchors(), "box_head": TwoMLPHead(8 * 49, 16)}
    sizes |= {"box_predictor": FastRCNNPredictor(16, 2)}
    network = kind(tiny_backbone(), **sizes).eval()
    with torch.no_grad():  # everything is a person
        network.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([-3.0, 3.0]))
    return network


def _anchors():
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)


def test_the_main_person_by_hand():
    size = (16, 8)
    middle = (3.5, 7.5)
    # equal area and score: the one in the middle; a corner has nearness 0
    assert main_person(np.array([0.9, 0.9]), np.array([10, 10]), np.array([(0, 0), middle]), size) == 1
    assert main_person(np.array([0.9, 0.6]), np.array([1e6, 1]), np.array([(0, 0), middle]), size) == 1
    # 0.9 * 20 * 1 < 0.8 * 40 * nearness
    off = (3.5, 10.5)
    nearness = 1 - 3 / math.hypot(3.5, 7.5)
    assert 0.8 * 40 * nearness > 0.9 * 20
    assert main_person(np.array([0.9, 0.8]), np.array([20, 40]), np.array([middle, off]), size) == 1
    assert main_person(np.array([0.9, 0.4]), np.array([20, 40]), np.array([middle, off]), size) == 0


def test_masks_fall_back_by_rule():
    empty = found([], [])
    network = Fixed(
        found([[1, 2, 7, 14], [0, 0, 2, 2]], [0.9, 0.95]),  # the larger in the middle
        found([[1, 2, 7, 14]], [0.49]),  # too unsure
        found([[1, 2, 7, 14]], [0.9], labels=[3]),  # a car
        empty,
    )
    images = torch.zeros(4, 3, 16, 8, dtype=torch.uint8)
    parsing = torch.zeros(4, 16, 8, dtype=torch.uint8)
    parsing[1, 4:8, 2:4] = 5
    parsing[2, 4:6, 2:4] = 13
    parsing[2, 0] = MISSING_LABEL
    masker = DetectorMasker(network.eval(), INFO)
    assert isinstance(masker, PersonMasker)
    masks = masker(images, parsing)
    assert masks.source == ("detector", "parsing", "parsing", "everything")
    assert masks.people.tolist() == [2, 0, 0, 0]
    expected = np.zeros((16, 8), bool)
    expected[2:14, 1:7] = True
    assert np.array_equal(masks.mask[0], expected)
    assert masks.mask[1:].sum(axis=(1, 2)).tolist() == [8, 4, 128]
    assert DetectorMasker(network, INFO)(images).source == ("detector", *("everything",) * 3)
    soft = found([[1, 2, 7, 14]], [0.9])
    soft["masks"] *= 0.5  # 0.45: below the mask threshold
    assert DetectorMasker(Fixed(soft), INFO)(images[:1]).source == ("everything",)


def test_the_detector_sees_colors_from_0_to_1():
    network = Fixed(found([], []))
    image = torch.randint(0, 256, (1, 3, 16, 8), dtype=torch.uint8)
    detect(network, image)
    assert torch.equal(network.seen[0], image[0].float() / 255)


def test_a_parsing_map_as_mask():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    parsing = torch.tensor([[[0, 1, 19, 255]] * 4, [[0] * 4] * 4], dtype=torch.uint8)
    masks = ParsingMasker()(images, parsing)
    assert masks.mask[0].tolist() == [[False, True, True, False]] * 4
    assert masks.source == ("parsing", "everything")
    assert masks.mask[1].all()
    with pytest.raises(ValueError, match="maps"):
        ParsingMasker()(images, parsing[:, :2])


def test_masks_of_the_users(tmp_path):
    mask = np.zeros((16, 8), np.uint8)
    mask[4:8] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", mask[:4])
    folder = FolderMasks(tmp_path)
    assert np.array_equal(folder.find("a", (16, 8)), mask > 0)
    assert folder.find("c", (16, 8)) is None
    with pytest.raises(AnnotationError, match="size"):
        folder.find("b", (16, 8))
    with pytest.raises(UserError, match="no such folder"):
        FolderMasks(tmp_path / "none")


def test_a_real_mask_rcnn_gives_masks():
    network = tiny(partial(MaskRCNN, mask_head=nn.Conv2d(8, 8, 1), mask_predictor=nn.Conv2d(8, 2, 1)))
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    masks = DetectorMasker(network, INFO)(images)
    assert masks.mask.shape == (2, 64, 32)
    assert (masks.people > 0).all()
    one = DetectorMasker(network, INFO)(images[:1])
    assert np.array_equal(one.mask[0], masks.mask[0])


def test_keypoints_of_the_main_person():
    points = torch.zeros(2, 17, 3)
    points[0, :, 0], points[0, :, 1] = torch.arange(17) % 8, torch.arange(17) % 16
    points[1] = 1
    scores = torch.full((2, 17), 5.0)
    scores[0, 6] = 1.9  # right shoulder below the threshold: no neck either
    points[0, 16, 0] = 8.0  # right ankle outside
    boxes = [[1, 2, 7, 14], [0, 0, 2, 2]]
    more = {"keypoints": points, "keypoints_scores": scores}
    network = Fixed(
        found(boxes, [0.8, 0.9], **more), found([], [], keypoints=points[:0], keypoints_scores=scores[:0])
    )
    detector = RcnnKeypoints(network, INFO)
    assert isinstance(detector, KeypointDetector)
    poses = detector(torch.zeros(2, 3, 16, 8, dtype=torch.uint8))
    assert poses.keypoints[0, 0].tolist() == [0, 0]  # nose
    assert poses.keypoints[0, 5].tolist() == [5, 5]  # left shoulder is COCO's 5
    assert poses.keypoints[0, 3].tolist() == [0, 8]  # right elbow is COCO's 8
    assert np.isnan(poses.keypoints[0, [1, 2, 10]]).all()
    assert poses.scores[0, [1, 2, 10]].tolist() == [0, 0, 0]
    assert np.isnan(poses.keypoints[1]).all()
    assert poses.people.tolist() == [2, 0]


def test_a_real_keypoint_rcnn_gives_poses():
    network = tiny(partial(KeypointRCNN, keypoint_head=nn.Conv2d(8, 8, 1), keypoint_predictor=_Heat()))
    poses = RcnnKeypoints(network, INFO, threshold=-1e9)(
        torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    )
    assert poses.keypoints.shape == (2, 18, 2)
    assert not np.isnan(poses.keypoints[:, 0]).any() or (poses.people > 0).all()


class _Heat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 17, 4, 2, 1)

    def forward(self, x):
        return nn.functional.interpolate(self.up(x), scale_factor=2.0)


@pytest.fixture(scope="module")
def vitpose(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        out_indices=[1],
    )  # fmt: skip
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17)
    folder = tmp_path_factory.mktemp("vitpose")
    transformers.VitPoseForPoseEstimation(config).save_pretrained(folder)
    return folder


def test_vitpose_finds_a_planted_peak(vitpose, monkeypatch):
    """Heat maps with a peak at a place that is known go back to the pixel that the box transform says."""
    detector = open_keypoint_detector("vitpose", vitpose)
    images = torch.randint(0, 256, (3, 3, 40, 20), dtype=torch.uint8)
    assert detector(images).keypoints.shape == (3, 18, 2)
    heat = torch.zeros(3, 17, 64, 48)
    u, v = 24, 20
    yy, xx = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    heat[:] = torch.exp(-((xx - u) ** 2 + (yy - v) ** 2) / 8)
    heat[:, 5] *= 0.2  # left shoulder too weak
    fake = type("Output", (), {"heatmaps": heat})
    monkeypatch.setattr(detector._network, "forward", lambda **_: fake)
    poses = detector(images)
    height, width = 40 * 1.25, 40 * 0.75 * 1.25  # of the box, widened to 3:4 and by a quarter
    expected = [u * width / 47 + 10 - width / 2, v * height / 63 + 20 - height / 2]
    assert np.allclose(poses.keypoints[:, 0], expected, atol=0.1)
    assert np.isnan(poses.keypoints[:, [1, 5]]).all()  # so no neck
    assert np.allclose(poses.keypoints[:, 2], expected, atol=0.1)
    assert poses.people.tolist() == [-1] * 3


def test_configurations_as_people_share_them_are_read(vitpose, tmp_path):
    """Keys that older versions wrote, and those of a backbone that is not asked for, do no harm."""
    old = {
        "backbone": None, "backbone_kwargs": None, "use_timm_backbone": False, "torch_dtype": "float32",
        "use_pretrained_backbone": False, "edges": [[15, 13], [13, 11]], "transformers_version": "4.48.0",
        "_attn_implementation_autoset": True,
    }  # fmt: skip
    shutil.copytree(vitpose, tmp_path / "vitpose")
    place = tmp_path / "vitpose" / "config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps(old | settings))
    images = torch.randint(0, 256, (2, 3, 40, 20), dtype=torch.uint8)
    shared = open_keypoint_detector("vitpose", tmp_path / "vitpose")(images)
    np.testing.assert_array_equal(shared.scores, open_keypoint_detector("vitpose", vitpose)(images).scores)
    backbone = settings["backbone_config"]
    for more, told in (
        ({"attn_implementation": "evil/kernels"}, "attn_implementation is set"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map is set"),
        ({"backbone_config": backbone | {"_attn_implementation": "evil/kernels"}}, "_attn_implementation"),
        ({"backbone_config": backbone | {"auto_map": {"AutoModel": "x.Y"}}}, "auto_map is set"),
        ({"backbone_config": backbone | {"model_type": "bit"}}, "another kind of network"),
        ({"backbone_config": backbone | {"num_hidden_layers": 10**9}}, "num_hidden_layers is larger"),
        ({"mine": 1}, "mine is set"),
    ):
        place.write_text(json.dumps(settings | more))
        with pytest.raises(UserError, match=told):
            open_keypoint_detector("vitpose", tmp_path / "vitpose")


def test_a_segformer_as_people_share_it_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16,
        num_labels=18,
    )  # fmt: skip
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.save_pretrained(tmp_path)
    place = tmp_path / "config.json"
    old = {"downsampling_rates": [1, 4, 8, 16], "image_size": 224, "torch_dtype": "float32"}
    place.write_text(json.dumps(old | json.loads(place.read_text())))
    x = torch.rand(1, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(TransformersNetwork(tmp_path)(x), network(x).logits)


def test_vitpose_folders_are_checked(vitpose, tmp_path):
    settings = json.loads((vitpose / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "segformer"}))
    with pytest.raises(UserError, match="not one of vitpose"):
        open_keypoint_detector("vitpose", tmp_path)
    with pytest.raises(UserError, match="give its folder"):
        open_keypoint_detector("vitpose")
    with pytest.raises(UserError, match="unknown"):
        open_keypoint_detector("openpose")


def test_detectors_ask_for_their_license_and_check_weights(tmp_path, monkeypatch):
    with pytest.raises(LicenseError, match="COCO"):
        open_masker()
    with pytest.raises(UserError, match=r"maskrcnn_resnet50_fpn_v2_coco-73cbd019\.pth.*put it into"):
        open_masker(accept_license=True)
    with pytest.raises(UserError, match="masker keypointrcnn: unknown"):
        open_masker("keypointrcnn")
    with pytest.raises(UserError, match="detector yolo: unknown"):
        load_detector("yolo")
    # the whole way with own weights, on a small network in the place of the large one
    network = tiny(partial(MaskRCNN, mask_head=nn.Conv2d(8, 8, 1), mask_predictor=nn.Conv2d(8, 2, 1)))
    torch.save(network.state_dict(), tmp_path / "own.pth")
    builders = torchvision.models.detection
    again = partial(MaskRCNN, mask_head=nn.Conv2d(8, 8, 1), mask_predictor=nn.Conv2d(8, 2, 1))
    monkeypatch.setattr(builders, "maskrcnn_resnet50_fpn", lambda weights, weights_backbone: tiny(again))
    masker = open_masker("maskrcnn", tmp_path / "own.pth")
    assert masker.info.name == "maskrcnn (own weights)"
    assert len(masker.info.sha256) == 64
    images = torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8)
    assert np.array_equal(masker(images).mask, DetectorMasker(network, INFO)(images).mask)
