"""Every format of keypoints, good and bad; files written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.annotation.keypoints import KeypointFiles, repeated_names
from reposer.data.keypoint_imports import FORMATS, import_keypoints
from reposer.data.keypoints import (
    body25_to_openpose,
    coco_to_openpose,
    read_keypoints_csv,
    write_keypoints_csv,
    wrong_meaning,
)
from reposer.errors import UserError

POINTS = np.array([[j + 1.0, 2 * j + 1.0] for j in range(18)])  # x, y
COMMA = "file_id,img_h,img_w," + ",".join(f"p{j}_{a}" for j in range(18) for a in "xy")


def openpose(*people, field="pose_keypoints_2d"):
    return json.dumps({"version": 1.3, "people": [{"person_id": [-1], field: list(p)} for p in people]})


def flat(points, confidence=0.9):
    return np.c_[points, np.full(len(points), confidence)].ravel().tolist()


def comma_row(name="a.jpg", points=POINTS, size=(128, 64)):
    return ",".join([name, *map(str, size), *(f"{v:g}" for v in np.ravel(points))])


def test_openpose_and_viton(tmp_path):
    missing = flat(POINTS)
    missing[3 * 4 : 3 * 5] = [0, 0, 0]  # joint 4
    (tmp_path / "a_keypoints.json").write_text(openpose(flat(POINTS + 5, 0.5), missing))
    (tmp_path / "b.json").write_text(openpose(flat(POINTS), field="pose_keypoints"))
    (tmp_path / "c_keypoints.json").write_text(openpose())
    for kind in ("openpose", "viton"):
        poses, problems = import_keypoints(tmp_path, kind, ["a.jpg", "b.png", "c.jpg", "d.jpg"])
        assert list(poses) == ["a.jpg", "b.png", "c.jpg"]
        assert np.isnan(poses["a.jpg"][4]).all()
        assert np.array_equal(np.delete(poses["a.jpg"], 4, 0), np.delete(POINTS, 4, 0))  # the surer person
        assert np.array_equal(poses["b.png"], POINTS)
        assert np.isnan(poses["c.jpg"]).all()
        assert [p.rule for p in problems] == ["missing-keypoints"]


def test_body25(tmp_path):
    points = np.array([[j, 100 + j] for j in range(25)], float)
    (tmp_path / "a.json").write_text(openpose(flat(points)))
    pose = import_keypoints(tmp_path, "openpose", ["a.jpg"])[0]["a.jpg"]
    # nose, neck, right arm, left arm, right leg 9-11, left leg 12-14, right eye 15, left eye, ears
    assert pose[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    with pytest.raises(ValueError, match="BODY_25"):
        body25_to_openpose(points[:18])


def test_comma_and_colon(tmp_path):
    gone = POINTS.copy()
    gone[3] = -1
    rows = [COMMA, comma_row(), comma_row("b.jpg", gone), ""]
    (tmp_path / "k.csv").write_text("\r\n".join(rows))
    poses, problems = import_keypoints(tmp_path / "k.csv", "comma", [])
    assert not problems
    assert np.array_equal(poses["a.jpg"], POINTS)
    assert np.isnan(poses["b.jpg"][3]).all()
    y, x = (json.dumps(v.astype(int).tolist()) for v in (POINTS[:, 1], POINTS[:, 0]))
    (tmp_path / "c.csv").write_text(f"name:keypoints_y:keypoints_x\na.jpg: {y}: {x}\n")
    assert np.array_equal(import_keypoints(tmp_path / "c.csv", "colon", [])[0]["a.jpg"], POINTS)


def test_pidm_is_shifted(tmp_path):
    stored = POINTS - [40, 0]
    stored[7] = -1
    (tmp_path / "a.txt").write_text("\n".join(f"{x:g} {y:g}" for x, y in stored))
    pose = import_keypoints(tmp_path, "pidm", ["a.jpg"], shift_x=40)[0]["a.jpg"]
    assert np.isnan(pose[7]).all()
    assert np.array_equal(np.delete(pose, 7, 0), np.delete(POINTS, 7, 0))
    assert np.isnan(import_keypoints(tmp_path, "pidm", ["a.jpg"])[0]["a.jpg"]).all()  # left of the crop


BAD_JSON = {
    "empty": "",
    "no-json": "{",
    "deep": "[" * 20_000,
    "list": "[]",
    "no-people": "{}",
    "people-number": '{"people": 3}',
    "person-list": '{"people": [[1, 2]]}',
    "no-points": '{"people": [{}]}',
    "short": openpose(flat(POINTS)[:-1]),
    "text": openpose([*flat(POINTS)[:-1], "x"]),
    "true": openpose([*flat(POINTS)[:-1], True]),
    "null": openpose([*flat(POINTS)[:-1], None]),
    "nan": openpose(flat(POINTS)).replace("18.0", "NaN", 1),
    "infinite": openpose(flat(POINTS)).replace("18.0", "1e999", 1),
    "large": openpose(flat(POINTS)).replace("18.0", "1e9", 1),
    "bytes": "\x80\x81",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_listed_and_the_rest_read(name, tmp_path):
    (tmp_path / "bad.json").write_bytes(BAD_JSON[name].encode("latin-1"))
    (tmp_path / "good.json").write_text(openpose(flat(POINTS)))
    poses, problems = import_keypoints(tmp_path, "openpose", ["bad.jpg", "good.jpg"])
    assert list(poses) == ["good.jpg"]
    assert len(problems) == 1
    assert problems[0].file.endswith("bad.json")
    assert problems[0].rule == "bad-keypoints"


@pytest.mark.parametrize(
    "row",
    [
        comma_row("../a.jpg"),
        comma_row("")[0:],
        comma_row() + ",1",
        comma_row()[:-3],
        comma_row(points=POINTS * np.nan),
        comma_row(points=POINTS + 1e5),
        comma_row(points=POINTS[:, ::-1] * 4),
        comma_row().replace("128", "tall"),
        comma_row().replace("128", "inf"),
        '"' + comma_row(),
        "\x80",
    ],
)
def test_bad_rows_are_listed(row, tmp_path):
    (tmp_path / "k.csv").write_bytes(f"{COMMA}\n{row}\n{comma_row('b.jpg')}\n".encode("latin-1"))
    poses, problems = import_keypoints(tmp_path / "k.csv", "comma", [])
    assert list(poses) == ["b.jpg"]
    assert [p.row for p in problems] == [2]


def test_what_cannot_be_read_at_all(tmp_path):
    (tmp_path / "k.csv").write_text("name,x\n")
    with pytest.raises(UserError, match="the first line must be file_id"):
        import_keypoints(tmp_path / "k.csv", "comma", [])
    with pytest.raises(UserError, match=r"k\.csv: is a file; openpose is a folder.*colon:.*k\.csv or comma:"):
        import_keypoints(tmp_path / "k.csv", "openpose", [])
    with pytest.raises(UserError, match="known: colon, comma"):
        import_keypoints(tmp_path, "json", [])
    (tmp_path / "a.txt").write_text("1 2\n" * 17)
    (tmp_path / "b.txt").write_text("1 2\n" * 17 + "1 x\n")
    (tmp_path / "c.json").symlink_to("/etc/hostname")
    assert len(import_keypoints(tmp_path, "pidm", ["a.jpg", "b.jpg"])[1]) == 2
    _, problems = import_keypoints(tmp_path, "openpose", ["c.jpg"])  # leads outside the folder
    assert problems[0].rule == "bad-keypoints"
    assert len(FORMATS) == 6


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_stop_the_reader(data):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.json").write_bytes(data)
        (folder / "a.txt").write_bytes(data)
        for kind in ("openpose", "pidm"):
            poses, problems = import_keypoints(folder, kind, ["a.jpg"])
            assert len(poses) + len(problems) == 1


def test_coco_by_hand():
    points = np.arange(34, dtype=float).reshape(17, 2)
    scores = np.linspace(0.9, 0.5, 17)
    pose, values = coco_to_openpose(points, scores, 0.0)
    order = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    for joint, coco in enumerate(order):
        if coco is not None:
            assert pose[joint].tolist() == points[coco].tolist()
            assert values[joint] == pytest.approx(scores[coco])
    assert pose[1].tolist() == ((points[5] + points[6]) / 2).tolist()
    assert values[1] == pytest.approx(scores[6])
    pose, values = coco_to_openpose(points, scores, scores[5])
    assert np.isnan(pose[[1, 2]]).all()
    assert values[[1, 2]].tolist() == [0, 0]


# ---- what a set of poses means

# a standing person by hand, facing us: x, y of the joints by their names
BODY = {
    **{"nose": (32, 14), "neck": (32, 26), "rsho": (22, 27), "relb": (17, 42), "rwri": (16, 56)},
    **{"lsho": (42, 27), "lelb": (47, 42), "lwri": (48, 56), "rhip": (26, 60), "rkne": (25, 85)},
    **{"rank": (24, 110), "lhip": (38, 60), "lkne": (39, 85), "lank": (40, 110), "reye": (30, 12)},
    **{"leye": (34, 12), "rear": (27, 13), "lear": (37, 13), "top": (32, 4), "foot": (40, 114)},
}
_COCO = "nose leye reye lear rear lsho rsho lelb relb lwri rwri lhip rhip lkne rkne lank rank"
_OPENPOSE = "nose neck rsho relb rwri lsho lelb lwri rhip rkne rank lhip lkne lank reye leye rear lear"
COCO = _COCO.split()
ORDERS = {  # as the programs document them
    "openpose18": _OPENPOSE.split(),
    "coco17+neck": [*COCO, "neck"],
    "body25b": [*COCO, "neck", "top", *["foot"] * 6],
}


def people(order: str, count: int = 12) -> list[np.ndarray]:
    """Poses (J, 2) in an order: people of several sizes at several places, each joint moved a little."""
    rng = np.random.default_rng(3)
    body = np.array([BODY[name] for name in ORDERS[order]], float)
    return [
        body * rng.uniform(0.7, 1.1) + rng.uniform(0, 5, 2) + rng.normal(0, 1, body.shape)
        for _ in range(count)
    ]


CHANGES = {
    "coco": (people("coco17+neck"), "COCO-17's with the neck behind it order"),
    "swapped": ([pose[:, ::-1] for pose in people("openpose18")], "12 of 12 people lie on their side: x and"),
    "fractions": ([pose / [64, 128] for pose in people("openpose18")], "at most 0.*: fractions of the image"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_set_that_means_something_else_is_refused_with_what_it_is(change, tmp_path):
    poses, told = CHANGES[change]
    write_keypoints_csv(tmp_path / "k.csv", {f"{i}.jpg": np.abs(pose) for i, pose in enumerate(poses)})
    with pytest.raises(UserError, match=told):
        read_keypoints_csv(tmp_path / "k.csv")
    for i, pose in enumerate(poses):
        (tmp_path / f"{i}_keypoints.json").write_text(openpose(flat(np.abs(pose))))
    with pytest.raises(UserError, match=told):
        KeypointFiles("openpose", tmp_path)


@pytest.mark.parametrize("kind", ["one pose", "-1 to 1", "few joints"])
def test_fractions_are_told_whatever_the_poses_are(kind, tmp_path):
    """One pose everywhere; OpenPose's --keypoint_scale 4, half of which reads as missing; three joints."""
    for i, pose in enumerate(people("openpose18", 40)):
        part = (people("openpose18", 1)[0] if kind == "one pose" else pose) / [64, 128]
        if kind == "-1 to 1":
            part = 2 * part - 1
        if kind == "few joints":
            part[3:] = -1
        (tmp_path / f"{i}_keypoints.json").write_text(openpose(flat(part)))
    with pytest.raises(
        UserError, match=r"coordinates of [0-9]+ poses are at most .*: fractions of the image"
    ):
        KeypointFiles("openpose", tmp_path)
    assert wrong_meaning([np.ones((18, 2), np.float32)] * 9) is None  # whole numbers are pixels


