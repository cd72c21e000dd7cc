"""Pair lists against the official rule written with itertools, and pair files with bad rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.data.keypoint_imports import _read_comma
from reposer.data.keypoints import JOINTS, read_keypoints_csv
from reposer.data.pairs import (
    development_pairs,
    load_pairs,
    official_test_pairs,
    official_train_pairs,
    ordered_pairs,
    read_pairs_csv,
    write_pairs_csv,
)
from reposer.data.records import AnnotationError
from reposer.errors import UserError

TORSO = [JOINTS.index(f"{side}-{part}") for side in ("right", "left") for part in ("shoulder", "hip")]


def poses(count: int) -> np.ndarray:
    return np.ones((count, 18, 2), np.float32)


def slow_rule(names: list[str], keypoints: np.ndarray) -> list[tuple[str, str]]:
    """The official rule, person by person."""
    kept = [
        name
        for name, pose in zip(names, keypoints, strict=True)
        if not np.isnan(pose[TORSO]).any() and name.split("_")[0] not in ("-1", "0000", "00000", "000000")
    ]
    persons = dict.fromkeys(name.split("_")[0] for name in kept)
    return [
        pair
        for person in persons
        for pair in itertools.permutations([n for n in kept if n.split("_")[0] == person], 2)
    ]


PEOPLE = ["-1", "0000", "00000", "000000", "0002", "00001", "00002", "000012", "0007", "1500", "15000"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PEOPLE), st.booleans()), max_size=25),
)
def test_pairs_and_their_order_follow_the_rule(people: list[tuple[str, bool]]) -> None:
    names = [f"{pid}_c1s1_{place:06d}_00.jpg" for place, (pid, _) in enumerate(people)]
    keypoints = poses(len(people))
    for place, (_, has_torso) in enumerate(people):
        if not has_torso:
            keypoints[place, TORSO[place % 4]] = np.nan
    pairs = official_train_pairs(names, keypoints)
    assert pairs.dtype == np.int64
    assert [(names[a], names[b]) for a, b in pairs] == slow_rule(names, keypoints)


def test_ordered_pairs_are_permutations() -> None:
    groups = [[5, 2, 9], [], [4], [7, 1]]
    expected = [pair for group in groups for pair in itertools.permutations(group, 2)]
    assert [tuple(pair) for pair in ordered_pairs(groups).tolist()] == expected
    assert ordered_pairs([]).shape == (0, 2)


def test_test_pairs_are_a_sample_without_repetition_that_never_changes() -> None:
    names = [f"000{1 + i // 10}_c1_{i:02d}.jpg" for i in range(30)]
    every = {tuple(pair) for pair in official_train_pairs(names, poses(30)).tolist()}
    sample = official_test_pairs(names, poses(30), count=50)
    rows = [tuple(pair) for pair in sample.tolist()]
    assert len(set(rows)) == 50
    assert set(rows) <= every
    np.testing.assert_array_equal(sample, official_test_pairs(names, poses(30), count=50))
    assert len(official_test_pairs(names, poses(30))) == len(every) == 270


def test_development_pairs_do_not_depend_on_the_order_of_the_names() -> None:
    names = [f"000{1 + i // 10}_c1_{i:02d}.jpg" for i in range(30)]
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(30)]
    first = [(names[a], names[b]) for a, b in development_pairs(names, poses(30), 40)]
    second = [(shuffled[a], shuffled[b]) for a, b in development_pairs(shuffled, poses(30), 40)]
    assert first == second
    assert len(set(first)) == 40


def test_written_pairs_read_back(tmp_path: Path) -> None:
    pairs = [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg"), ("a.jpg", "b.jpg")]
    write_pairs_csv(tmp_path / "p.csv", pairs)
    assert (tmp_path / "p.csv").read_text().startswith("from,to\na.jpg,b.jpg\n")
    assert read_pairs_csv(tmp_path / "p.csv") == (pairs, [])


def test_bad_rows_of_a_pair_file_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [b"from,to", b"a,b", b"a", b"a,b,c", b",b", b"\xff,b", b"", b"b,a"]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    pairs, problems = read_pairs_csv(path)
    assert pairs == [("a", "b"), ("b", "a")]
    assert [problem.row for problem in problems] == [3, 4, 5, 6]
    pairs, problems = read_pairs_csv(path, known={"a"})
    assert pairs == []
    assert [(p.row, p.field) for p in problems if p.field != "row"] == [(2, "to"), (8, "from")]
    path.write_text("to,from\na,b\n")
    with pytest.raises(AnnotationError, match="must be from,to"):
        read_pairs_csv(path)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["a,b", "a,x"], "row 3, to: x is not in the data set"),
        (["a,b", "", "y,x", "b,a"], "row 4, from: y is not in the data set"),
        (["x,a", "a"], "row 2, from: x is not in the data set"),
        (["a,b", "", "", "a", "x,a"], "row 5, row: expected two names"),
    ],
)
def test_the_first_bad_row_is_named_by_its_line_in_the_file(
    tmp_path: Path, rows: list[str], told: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\n".join(["from,to", *rows]))
    with pytest.raises(UserError, match=told):
        load_pairs(path, {"a": 4, "b": 7})


def test_pairs_become_places(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("from,to\na,b\n\nb,a\n")
    assert load_pairs(path, {"a": 4, "b": 7}).tolist() == [[4, 7], [7, 4]]
    path.write_text("from,to\n")
    assert load_pairs(path, {"a": 4}).shape == (0, 2)


@pytest.mark.parametrize("name", ["a,b", "a\n", ""])
def test_names_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not fit"):
        write_pairs_csv(tmp_path / "p.csv", [("a", name)])
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("read", [read_pairs_csv, read_keypoints_csv, _read_comma])
def test_the_first_line_of_what_a_link_leads_to_is_not_shown(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    (tmp_path / "secret").write_text("canary\n")
    (tmp_path / "f.csv").symlink_to("secret")
    with pytest.raises(UserError, match="first line must be") as told:
        read(tmp_path / "f.csv")
    assert "canary" not in str(told.value)
    with pytest.raises(UserError, match="is 'canary'"):
        read(tmp_path / "secret")
