"""Targets that are poses: where they come from, how they are placed, and completion by a predictor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.config import stored_hash
from reposer.data.keypoints import HEADER, NECK, write_keypoints_csv
from reposer.data.orientation import ORIENTATIONS, orientation
from reposer.data.parsing import write_parsing
from reposer.errors import UserError
from reposer.generation.batch import generate
from reposer.generation.pair_sources import FolderPairs
from reposer.generation.pictures import load_person, people_batch
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.targets import (
    CROWN,
    SOLE,
    PoseTarget,
    canonical_pose,
    inside,
    keypoints_beside,
    place,
    read_targets,
)
from reposer.images import encode_png
from reposer.models.generators import build_generator, build_predictor
from reposer.models.parsing_networks import decide_maps
from reposer.runtime import setup
from reposer.storage import checkpoint
from reposer.structures import MISSING_LABEL
from reposer.trained.networks import GeneratorConfig
from reposer.workflows.generate import _map_of, _mask_of

SIZE = (64, 32)
TINY = {
    "san": {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "n_convs": 1, "deep_channels": [8]},
    "rsa_gan": {"width": 32, "blocks": 1, "res_blocks": 0},
    "patn": {"ngf": 4, "blocks": 1},
}
PREDICTOR = {"width": 4, "halvings": 2, "res_blocks": 0}


def transfer(name: str, **keywords) -> PoseTransfer:
    torch.manual_seed(0)
    config = GeneratorConfig(generator=name, generator_args=TINY[name], size=SIZE)
    generator = build_generator(name, **TINY[name])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(5)  # new weights hardly leave gray
    return PoseTransfer(generator, config, setup("cpu", "float32"), **keywords)


def predictor(size=SIZE) -> MapPredictor:
    torch.manual_seed(1)
    config = GeneratorConfig(generator="parsing_predictor", generator_args=PREDICTOR, size=size)
    return MapPredictor(build_predictor("parsing_predictor", **PREDICTOR), config, setup("cpu", "float32"))


def somebody(keypoints=None, mask=None, parsing=None):
    rng = np.random.default_rng(0)
    labels = np.zeros(SIZE, np.uint8)
    labels[10:50, 8:24] = 5
    labels = labels if parsing is None else parsing
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return load_person(image, labels, mask, keypoints, size=SIZE, name="a.png")


# ---- placing


def test_a_canonical_pose_is_as_tall_as_the_sources_key_points():
    """Neck and ankles of the source's own front pose, shrunk and shifted, are found again."""
    own = canonical_pose("front") * 12 + np.array([14, 30], np.float32)
    placed = place(canonical_pose("back"), somebody(own))
    expected = canonical_pose("back") * 12 + np.array([14, 30], np.float32)
    np.testing.assert_allclose(placed, expected, atol=1e-4)


def test_without_key_points_the_mask_tells_the_height():
    mask = np.zeros(SIZE, bool)
    mask[8:56, 10:21] = True
    placed = place(canonical_pose("front"), somebody(mask=mask))
    scale = 48 / (SOLE - CROWN)
    assert placed[NECK] == pytest.approx([15, 8 + (-1 - CROWN) * scale], abs=1e-4)


def test_without_either_the_frame_is_filled():
    everything = np.ones(SIZE, bool)
    for name in ORIENTATIONS:
        placed = place(canonical_pose(name), somebody(mask=everything))
        assert np.array_equal(np.isnan(placed), np.isnan(inside(placed, SIZE))), "nothing falls outside"
        assert ORIENTATIONS[int(orientation(placed))] == name
        assert np.nanmax(placed[:, 1]) - np.nanmin(placed[:, 1]) > 0.75 * SIZE[0]


def test_joints_outside_the_image_are_missing_and_a_pose_without_any_is_refused():
    pose = np.full((18, 2), 5.0, np.float32)
    pose[3], pose[4], pose[5] = (31.4, 63.4), (31.6, 5), (-0.6, 5)
    kept = inside(pose, SIZE)
    assert np.isnan(kept[4:6]).all()
    assert not np.isnan(kept[:4]).any()
    target = PoseTarget("far.json", np.full((18, 2), 900.0, np.float32), "source")
    with pytest.raises(UserError, match=r"target far\.json: no keypoint lies inside the image"):
        target.for_source(somebody())


# ---- reading