def test_25_joints_in_the_order_of_body_25b_are_refused_and_in_that_of_body_25_read(tmp_path):
    for i, pose in enumerate(people("body25b")):
        (tmp_path / f"{i}_keypoints.json").write_text(openpose(flat(pose)))
    with pytest.raises(UserError, match="in BODY_25B's order by the lengths of their bones"):
        KeypointFiles("openpose", tmp_path)
    wanted = people("openpose18")
    for i, pose in enumerate(wanted):
        middle = (pose[8] + pose[11])[None] / 2
        body25 = np.concatenate([pose[:8], middle, pose[8:], np.tile(pose[13], (6, 1))])
        (tmp_path / f"{i}_keypoints.json").write_text(openpose(flat(body25)))
    files = KeypointFiles("openpose", tmp_path)
    for i, pose in enumerate(wanted):
        np.testing.assert_allclose(files.find(f"{i}.jpg", (300, 300))[0], pose, rtol=1e-6)


def test_few_poses_and_poses_with_missing_joints_are_left_alone():
    assert wrong_meaning(people("coco17+neck", 4)) is None
    assert wrong_meaning(people("openpose18")) is None
    poses = np.stack(people("openpose18", 40)).astype(np.float32)
    poses[np.random.default_rng(0).random(poses.shape[:2]) < 0.4] = np.nan
    assert wrong_meaning(poses) is None
    poses[:] = np.nan
    assert wrong_meaning(poses) is None
    side = np.stack(people("openpose18"))
    side[:, :, 0] = 30 + (side[:, :, 0] - 30) / 10  # seen from the side: both shoulders at one place
    assert wrong_meaning(side) is None


