"""Every format of key-points, good and bad; files written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.data.keypoint_imports import FORMATS, import_keypoints
from reposer.data.keypoint_sets import body25_to_openpose, coco_to_openpose
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
    with pytest.raises(UserError, match="no folder"):
        import_keypoints(tmp_path / "k.csv", "openpose", [])
    with pytest.raises(UserError, match="use one of colon, comma"):
        import_keypoints(tmp_path, "json", [])
    (tmp_path / "a.txt").write_text("1 2\n" * 17)
    (tmp_path / "b.txt").write_text("1 2\n" * 17 + "1 x\n")
    (tmp_path / "c.json").symlink_to("/etc/hostname")
    assert len(import_keypoints(tmp_path, "pidm", ["a.jpg", "b.jpg"])[1]) == 2
    _, problems = import_keypoints(tmp_path, "openpose", ["c.jpg"])  # leads outside the folder
    assert problems[0].rule == "bad-keypoints"
    assert len(FORMATS) == 5


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
