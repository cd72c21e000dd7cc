"""Parsers end to end on tiny models of the real formats, against each model's recipe written out."""

from __future__ import annotations

import builtins
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from reposer.annotation.annotators import AnnotatorChoice, chosen_sides
from reposer.annotation.interfaces import Parser
from reposer.annotation.networks import OnnxNetwork
from reposer.annotation.parser import best_class, correct_sides, open_parser, resolve_sides
from reposer.annotation.segmentation_model import MODELS, SegmentationModel
from reposer.config import load_config
from reposer.data.parsing import ATR_LABELS, LIP_LABELS
from reposer.errors import MissingWeightsError, UserError
from reposer.storage.paths import RefusedFileError
from reposer.weights.files import LicenseError

BGR = {"mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}
SCHP = {"size": [33, 33], "labels": "lip20", "fit": "affine", "color": "bgr", "output": 1} | BGR
SCHP |= {"align_corners": True}


def pictures(count=3, size=(24, 12), seed=0):
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 3)).astype(np.uint8)).float()
    return F.interpolate(small, size, mode="bilinear").round().to(torch.uint8)


def agreement(a, b):
    return float((np.asarray(a) == np.asarray(b)).mean())


@pytest.mark.slow
def test_schp_follows_its_recipe(exported, described):
    """Warp of the BGR picture, ToTensor, Normalize, output 1, up with align_corners, inverse warp, argmax."""
    from .test_segmentation_model_fitting import schp_matrix, warp

    module, file = exported(outputs=3)
    parser = open_parser(described(file, **SCHP))
    images = pictures()
    found = parser(images)
    matrix = schp_matrix((24, 12), (33, 33))
    inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])[:2]
    for picture, ours in zip(images, found, strict=True):
        bgr = picture.permute(1, 2, 0).numpy()[:, :, ::-1].astype(np.float64)
        fitted = torch.from_numpy(np.rint(warp(bgr, matrix, (33, 33)))).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(BGR[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            fused = module(((fitted - mean) / std)[None].float())[1]
        up = F.interpolate(fused, (33, 33), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
        expected = warp(up.numpy().astype(np.float64), inverse, (24, 12)).argmax(2)
        assert len(np.unique(expected)) > 3
        assert agreement(ours, expected) > 0.99  # ties within float32


def test_schp_is_described_as_published():
    schp = MODELS["schp_lip"]
    assert (schp.size, schp.fit, schp.color, schp.output) == ((473, 473), "affine", "bgr", 1)
    assert (list(schp.mean), list(schp.std)) == (BGR["mean"], BGR["std"])
    assert schp.lookup().tolist() == list(range(20))


def test_segformer_follows_transformers(tmp_path):
    """Their own image processor, network and post-processing on the same tiny random model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=18,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path / "clothes")
    (tmp_path / "clothes" / "parser.json").write_text('{"size": [64, 64], "labels": "atr18"}')
    images = pictures(4, (48, 30))
    parser = open_parser(tmp_path / "clothes")
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    pil = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]
    inputs = processor(pil, return_tensors="pt")["pixel_values"]
    assert torch.allclose(parser.prepare(images), inputs, atol=1.01 / 255 / 0.224)  # one gray level
    with torch.no_grad():
        output = model(pixel_values=parser.prepare(images))
    atr = processor.post_process_semantic_segmentation(output, target_sizes=[(48, 30)] * 4)
    to_lip = [0, 1, 2, 4, 5, 12, 9, 6, 9, 18, 19, 13, 16, 17, 14, 15, 0, 11]  # by hand
    expected = np.array(to_lip)[torch.stack(atr).numpy()]
    assert len(np.unique(expected)) > 2
    assert agreement(parser(images), expected) > 0.995
    assert isinstance(parser, Parser)
    assert len(ATR_LABELS) == len(to_lip)


@pytest.mark.parametrize(
    "layout", ["nhwc", *(pytest.param(other, marks=pytest.mark.slow) for other in ("nchw", "labels"))]
)
def test_layouts_and_batch_sizes(exported, described, layout):
    module, file = exported(layout=layout)
    parser = open_parser(described(file, size=[33, 33], labels="lip20", layout=layout))
    images = pictures(5, (33, 33))
    with torch.no_grad():
        (output,) = module(parser.prepare(images))
    if layout == "labels":
        expected = F.one_hot(output, 20).permute(0, 3, 1, 2).float()
    else:
        expected = output if layout == "nchw" else output.permute(0, 3, 1, 2)
    expected = F.interpolate(expected, (33, 33), mode="bilinear").argmax(1)
    assert agreement(parser(images), expected) > 0.99
    assert torch.equal(torch.cat([parser(images[:2]), parser(images[2:])]), parser(images))


@pytest.mark.slow
def test_a_file_with_a_fixed_batch_takes_any_number(exported, described):
    _, free = exported()
    _, fixed = exported(batch=2)
    description = {"size": [33, 33], "labels": "lip20"}
    images = pictures(5)
    a, b = (open_parser(described(f, n, **description)) for f, n in ((free, "a"), (fixed, "b")))
    assert torch.equal(a(images), b(images))
    assert a.info.sha256 != b.info.sha256


def test_a_model_without_sides_gets_them_from_keypoints(exported, described):
    _, file = exported(classes=3)
    parser = open_parser(described(file, size=[33, 33], labels=["background", "arms", "legs"]))
    assert parser.needs_keypoints
    images = pictures(2, (33, 33))
    keypoints = torch.full((2, 18, 2), torch.nan)
    keypoints[0, [2, 3, 4]] = torch.tensor([[5.0, 5], [5, 15], [5, 25]])  # right arm on the left, as in front
    keypoints[0, [5, 6, 7]] = torch.tensor([[25.0, 5], [25, 15], [25, 25]])
    keypoints[1, [2, 3, 4]] = keypoints[0, [5, 6, 7]]  # seen from behind
    keypoints[1, [5, 6, 7]] = keypoints[0, [2, 3, 4]]
    maps = parser(images, keypoints)
    left, right = LIP_LABELS.index("left-arm"), LIP_LABELS.index("right-arm")
    columns = torch.arange(33).expand(33, 33)
    for one, (on_left, on_right) in zip(maps, ((right, left), (left, right)), strict=True):
        arms = (one == left) | (one == right)
        assert arms.any()
        assert (one[arms & (columns < 14)] == on_left).all()
        assert (one[arms & (columns > 16)] == on_right).all()
    assert set(np.unique(maps)) <= {
        0,
        left,
        right,
        LIP_LABELS.index("left-leg"),
        LIP_LABELS.index("right-leg"),
    }


def test_sides_with_missing_joints():
    sideless = np.full((1, 10), 20, np.uint8)  # arms only
    nobody = np.full((18, 2), np.nan, np.float32)
    assert resolve_sides(sideless, nobody).tolist() == [[15] * 5 + [14] * 5]  # faces the camera
    one = nobody.copy()
    one[7] = (0, 0)  # the left wrist alone
    assert set(resolve_sides(sideless, one).ravel()) == {14}
    shoes, legs = np.full((1, 10), 22, np.uint8), nobody.copy()
    legs[[9, 12]] = (8, 0), (1, 0)  # knees stand in for the ankles
    assert resolve_sides(shoes, legs).tolist() == [[18] * 5 + [19] * 5]


def test_own_sides_are_corrected_where_both_limbs_are_known():
    shirt, l_arm, r_arm, l_leg, r_leg = (
        LIP_LABELS.index(name) for name in ("upper-clothes", "left-arm", "right-arm", "left-leg", "right-leg")
    )
    parsing = np.array([[l_arm] * 4 + [shirt] * 2 + [r_arm] * 4, [l_leg, r_leg] * 5], np.uint8)
    pose = np.full((18, 2), np.nan, np.float32)
    assert np.array_equal(correct_sides(parsing, pose), parsing)  # nothing is known
    pose[13] = (0, 1)  # the left ankle alone
    pose[[4, 7]] = (0, 0), (9, 0)  # both wrists: the right arm lies left in the image
    corrected = correct_sides(parsing, pose)
    assert corrected[0].tolist() == [r_arm] * 4 + [shirt] * 2 + [l_arm] * 4
    assert corrected[1].tolist() == parsing[1].tolist()
    pose[8] = (9, 1)  # and the right hip
    assert correct_sides(parsing, pose)[1].tolist() == [l_leg] * 5 + [r_leg] * 5
    assert np.array_equal(parsing[1], [l_leg, r_leg] * 5)  # untouched


def test_a_parser_goes_into_another_process(exported, described):
    """Pickled, as spawned processes get it: with a session of its own there, and as many threads."""
    parser = open_parser(described(exported()[1], "my", size=[33, 33], labels="lip20"))
    again = pickle.loads(pickle.dumps(parser))
    assert again._network._again == parser._network._again
    assert torch.equal(again(pictures()), parser(pictures()))


def test_who_tells_the_sides_can_be_chosen(exported, described, tmp_path):
    _, file = exported()
    own = described(file, "own", size=[33, 33], labels="lip20")
    told = described(file, "told", size=[33, 33], labels="lip20", sides="keypoints")
    sideless = described(exported(classes=3)[1], "less", size=[33, 33], labels=["background", "arms", "legs"])
    assert not open_parser(own).needs_keypoints
    assert open_parser(own, sides="keypoints").needs_keypoints
    assert open_parser(told).needs_keypoints
    assert not open_parser(told, sides="model").needs_keypoints
    images = pictures(2, (33, 33))
    joints = torch.full((2, 18, 2), torch.nan)
    joints[:, [2, 8]] = torch.tensor([0.0, 16])  # right shoulder and hip at the left border, as in front
    joints[:, [5, 11]] = torch.tensor([32.0, 16])
    plain, by_points = open_parser(own)(images), open_parser(told)(images, joints)
    assert torch.equal(open_parser(told)(images), plain)
    assert not torch.equal(by_points, plain)
    expected = [correct_sides(m, k) for m, k in zip(plain.numpy(), joints.numpy(), strict=True)]
    assert np.array_equal(by_points, np.stack(expected))
    with pytest.raises(UserError, match=r"less\.onnx: knows no left and right"):
        open_parser(sideless, sides="model")
    with pytest.raises(UserError, match="sides: input should be"):
        open_parser(described(file, "typo", size=[33, 33], labels="lip20", sides="joints"))
    with pytest.raises(UserError, match="--sides keypoints: needs a parser and keypoints"):
        AnnotatorChoice(str(own), "parsing", "none", sides="keypoints").open()
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(UserError, match="--sides model: needs a parser: give one, or leave it away"):
        AnnotatorChoice("none", str(masks), "none", sides="model").open()
    with pytest.raises(UserError, match="--sides left: unknown"):
        chosen_sides("left")


def test_outside_label_sets_have_the_right_length():
    sizes = {"lip20": 20, "cihp20": 20, "atr18": 18, "fashn18": 18, "sapiens28": 28}
    for name, count in sizes.items():
        model = SegmentationModel(size=(64, 64), labels=name)
        assert len(model.lookup()) == count
        assert model.needs_keypoints == (name == "fashn18")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": "pascal7"}, "coarser than LIP-20"),
        ({"labels": "coco"}, "labels coco: unknown: did you mean"),
        ({"labels": ["background", "tail"]}, "label tail: unknown"),
        ({"labels": ["background"]}, "2 to 256"),
        ({"size": [33, 100_000]}, "8 to 4096"),
        ({"std": [0, 1, 1]}, "std must be positive"),
        ({"fit": "stretch"}, "fit"),
        ({"colour": "rgb"}, "color"),
        ({"mean": [0.5]}, "mean"),
        ({"output": -1}, "output"),
    ],
)
def test_a_wrong_description_is_refused(exported, described, changes, told):
    _, file = exported()
    path = described(file, **({"size": [33, 33], "labels": "lip20"} | changes))
    with pytest.raises(UserError, match=told):
        open_parser(path)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"size": [40, 40]}, "inputs"),
        ({"output": 3}, "outputs"),
        ({"labels": "atr18"}, "outputs"),
        ({"layout": "nhwc"}, "outputs"),
        ({"layout": "labels"}, "outputs"),
    ],
)
def test_a_description_of_another_model_is_refused(exported, described, changes, rule):
    _, file = exported()
    with pytest.raises(RefusedFileError) as caught:
        open_parser(described(file, **({"size": [33, 33], "labels": "lip20"} | changes)))(pictures())
    assert caught.value.rule == rule


def test_what_is_missing_is_named(exported, described, tmp_path, monkeypatch, weights_folder):
    _, file = exported()
    path = described(file)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"my\.json: missing"):
        open_parser(path)
    with pytest.raises(UserError, match=r"parser scpp: unknown: did you mean schp_\w+\? known: schp_lip"):
        open_parser("scpp")
    with pytest.raises(UserError, match="no such file"):
        open_parser(tmp_path / "none.onnx")
    with pytest.raises(LicenseError, match=r"NOT FOR COMMERCIAL USE.*--accept-license"):
        open_parser("schp_lip")
    with pytest.raises(MissingWeightsError, match=r"parsing_lip\.onnx.*put it into") as caught:
        open_parser("schp_lip", accept_license=True)
    assert str(weights_folder) in str(caught.value)
    with pytest.raises(UserError, match="no pinned file"):
        open_parser("segformer_clothes", accept_license=True)
    real = builtins.__import__
    for package in ("onnxruntime", "onnx", "transformers"):

        def without(name, *args, missing=package, **kwargs):
            if name == missing:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "parser.json").write_text('{"size": [64, 64], "labels": "atr18"}')
        path = tmp_path / "folder" if package == "transformers" else described(file, **SCHP)
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", without)
            with pytest.raises(
                UserError, match=rf"{package}, not installed here: pip install reposer\[annotate"
            ):
                open_parser(path)


def test_own_weights_of_a_known_model_still_ask_for_its_license(exported):
    _, file = exported(size=(473, 473), outputs=3)
    with pytest.raises(LicenseError):
        open_parser("schp_lip", file)
    parser = open_parser("schp_lip", file, accept_license=True)
    assert parser.info.non_commercial
    assert parser(pictures(1)).shape == (1, 24, 12)
    open_parser("schp_lip", file)  # asked once


def test_a_description_may_name_a_license(exported, described):
    _, file = exported()
    terms = {"size": [33, 33], "labels": "lip20", "licence": "mine", "non_commercial": True}
    path = described(file, **terms)
    with pytest.raises(LicenseError, match="mine"):
        open_parser(path)
    assert open_parser(path, accept_license=True).info.license == "mine"
    path.with_suffix(".json").write_text(json.dumps(terms | {"licence": "stricter"}))
    with pytest.raises(LicenseError, match="stricter"):  # changed terms are shown again
        open_parser(path)
    assert load_config(SegmentationModel, path.with_suffix(".json")).non_commercial


def test_the_best_class_is_argmax_and_ties_go_to_the_first():
    scores = torch.randn(3, 20, 7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best_class(scores), scores.argmax(1).to(torch.uint8))
    assert (best_class(torch.ones(1, 4, 2, 2)) == 0).all()


def test_a_network_in_float16_answers_as_in_float32(exported, tmp_path):
    import onnx
    from onnx import TensorProto, numpy_helper

    _, path = exported()
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    description = SegmentationModel(size=(33, 33), labels="atr18")
    x = torch.rand(2, 3, 33, 33)
    whole, half = (OnnxNetwork(file, description)(x) for file in (path, tmp_path / "half.onnx"))
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.02 * whole.abs().max()


def test_two_files_of_an_export_and_other_inputs_say_how_to_export(exported, tmp_path):
    import onnx

    _, path = exported()
    description = SegmentationModel(size=(33, 33), labels="atr18")
    model = onnx.load(path)
    external = {"save_as_external_data": True, "location": "two.onnx.data", "size_threshold": 0}
    onnx.save(model, tmp_path / "two.onnx", **external)
    with pytest.raises(UserError, match=r"lies in another file.*export again with.*external_data=False"):
        OnnxNetwork(tmp_path / "two.onnx", description)
    with pytest.raises(UserError, match=r"correct the field size of its description: \[33, 33\]"):
        OnnxNetwork(path, SegmentationModel(size=(33, 35), labels="atr18"))
    for kind, told in ((onnx.TensorProto.FLOAT, "channels before"), (onnx.TensorProto.DOUBLE, "as float32")):
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        ends = [onnx.helper.make_tensor_value_info(name, kind, [1, 33, 33, 3]) for name in "xy"]
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        plain = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(plain, tmp_path / "x.onnx")
        with pytest.raises(UserError, match=told):
            OnnxNetwork(tmp_path / "x.onnx", description)