@pytest.mark.parametrize(("joints", "whose"), [(17, "COCO's"), (15, "MPI's"), (26, "Halpe's")])
def test_another_number_of_joints_says_whose_it_is(joints, whose, tmp_path):
    (tmp_path / "a.json").write_text(openpose(flat(np.ones((joints, 2)))))
    (problem,) = import_keypoints(tmp_path, "openpose", ["a.jpg"])[1]
    assert whose in problem.message
    (tmp_path / "k.csv").write_text(f"name:keypoints_y:keypoints_x\na.jpg: {[1] * joints}: {[1] * joints}\n")
    (problem,) = read_keypoints_csv(tmp_path / "k.csv")[1]
    assert whose in problem.message


# ---- AlphaPose


def alphapose(name, pose, score, joint_scores=None):
    scores = np.full(len(pose), 0.8) if joint_scores is None else joint_scores
    return {
        **{"image_id": name, "category_id": 1, "score": score},
        "keypoints": np.c_[pose, scores].ravel().tolist(),
    }


@pytest.mark.parametrize("joints", [17, 26, 136])
def test_alphapose_is_read_with_the_surest_person_of_each_image(joints, tmp_path):
    coco = [pose[:17] for pose in people("coco17+neck")]
    more = [np.concatenate([pose, np.full((joints - 17, 2), 7.0)]) for pose in coco]
    entries = [alphapose(f"{i}.jpg", pose, 2.0) for i, pose in enumerate(more)]
    faint = np.full(joints, 0.8)
    faint[ORDERS["coco17+neck"].index("rwri")] = 0.1
    entries[1] = alphapose("1.jpg", more[1], 2.0, faint)
    entries += [alphapose("0.jpg", more[5], 1.0), {"image_id": 7, "keypoints": []}, "x"]
    file = tmp_path / "alphapose-results.json"
    file.write_text(json.dumps(entries))
    poses, problems = import_keypoints(file, "alphapose", [])
    assert len(poses) == 12
    assert [p.field for p in problems] == ["image_id", "person"]
    for joint, name in enumerate(ORDERS["openpose18"]):
        wanted = coco[0][[5, 6]].mean(0) if name == "neck" else coco[0][COCO.index(name)]
        np.testing.assert_allclose(poses["0.jpg"][joint], wanted, rtol=1e-6)
    assert np.isnan(poses["1.jpg"][4]).all()
    assert np.isnan(poses["1.jpg"]).any(1).sum() == 1
    found, _ = KeypointFiles("alphapose", file).find("some/folder/3.jpg", (300, 300))
    np.testing.assert_allclose(found[0], coco[3][0], rtol=1e-6)
    with pytest.raises(UserError, match=r"AlphaPose's file for all images.*say alphapose:.*results\.json"):
        KeypointFiles("openpose", file)