def test_key_points_of_files_names_and_images(tmp_path, people, people_folder):
    points = [[10, 20]] * 17 + [None]
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"keypoints": points, "width": 64, "height": 128}))
    (own,) = read_targets(str(path))
    donor = own.for_source(somebody())
    np.testing.assert_allclose(donor.keypoints[0], (4.75, 9.75))
    assert np.isnan(donor.keypoints[17]).all()
    assert (donor.parsing == MISSING_LABEL).all()
    assert not donor.mask.any()
    triples = [v for x, y in [(10, 20)] * 17 for v in (x, y, 1)] + [0, 0, 0]
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": triples}]}))
    (theirs,) = read_targets(str(path))
    for name in ("Up.JSON", "Up.Json"):
        (tmp_path / name).write_text(path.read_text())
        (other,) = read_targets(str(tmp_path / name))
        np.testing.assert_array_equal(other.keypoints, theirs.keypoints)
    np.testing.assert_allclose(theirs.for_source(somebody()).keypoints[0], (10, 20))
    image = sorted(people_folder.glob("*.png"))[0]
    with pytest.raises(UserError, match=r"has no keypoints: put a row"):
        read_targets(str(image))
    write_keypoints_csv(people_folder / "keypoints.csv", {image.name: np.full((18, 2), 7.0, np.float32)})
    (beside,) = read_targets(str(image))
    assert beside.size == SIZE
    assert np.array_equal(keypoints_beside(image), beside.keypoints)
    with pytest.raises(UserError, match="has no keypoint: choose another"):
        read_targets(people.names[0], people)  # the packed people have none
    with pytest.raises(UserError, match=f"did you mean {people.names[0]}"):
        read_targets(people.names[0][:-1], people)


@pytest.mark.parametrize(
    "row",
    [
        f"1.jpg: {[60] * 17}: {[30] * 18}",
        "1.jpg: [1]: [2]",
        f"1.jpg: oops: {[30] * 18}",
        f"1.jpg: {[60] * 18}",
        f"1.jpg, {[60] * 18}, {[30] * 18}",
    ],
)
def test_a_damaged_row_of_the_image_is_told_and_that_of_another_is_not(tmp_path, row):
    folder = tmp_path / "1.jpg of 11.jpg"  # no name in a path counts
    folder.mkdir()
    good = [f"{name}: {[60] * 18}: {[number] * 18}" for number, name in ((22, "22.jpg"), (3, "3.jpg"))]
    (folder / "keypoints.csv").write_text("\n".join([HEADER, row, *good]) + "\n")
    with pytest.raises(UserError, match=r"keypoints\.csv, row 2, \w+: .*: correct the row"):
        keypoints_beside(folder / "1.jpg")
    above = "\n".join([HEADER, f"11.jpg: {[60] * 18}: {[11] * 18}"]) + "\n"
    (tmp_path / "keypoints.csv").write_text(above)
    assert keypoints_beside(folder / "22.jpg")[0].tolist() == [22, 60]
    assert keypoints_beside(folder / "11.jpg")[0].tolist() == [11, 60]
    for nobody in ("2.jpg", "row 2", "111.jpg"):
        assert keypoints_beside(folder / nobody) is None


@pytest.mark.parametrize("parent", ["sub", "0002", "a b"])
@pytest.mark.parametrize("spelled", ["", "parent", "bare"])
def test_an_image_in_a_folder_below_has_its_own_annotations(tmp_path, monkeypatch, parent, spelled):
    """As annotate names them; an image that lies in the folder above has the plain name."""
    (tmp_path / parent).mkdir()
    made = {"x.jpg": 3, f"{parent}/x.jpg": 5, f"{parent}/alone.jpg": 7, f"{parent}/flat.jpg": 9}
    for kind in ("parsing", "mask"):
        (tmp_path / kind / parent).mkdir(parents=True)
        for name in ("x.jpg", f"{parent}/x.jpg", f"{parent}/alone.jpg"):
            (tmp_path / kind / name).with_suffix(".png").write_bytes(b"")
        (tmp_path / kind / "flat.png").write_bytes(b"")
    for name in made:
        (tmp_path / name).write_bytes(b"")
    rows = {name: np.full((18, 2), number, np.float32) for name, number in made.items()}
    rows["flat.jpg"] = rows.pop(f"{parent}/flat.jpg")
    write_keypoints_csv(tmp_path / "keypoints.csv", rows)
    base = tmp_path
    if spelled:  # from inside the folder
        monkeypatch.chdir(tmp_path / parent)
        base = Path("..")
    place = Path("") if spelled == "bare" else base / parent
    assert keypoints_beside(base / "x.jpg")[0].tolist() == [3, 3]
    for name, number, own in (("x", 5, f"{parent}/x"), ("alone", 7, f"{parent}/alone"), ("flat", 9, "flat")):
        assert keypoints_beside(place / f"{name}.jpg")[0].tolist() == [number, number]
        for kind, path in (
            ("parsing", _map_of(place / f"{name}.jpg", None)),
            ("mask", _mask_of(place / f"{name}.jpg")),
        ):
            assert path.resolve() == (tmp_path / kind / f"{own}.png").resolve()
    (tmp_path / parent / "y.jpg").write_bytes(b"")
    (tmp_path / "parsing" / "y.png").write_bytes(b"")
    rows["y.jpg"] = rows["flat.jpg"]
    write_keypoints_csv(tmp_path / "keypoints.csv", rows)
    assert _map_of(place / "y.jpg", None).name == "y.png"
    (tmp_path / "y.PNG").write_bytes(b"")  # now these are its annotations
    assert _map_of(place / "y.jpg", None) is None
    assert keypoints_beside(place / "y.jpg") is None


