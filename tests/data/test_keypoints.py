"""Keypoints: the colon CSV with every kind of bad row, the flip, and pose geometry computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.data.keypoints import (
    FLIP_JOINTS,
    HEADER,
    JOINTS,
    has_torso,
    normalize_pose,
    pose_distance,
    read_keypoints_csv,
    scale_keypoints,
    torso_length,
    write_keypoints_csv,
)
from reposer.data.records import AnnotationError
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError

Y = list(range(100, 118))
X = list(range(18))
GOOD = f"a.jpg: {Y}: {X}"


def write(folder: Path, *rows: str | bytes, header: str = HEADER, end: bytes = b"\n") -> Path:
    path = folder / "keypoints.csv"
    lines = [header, *rows]
    path.write_bytes(end.join(line if isinstance(line, bytes) else line.encode() for line in lines) + end)
    return path


def changed(values: list[int], place: int, text: str) -> str:
    """The list as JSON text with one element replaced by arbitrary text."""
    parts = [str(value) for value in values]
    parts[place] = text
    return f"[{', '.join(parts)}]"


def standing() -> np.ndarray:
    """A person seen from the front: torso 40 pixels long, the middle of the hips at (30, 60)."""
    points = {
        "nose": (30, 10),
        "neck": (30, 20),
        "right-shoulder": (16, 22),
        "right-elbow": (14, 38),
        "right-wrist": (13, 54),
        "left-shoulder": (44, 22),
        "left-elbow": (46, 38),
        "left-wrist": (47, 54),
        "right-hip": (22, 60),
        "right-knee": (21, 85),
        "right-ankle": (20, 110),
        "left-hip": (38, 60),
        "left-knee": (39, 85),
        "left-ankle": (40, 110),
        "right-eye": (28, 8),
        "left-eye": (32, 8),
        "right-ear": (25, 9),
        "left-ear": (35, 9),
    }
    return np.array([points[joint] for joint in JOINTS], np.float32)


def test_y_comes_first_and_minus_one_is_missing(tmp_path: Path) -> None:
    y, x = [*Y], [*X]
    y[4] = x[4] = -1
    poses, problems = read_keypoints_csv(write(tmp_path, f"a.jpg: {y}: {x}"))
    assert problems == []
    assert poses["a.jpg"].dtype == np.float32
    assert poses["a.jpg"][3].tolist() == [3, 103]  # x, y
    assert np.isnan(poses["a.jpg"][4]).all()
    assert np.isnan(poses["a.jpg"]).sum() == 2


def test_byte_order_mark_windows_line_ends_and_empty_lines_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "", GOOD.replace("a.jpg", "b.jpg"), end=b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    poses, problems = read_keypoints_csv(path)
    assert list(poses) == ["a.jpg", "b.jpg"]
    assert problems == []


BAD_ROWS = {
    "too few values": (f"b.jpg: {Y[:17]}: {X}", "keypoints_y", "17 values"),
    "too many values": (f"b.jpg: {Y}: {[*X, 1]}", "keypoints_x", "19 values"),
    "word": (f"b.jpg: {changed(Y, 2, 'ten')}: {X}", "keypoints_y", "not a list of numbers"),
    "text": (f"b.jpg: {Y}: " + changed(X, 0, '"7"'), "keypoints_x", "nose is a str"),
    "bool": (f"b.jpg: {Y}: {changed(X, 1, 'true')}", "keypoints_x", "neck is a bool"),
    "null": (f"b.jpg: {changed(Y, 0, 'null')}: {X}", "keypoints_y", "nose is a NoneType"),
    "NaN": (f"b.jpg: {changed(Y, 0, 'NaN')}: {X}", "keypoints_y", "NaN"),
    "Infinity": (f"b.jpg: {changed(Y, 0, '-Infinity')}: {X}", "keypoints_y", "-Infinity"),
    "1e999": (f"b.jpg: {Y}: {changed(X, 5, '1e999')}", "keypoints_x", "left-shoulder is inf"),
    "400 digits": (f"b.jpg: {Y}: {changed(X, 5, '9' * 400)}", "keypoints_x", "huge"),
    "5000 digits": (f"b.jpg: {Y}: {changed(X, 5, '9' * 5000)}", "keypoints_x", "not a list"),
    "negative": (f"b.jpg: {changed(Y, 17, '-2')}: {X}", "keypoints_y", "left-ear is -2"),
    "half missing": (f"b.jpg: {changed(Y, 3, '-1')}: {X}", "keypoints_y", "right-elbow"),
    "nested list": (f"b.jpg: {changed(Y, 3, '[1]')}: {X}", "keypoints_y", "right-elbow is a list"),
    "deep nesting": (f"b.jpg: {'[' * 4500}: {X}", "keypoints_y", "not a list"),
    "object": ('b.jpg: {"a"= 1}: ' + str(X), "keypoints_y", "not a list"),
    "number for a list": (f"b.jpg: 5: {X}", "keypoints_y", "not a list"),
    "quoted list": (f'b.jpg: "{Y}": {X}', "keypoints_y", "not a list"),
    "empty list": (f"b.jpg: []: {X}", "keypoints_y", "0 values"),
    "missing column": (f"b.jpg: {Y}", "row", "2 fields"),
    "extra column": (f"b.jpg: {Y}: {X}: 1", "row", "4 fields"),
    "comma for colon": (f"b.jpg, {Y}, {X}", "row", "1 fields"),
    "empty name": (f" : {Y}: {X}", "name", "not a file name"),
    "name with a folder": (f"../b.jpg: {Y}: {X}", "name", "not a file name"),
    "control character": (f"b\x1b.jpg: {Y}: {X}", "name", "not a file name"),
    "not UTF-8": (b"b\xff.jpg: [1]: [1]", "row", "UTF-8"),
    "long line": (f"b.jpg: {[*Y] * 1000}: {X}", "row", "bytes"),
    "name twice": (GOOD, "name", "row 2"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_listed_with_row_and_field_and_good_rows_are_kept(tmp_path: Path, case: str) -> None:
    row, field, text = BAD_ROWS[case]
    path = write(tmp_path, GOOD, row, GOOD.replace("a.jpg", "c.jpg"))
    poses, problems = read_keypoints_csv(path)
    assert list(poses) == ["a.jpg", "c.jpg"]
    (problem,) = problems
    assert (problem.file, problem.row, problem.field) == (str(path), 3, field)
    assert text in problem.message
    nameless = {"empty name": "", "name with a folder": "../b.jpg", "control character": "b\x1b.jpg"}
    others = {"not UTF-8": "b\udcff.jpg", "name twice": "a.jpg"}
    assert problem.name == (nameless | others).get(case, "b.jpg")  # as os.listdir would give it
    assert len(str(problem)) < 400
    assert "\n" not in str(problem)


def test_all_bad_rows_are_listed_not_only_the_first(tmp_path: Path) -> None:
    rows = [row for case, (row, *_) in BAD_ROWS.items() if case != "name twice"]
    poses, problems = read_keypoints_csv(write(tmp_path, GOOD, *rows))
    assert list(poses) == ["a.jpg"]
    assert [problem.row for problem in problems] == list(range(3, 3 + len(rows)))


def test_points_outside_the_image_are_problems_only_where_a_size_is_known(tmp_path: Path) -> None:
    swapped = f"b.jpg: {X}: {Y}"  # x up to 117 in an image 64 wide: somebody wrote x first
    high = f"c.jpg: {changed(Y, 9, '128')}: {X}"
    edge = f"d.jpg: {changed(Y, 9, '127')}: {changed(X, 9, '63')}"
    path = write(tmp_path, GOOD, swapped, high, edge)
    assert len(read_keypoints_csv(path)[0]) == 4
    poses, problems = read_keypoints_csv(path, dict.fromkeys(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], (64, 128)))
    assert list(poses) == ["a.jpg", "d.jpg"]
    assert [(p.row, p.field) for p in problems] == [(3, "keypoints_x"), (4, "keypoints_y")]
    assert "nose at 100 lies outside" in problems[0].message
    assert "right-knee at 128" in problems[1].message


@pytest.mark.parametrize(
    "header", ["", "name:keypoints_x:keypoints_y", "name,keypoints_y,keypoints_x", "name:name:keypoints_x"]
)
def test_another_header_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(AnnotationError, match="row 1, header") as caught:
        read_keypoints_csv(write(tmp_path, GOOD, header=header))
    assert HEADER in str(caught.value)


def test_an_unreadable_file_is_one_user_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(RefusedFileError, match=path.name):
            read_keypoints_csv(path)


coordinates = st.one_of(st.none(), st.tuples(*[st.floats(0, 4000, width=32)] * 2))
# two joints at 0, 0 are how COCO writes missing ones, and refused
poses = st.lists(coordinates, min_size=18, max_size=18).filter(lambda pose: pose.count((0.0, 0.0)) < 2)
names = st.text("abcdefghij0123456789_-. é", min_size=1, max_size=12).map(lambda text: f"x{text}.jpg")


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.dictionaries(names, poses, max_size=4))
def test_written_poses_read_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[tuple[float, float] | None]]
) -> None:
    nan = (math.nan, math.nan)
    written = {name: np.array([point or nan for point in row], np.float32) for name, row in rows.items()}
    path = tmp_path_factory.mktemp("csv") / "keypoints.csv"
    write_keypoints_csv(path, written)
    read, problems = read_keypoints_csv(path)
    assert problems == []
    assert list(read) == list(written)
    for name, pose in written.items():
        np.testing.assert_array_equal(read[name], pose)


def test_whole_pixels_are_written_in_the_field_s_format(tmp_path: Path) -> None:
    pose = np.stack([X, Y], axis=1).astype(np.float32)
    pose[3] = np.nan
    write_keypoints_csv(tmp_path / "k.csv", {"a.jpg": pose})
    header, row = (tmp_path / "k.csv").read_text().splitlines()
    name, y, x = row.split(": ")
    assert header == "name:keypoints_y:keypoints_x"
    assert name == "a.jpg"
    assert json.loads(y)[:5] == [100, 101, 102, -1, 104]
    assert json.loads(x)[:5] == [0, 1, 2, -1, 4]


@pytest.mark.parametrize("name", ["a:b.jpg", "a\nb.jpg", "", " a.jpg"])
def test_names_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not fit"):
        write_keypoints_csv(tmp_path / "k.csv", {name: standing()})
    assert not (tmp_path / "k.csv").exists()


@pytest.mark.parametrize("value", [(-3, 5), (np.nan, 5), (np.inf, 5)])
def test_poses_that_would_not_read_back_are_refused(tmp_path: Path, value: tuple[float, float]) -> None:
    pose = standing()
    pose[2] = value
    with pytest.raises(UserError, match=r"a\.jpg"):
        write_keypoints_csv(tmp_path / "k.csv", {"a.jpg": pose})


def test_flip_swaps_sides_by_name() -> None:
    for joint, name in enumerate(JOINTS):
        other = {"right": "left", "left": "right"}
        side, _, part = name.partition("-")
        expected = f"{other[side]}-{part}" if side in other else name
        assert JOINTS[FLIP_JOINTS[joint]] == expected


def test_scaled_points_keep_to_the_pixel_centers_of_a_resized_image() -> None:
    pose = np.full((18, 2), np.nan, np.float32)
    pose[0] = (0, 0)
    pose[1] = (3, 7)
    scaled = scale_keypoints(pose, (8, 4), (16, 8))
    assert scaled[0].tolist() == [0.5, 0.5]  # pixel 0 becomes pixels 0 and 1
    assert scaled[1].tolist() == [6.5, 14.5]
    assert np.isnan(scaled[2:]).all()


def test_torso_needs_both_shoulders_and_both_hips() -> None:
    assert has_torso(standing())
    for joint, name in enumerate(JOINTS):
        pose = standing()
        pose[joint] = np.nan
        needed = name in ("right-shoulder", "left-shoulder", "right-hip", "left-hip")
        assert bool(has_torso(pose)) is not needed
    assert has_torso(np.stack([standing(), np.full((18, 2), np.nan, np.float32)])).tolist() == [True, False]


def test_normalized_pose_is_in_torso_lengths_from_the_middle_of_the_hips() -> None:
    assert torso_length(standing()) == 40
    pose = normalize_pose(standing())
    assert pose[JOINTS.index("neck")].tolist() == [0, -1]
    np.testing.assert_allclose(pose[JOINTS.index("left-ankle")], [10 / 40, 50 / 40])


@pytest.mark.parametrize("joint", ["neck", "left-hip", "right-hip"])
def test_a_pose_without_a_torso_is_unknown(joint: str) -> None:
    pose = standing()
    pose[JOINTS.index(joint)] = np.nan
    assert np.isnan(normalize_pose(pose)).all()
    assert np.isnan(pose_distance(pose, standing()))


def test_a_torso_of_no_length_is_unknown() -> None:
    pose = standing()
    pose[JOINTS.index("neck")] = (30, 60)
    assert np.isnan(normalize_pose(pose)).all()


def test_pose_distance_ignores_place_and_size_and_averages_common_joints() -> None:
    assert pose_distance(standing(), standing() * 3 + 11) == pytest.approx(0, abs=1e-6)
    moved = standing()
    moved[JOINTS.index("left-wrist")] += (30, 40)  # 50 pixels = 1.25 torsos, one joint of 18
    assert pose_distance(standing(), moved) == pytest.approx(1.25 / 18)
    moved[JOINTS.index("nose")] = np.nan
    assert pose_distance(standing(), moved) == pytest.approx(1.25 / 17)


def test_pose_distance_needs_six_common_joints() -> None:
    few = standing()
    few[[name.split("-")[-1] not in ("neck", "hip", "shoulder") for name in JOINTS]] = np.nan
    assert np.isnan(pose_distance(few, standing()))  # 5
    few[JOINTS.index("nose")] = standing()[JOINTS.index("nose")]
    assert pose_distance(few, standing()) == pytest.approx(0)


def test_many_against_many_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    poses = (standing() + rng.normal(0, 6, (9, 18, 2))).astype(np.float32)
    poses[rng.random((9, 18)) < 0.3] = np.nan
    matrix = pose_distance(poses[:4, None], poses[None])
    assert matrix.shape == (4, 9)
    for row in range(4):
        for column in range(9):
            a, b = normalize_pose(poses[row]), normalize_pose(poses[column])
            steps = [math.dist(p, q) for p, q in zip(a, b, strict=True) if not np.isnan([p, q]).any()]
            expected = np.mean(steps) if len(steps) >= 6 else np.nan
            np.testing.assert_allclose(matrix[row, column], expected, rtol=1e-5)