def test_files_and_folders_given_for_each_other_say_what_lies_there(tmp_path):
    (tmp_path / "a_keypoints.json").write_text(openpose(flat(POINTS)))
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": []}))
    (tmp_path / "other.json").write_text("{")
    (tmp_path / "k.txt").write_text("1 2")
    for file, told in {
        "a_keypoints.json": "is the file of one image; openpose is a folder: give its folder: openpose:",
        "coco.json": "a file of COCO's annotations",
        "other.json": "is a file; openpose is a folder: give the folder that holds a file of openpose",
        "k.txt": "a table is read by colon:",
        "none": "no such folder",
    }.items():
        with pytest.raises(UserError, match=told):
            KeypointFiles("openpose", tmp_path / file)
    with pytest.raises(UserError, match="is a folder: alphapose is one file for all images"):
        KeypointFiles("alphapose", tmp_path)
    with pytest.raises(UserError, match="no list of people"):
        KeypointFiles("alphapose", tmp_path / "coco.json")


@pytest.mark.parametrize("kind", ["comma", "colon", "openpose", "alphapose"])
def test_joints_in_the_corner_are_missing_ones_and_refused(kind, tmp_path):
    """Zeros for missing joints are what COCO and OpenPose write; here nothing else says that they miss."""
    poses = people("openpose18")
    for pose in poses[::4]:
        pose[[4, 7]] = 0
    told = r"6 joints of 3 poses lie at 0, 0, the corner: these are missing ones: write a missing joint as -1"
    path = tmp_path / "k.csv"
    if kind == "comma":
        rows = [comma_row(f"{i}.jpg", np.round(pose, 3), (256, 128)) for i, pose in enumerate(poses)]
        path.write_text("\n".join([COMMA, *rows]))
    elif kind == "colon":
        write_keypoints_csv(path, {f"{i}.jpg": pose for i, pose in enumerate(poses)})
    elif kind == "openpose":
        path = tmp_path
        for i, pose in enumerate(poses):
            (tmp_path / f"{i}_keypoints.json").write_text(openpose(flat(pose)))
    else:
        coco = [pose[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]] for pose in poses]
        entries = [
            {"image_id": f"{i}.jpg", "keypoints": flat(pose), "score": 1} for i, pose in enumerate(coco)
        ]
        path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=told):
        import_keypoints(path, kind, [f"{i}.jpg" for i in range(12)])