def test_annotations_of_an_image_that_is_nowhere_are_none():
    assert keypoints_beside(Path("/nosuch/folder/x.jpg")) is None
    assert _map_of(Path("/x.jpg"), None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canonical:frnt", "did you mean front"),
        ("canonical:", "names no orientation"),
        ("nowhere.png", "neither a file nor an image"),
        ("missing.json", "missing.json"),
        ("missing.JSON", "^missing.JSON"),
    ],
)
def test_unknown_targets_are_named(text, message):
    with pytest.raises(UserError, match=message):
        read_targets(text)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("{", "file"),
        ('{"keypoints": [[1, 2]]}', "keypoints"),
        (json.dumps({"keypoints": [[1, 2, 3]] * 18}), r"keypoints\[0\]"),
        (json.dumps({"keypoints": [["1", 2]] * 18}), r"keypoints\[0\]"),
        (json.dumps({"keypoints": [[1, 2]] * 18, "width": 0, "height": 3}), "width"),
        ('{"people": [{}]}', "pose_keypoints"),
        (json.dumps({"keypoints": [None] * 18}), "has no keypoint"),
    ],
)
def test_damaged_pose_files_are_refused(tmp_path, content, field):
    (tmp_path / "pose.json").write_text(content)
    with pytest.raises(UserError, match=field):
        read_targets(str(tmp_path / "pose.json"))


# ---- completion


@pytest.mark.parametrize("name", ["rsa_gan", "patn"])
def test_generators_of_key_points_take_a_pose_alone(name):
    source = somebody(canonical_pose("front") * 12 + 20)
    model = transfer(name)
    pictures = [
        model.transfer(source, target.for_source(source)) for target in read_targets("canonical:front,left")
    ]
    assert not np.array_equal(*pictures)
    assert "not read" in model.provenance()
    with pytest.raises(UserError, match=r"1 of 1 targets have no parsing map.*--predictor"):
        model.transfer(source, read_targets("canonical:left")[0].for_source(source), "source")


def test_san_needs_a_predictor_for_a_pose_alone():
    source = somebody(canonical_pose("front") * 12 + 20)
    donor = read_targets("canonical:left")[0].for_source(source)
    with pytest.raises(UserError, match="name a predictor"):
        transfer("san").transfer(source, donor)
    maps = predictor()
    model = transfer("san", predictor=maps)
    batch = people_batch([source], [donor])
    parsing, mask = decide_maps(maps.network(batch))
    by_hand = replace(batch, target_parsing=parsing, target_mask=mask)
    assert torch.equal(model(batch), transfer("san")(by_hand))
    assert "predicted from what the source wears" in model.provenance()
    with pytest.raises(UserError, match="background donor"):
        model.transfer(source, donor, "donor")
    blind = replace(batch, target_keypoints=batch.target_keypoints * np.nan)
    with pytest.raises(UserError, match="1 of 1 targets have no keypoint"):
        model(blind)


def test_given_maps_are_kept_unless_all_shall_be_predicted():
    source = somebody(canonical_pose("front") * 12 + 20)
    donors = [
        somebody(canonical_pose("back") * 12 + 20),
        read_targets("canonical:left")[0].for_source(source),
    ]
    batch = people_batch([source, source], donors)
    given, always = (transfer("san", predictor=predictor(), maps=maps) for maps in ("given", "predicted"))
    kept, replaced = given.completed(batch), always.completed(batch)
    assert torch.equal(kept.target_parsing[0], batch.target_parsing[0])
    assert torch.equal(kept.target_parsing[1], replaced.target_parsing[1])
    assert not torch.equal(kept.target_parsing[0], replaced.target_parsing[0])
    assert torch.equal(given.with_predictor(predictor(), "predicted")(batch), always(batch))


@pytest.mark.parametrize("name", ["san", "rsa_gan", "patn"])
@pytest.mark.parametrize("lacks", [{}, {"parsing": np.zeros(SIZE, np.uint8)}, {"mask": np.zeros(SIZE, bool)}])
def test_sources_without_key_points_or_map_still_give_pictures(name, lacks):
    source = somebody(**lacks)
    model = transfer(name, predictor=predictor())
    for target in read_targets("canonical:all"):
        assert model.transfer(source, target.for_source(source)).shape == (*SIZE, 3)