def test_a_joint_in_the_corner_now_and_then_is_a_joint(tmp_path):
    poses = np.stack(people("openpose18", 200)).astype(np.float32)
    poses[0, 4] = 0
    assert wrong_meaning(poses) is None
    poses[:10, 4] = 0  # of every twentieth person: no chance
    assert wrong_meaning(poses)[0].startswith("10 joints of 10 poses lie at 0, 0")


def test_a_comma_row_for_an_image_of_another_size_is_not_used(tmp_path):
    (tmp_path / "k.csv").write_text(
        "\n".join([COMMA, comma_row("a.jpg"), comma_row("b.jpg", size=(256, 128))])
    )
    files = KeypointFiles("comma", tmp_path / "k.csv")
    pose, problems = files.find("a.jpg", (128, 64))
    assert np.array_equal(pose, POINTS)
    assert problems == []
    pose, (problem,) = files.find("people/b.jpg", (128, 64))
    assert pose is None
    assert "the row of people/b.jpg is for an image of 128x256, it is 64x128: scale" in problem.message
    (tmp_path / "k.csv").write_text("\n".join([COMMA, comma_row("a.jpg", size=(0.5, 64))]))
    (problem,) = import_keypoints(tmp_path / "k.csv", "comma", [])[1]
    assert (problem.row, problem.field) == (2, "img_h")


@pytest.mark.parametrize("kind", ["comma", "alphapose"])
def test_a_row_by_a_file_name_that_several_images_have_is_nobodys(kind, tmp_path):
    coco = flat(POINTS[:17])
    rows = {"1.jpg": "1.jpg", "a_2.jpg": "a_2.jpg", "3.jpg": "3.jpg"}
    if kind == "comma":
        (tmp_path / "k").write_text("\n".join([COMMA, *map(comma_row, rows)]))
    else:
        entries = [{"image_id": name, "keypoints": coco, "score": 1} for name in rows]
        (tmp_path / "k").write_text(json.dumps(entries))
    files = KeypointFiles(kind, tmp_path / "k")
    images = ["a/1.jpg", "b/1.jpg", "a/2.jpg", "b/2.jpg", "b/3.jpg", "1.jpg"]
    files.repeated = repeated_names(images)
    assert files.repeated == {"1.jpg", "2.jpg"}
    found = {image: files.find(image, (128, 64)) for image in images}
    assert {image for image, (pose, _) in found.items() if pose is not None} == {
        "a/2.jpg",
        "b/3.jpg",
        "1.jpg",
    }
    (problem,) = found["b/1.jpg"][1]
    assert problem.rule == "bad-keypoints"
    assert "1.jpg is the name of several images, b/1.jpg too: write paths in the rows" in problem.message
    assert [p.rule for p in found["b/2.jpg"][1]] == ["missing-keypoints"]