def test_a_predictor_of_another_size_or_none_is_refused():
    with pytest.raises(UserError, match=r"\(128, 64\)"):
        transfer("san", predictor=predictor((128, 64)))
    with pytest.raises(UserError, match="by what is not said"):
        transfer("san", maps="predicted")
    with pytest.raises(UserError, match="maps guessed"):
        transfer("san", maps="guessed")


def test_a_folder_in_several_poses_is_a_resumable_job(tmp_path, people_folder):
    model = transfer("san", predictor=predictor())
    pairs = FolderPairs(people_folder, read_targets("canonical:front,back-left"), size=SIZE)
    report = generate(model, pairs, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert len(names) == 2 * 11  # the twelfth person has no map
    assert names[0].endswith("___canonical-back-left.png")
    assert any("target maps are predicted" in note for note in report.notes)
    settings = json.loads((tmp_path / "out" / "job.json").read_text())["settings"]
    assert settings["predictor"] == model.predictor.weights_hash
    with pytest.raises(UserError):
        generate(transfer("san", predictor=predictor(), maps="predicted"), pairs, tmp_path / "out")


@pytest.mark.parametrize(
    ("pose", "fit"),
    [
        ({"keypoints": [[40, 100], *[None] * 17]}, ["large"]),  # outside of the two others
        ({"keypoints": [[3, 3], *[None] * 17]}, ["large", "long", "small"]),
        ({"keypoints": [[10, 100], *[None] * 17]}, ["large", "long"]),
        ({"keypoints": [[40, 100], *[None] * 17], "width": 64, "height": 128}, ["large", "long", "small"]),
        ({"keypoints": [[70, 100], *[None] * 17], "width": 64, "height": 128}, []),
    ],
)
def test_an_image_that_a_pose_does_not_fit_is_a_problem_and_the_others_are_made(tmp_path, pose, fit):
    folder = tmp_path / "people"
    (folder / "parsing").mkdir(parents=True)
    for name, (height, width) in {"large": (128, 64), "long": (128, 32), "small": (64, 32)}.items():
        pixels = np.full((height, width, 3), 90, np.uint8)
        (folder / f"{name}.png").write_bytes(encode_png(pixels))
        write_parsing(folder / "parsing" / f"{name}.png", np.full((height, width), 5, np.uint8))
    (tmp_path / "pose.json").write_text(json.dumps(pose))
    own, front = read_targets(str(tmp_path / "pose.json")), read_targets("canonical:front")
    pairs = FolderPairs(folder, own + front, size=SIZE)
    wanted = [
        (f"{name}.png", target) for name in ("large", "long", "small") for target in ("pose.json", "front")
    ]
    wanted = [(n, t) for n, t in wanted if t == "front" or n.removesuffix(".png") in fit]
    assert pairs.names == [(n, t.replace("front", "canonical-front")) for n, t in wanted]
    left = [name for name in ("large", "long", "small") if name not in fit]
    assert [(p.file, p.field) for p in pairs.problems] == [(f"{name}.png", "keypoints") for name in left]
    assert all("target pose.json: no keypoint lies inside the image" in p.message for p in pairs.problems)
    assert len(pairs.read(range(len(wanted))).source_image) == len(wanted)
    model = transfer("patn")
    report = generate(model, pairs, tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(wanted), report
    if left:
        told = (tmp_path / "out" / "problems.csv").read_text()
        assert all(f"{name}.png" in told for name in left)
    if not fit:
        with pytest.raises(UserError, match="no keypoint lies inside the image"):
            generate(model, FolderPairs(folder, own, size=SIZE), tmp_path / "none")


def test_a_predictor_comes_from_a_run_or_an_export(tmp_path):
    maps = predictor()
    run = tmp_path / "run"
    run.mkdir()
    settings = {
        "predictor": "parsing_predictor",
        "predictor_args": PREDICTOR,
        "data": {"folder": "/d/market"},
    }
    (run / "config.json").write_text(json.dumps(settings))
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        MapPredictor.from_pretrained(run)
    meta = {"config_hash": stored_hash(run / "config.json"), "size": list(SIZE), "identity_hash": "abc"}
    checkpoint.save(run / "checkpoints", 7, {"network": maps.network.state_dict()}, meta)
    found = MapPredictor.from_pretrained(run)
    assert found.weights_hash == maps.weights_hash
    assert (found.config.step, found.config.identity_hash) == (7, "abc")
    found.save_pretrained(tmp_path / "export")
    assert MapPredictor.from_pretrained(tmp_path / "export").weights_hash == maps.weights_hash
    with pytest.raises(UserError, match="is a predictor of label maps, not a generator"):
        PoseTransfer.from_pretrained(tmp_path / "export")
    transfer("patn").save_pretrained(tmp_path / "patn")
    with pytest.raises(UserError, match="is a generator, not a predictor"):
        MapPredictor.from_pretrained(tmp_path / "patn")
