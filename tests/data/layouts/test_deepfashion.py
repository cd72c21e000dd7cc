"""DeepFashion In-shop: names in both spellings, lists, frames of keypoints, pairs, overlap, bad input."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reposer.data.keypoints import HEADER
from reposer.data.layouts.deepfashion import inshop_pairs, read_deepfashion
from reposer.data.layouts.inshop import NARROW, SQUARE, frame_of, parse_inshop_name, split_overlap, to_image
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import look_at_people, prepare_people
from reposer.errors import UserError
from reposer.images import encode_jpeg
from reposer.storage.paths import RefusedFileError

ORIGINAL = "WOMEN/Blouses_Shirts/id_00000002/02_1_front.jpg"
FLAT = "fashionWOMENBlouses_Shirtsid0000000202_1front.jpg"
RNG = np.random.default_rng(0)
POINTS = [[60 + 5 * j, 70 + 3 * j] for j in range(18)]  # x, y inside every frame


def row(name: str, points: list[list[int]] = POINTS) -> str:
    return f"{name}: {[y for _, y in points]}: {[x for x, _ in points]}"


def garment(item: int, variant: int = 1, category: str = "Dresses") -> list[str]:
    """Flat names of three views."""
    views = ("1front", "2side", "3back")
    return [f"fashionWOMEN{category}id{item:08d}{variant:02d}_{view}.jpg" for view in views]


TRAIN = [*garment(1), *garment(2), *garment(3, 1, "Tees_Tanks")]
TEST = [*garment(3, 2, "Tees_Tanks"), *garment(4), *garment(1, 1, "Skirts")]


def make(root: Path, size: tuple[int, int] = (256, 256), place: str = "original") -> Path:
    """A small data set: images, both lists, both keypoint files."""
    root.mkdir(parents=True, exist_ok=True)
    for kind, names in (("train", TRAIN), ("test", TEST)):
        (root / f"{kind}.lst").write_text("\n".join(names) + "\n")
        lines = [HEADER, *(row(name) for name in names)]
        (root / f"fasion-annotation-{kind}.csv").write_text("\n".join(lines) + "\n")
        for name in names:
            path = f"img/{parse_inshop_name(name).original}" if place == "original" else f"{kind}/{name}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(encode_jpeg(RNG.integers(0, 256, (*size, 3), np.uint8)))
    return root


def rules(problems) -> Counter:
    return Counter(problem.rule for problem in problems)


def test_both_spellings_are_one_name():
    for text in (ORIGINAL, f"img/{ORIGINAL}", f"run_id_2/MEN/img_highres/{ORIGINAL}", FLAT, f"train/{FLAT}"):
        name = parse_inshop_name(text)
        assert (name.gender, name.category, name.item, name.variant) == ("WOMEN", "Blouses_Shirts", 2, 2)
        assert (name.view, name.view_name, name.pid) == (1, "front", 202)
        assert (name.flat, name.original) == (FLAT, ORIGINAL)
        assert name.garment == "fashionWOMENBlouses_Shirtsid0000000202"
    for text in ("", "a.jpg", FLAT + "x", FLAT.upper(), ORIGINAL.replace("id_", "id"), "../" + FLAT[:-5]):
        with pytest.raises(RefusedFileError, match="not a name of DeepFashion"):
            parse_inshop_name(text)


def test_frames_of_key_points():
    """Hand-worked: the narrow frame is columns 40 to 215 of the square one."""
    pose = np.array([[0, 0], [88, 128], [175, 255], [np.nan, np.nan]], np.float32)
    wide = np.array([[40, 0], [128, 128], [215, 255], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(to_image(pose, NARROW, (256, 176)), pose)
    np.testing.assert_array_equal(to_image(pose, NARROW, (256, 256)), wide)
    np.testing.assert_array_equal(to_image(wide, SQUARE, (256, 256)), wide)
    np.testing.assert_array_equal(to_image(wide, SQUARE, (256, 176)), pose)
    center = to_image(np.array([[87.5, 127.5]], np.float32), NARROW, (1101, 750))
    np.testing.assert_allclose(center, [[374.5, 550]], atol=1e-3)
    center = to_image(np.array([[127.5, 127.5]], np.float32), SQUARE, (1101, 750))
    np.testing.assert_allclose(center, [[374.5, 550]], atol=1e-3)
    np.testing.assert_allclose(to_image(np.zeros((1, 2), np.float32), (100, 50), (200, 100)), [[0.5, 0.5]])
    frames = {
        "fasion-resize-annotation-test.csv": NARROW,
        "fasion-annotation-test.csv": SQUARE,
        "k.csv": None,
    }
    assert {name: frame_of(Path(name), "auto") for name in frames} == frames
    assert frame_of(Path("fasion-annotation-test.csv"), "image") is None
    assert frame_of(Path("k.csv"), "512x352") == (512, 352)
    with pytest.raises(UserError, match="frame 'wide'"):
        frame_of(Path("k.csv"), "wide")


@pytest.mark.parametrize("place", ["original", "flat"])
def test_reading(tmp_path: Path, place: str):
    people = read_deepfashion(make(tmp_path / "root", place=place))
    assert [record.name for record in people.records] == TEST + TRAIN
    assert {record.split for record in people.records[:9]} == {"val"}
    assert {record.split for record in people.records[9:]} == {"train"}
    first = people.records[0]
    assert (first.pid, first.camid) == (302, 0)
    assert first.path == (
        f"img/{parse_inshop_name(TEST[0]).original}" if place == "original" else f"test/{TEST[0]}"
    )
    np.testing.assert_array_equal(first.keypoints, np.array(POINTS, np.float32))
    assert rules(people.problems) == {"item-train-test": 1}
    assert people.overlap.products == ("fashionWOMENTees_Tanksid00000003",)
    assert "1 of 3 test items (3 of 9 test images)" in str(people.overlap)
    assert "2 items, 6 test images" in str(people.overlap)  # item 1 is a dress and a skirt
    wanted = [p for n in range(0, 9, 3) for p in itertools.permutations(TRAIN[n : n + 3], 2)]
    assert people.pairs["train"] == wanted
    assert len(people.pairs["val"]) == 18


def test_the_order_of_the_key_point_file_decides_the_pairs(tmp_path: Path):
    root = make(tmp_path / "root")
    lines = (root / "fasion-annotation-test.csv").read_text().splitlines()
    lines = [lines[0], *lines[:0:-1]]
    (root / "fasion-annotation-test.csv").write_text("\n".join(lines) + "\n")
    people = read_deepfashion(root)
    order = TEST[::-1]
    base = [p for n in range(0, 9, 3) for p in itertools.permutations(order[n : n + 3], 2)]
    shuffled = np.random.RandomState(0).permutation(18)  # what pandas' sample draws
    assert people.pairs["val"] == [base[i] for i in shuffled]


def test_published_pairs_win_and_may_be_spelled_either_way(tmp_path: Path):
    root = make(tmp_path / "root")
    original = parse_inshop_name(TRAIN[1]).original
    unknown = garment(99)[0]
    lines = ["from,to", f"{TRAIN[0]},{original}", f"{TRAIN[0]},{unknown}", f"{TRAIN[0]}", f"{TRAIN[0]},x.jpg"]
    (root / "fasion-resize-pairs-train.csv").write_text("\n".join(lines) + "\n")
    people = read_deepfashion(root)
    assert people.pairs["train"] == [(TRAIN[0], TRAIN[1])]
    assert rules(people.problems) == {"item-train-test": 1, "unknown-pair": 1, "bad-pair": 2}
    rows = {problem.row: problem.rule for problem in people.problems if problem.rule.endswith("pair")}
    assert rows == {3: "unknown-pair", 4: "bad-pair", 5: "bad-pair"}  # lines of the file


def test_inshop_pairs_need_shoulders_and_hips():
    names = garment(5, 1, "Blouses_Shirts") + garment(5, 2, "Blouses_Shirts")[:1]
    poses = np.zeros((4, 18, 2), np.float32)
    poses[2, 8] = np.nan  # a hip
    assert inshop_pairs(names, poses, "train") == [(names[0], names[1]), (names[1], names[0])]


def test_overlap_counts():
    train, test = ([parse_inshop_name(name) for name in names] for names in (TRAIN, TEST))
    overlap = split_overlap(train, test)
    assert (len(overlap.products), overlap.product_images, overlap.items, overlap.item_images) == (1, 3, 2, 6)
    assert (overlap.garments, overlap.test_products, overlap.test_images) == (0, 3, 9)
    assert split_overlap(train, train).garments == 3


def test_bad_lists_and_rows_cost_only_themselves(tmp_path: Path):
    root = make(tmp_path / "root")
    originals = [parse_inshop_name(name).original for name in TRAIN]
    lines = [
        *(TRAIN[0], f"img/{originals[0]}", originals[1], TRAIN[1]),  # each image in both spellings
        *("", "  ", "Thumbs.db", "../../etc/passwd", TRAIN[2] + " extra", TEST[0], *TRAIN[2:8]),
    ]
    bad = b"fashionWOMENDressesid00000002\xff_1front.jpg\r\n"
    (root / "train.lst").write_bytes(b"\xef\xbb\xbf" + ("\r\n".join(lines) + "\r\n").encode() + bad)
    (root / "img" / originals[7]).unlink()
    outside = [[300, 10], *POINTS[1:]]
    rows = [
        *(HEADER, row(TRAIN[0]), row(originals[0]), row(originals[1]), row(TRAIN[2], outside)),
        *(row("fashionMENDenimid0000999901_1front.jpg"), "garbage", row(TRAIN[3])[:-5]),
    ]
    (root / "fasion-annotation-train.csv").write_text("\n".join(rows) + "\n")
    people = read_deepfashion(root)
    found = rules(people.problems)
    assert found == {
        **{"repeated-path": 3, "bad-name": 4, "missing": 1, "item-train-test": 1},
        **{"bad-keypoints": 4, "unknown-image": 1, "missing-keypoints": 5, "unread-file": 1},
    }
    assert [r.name for r in people.records if r.split == "train"] == TRAIN[:7]
    assert [r.name for r in people.records if r.keypoints is not None][9:] == TRAIN[:2]
    listed = {(p.file, p.row): p.rule for p in people.problems if p.file.endswith(".lst") and p.row}
    assert listed == {
        **{("train.lst", 2): "repeated-path", ("train.lst", 4): "repeated-path"},
        **{("train.lst", 7): "bad-name", ("train.lst", 8): "bad-name", ("train.lst", 9): "bad-name"},
        **{("train.lst", 10): "repeated-path", ("train.lst", 17): "bad-name"},
    }
    for problem in people.problems:
        assert problem.field
        assert "\n" not in str(problem)
        str(problem).encode()


def test_a_joint_outside_the_narrow_image_is_missing(tmp_path: Path):
    root = make(tmp_path / "root", size=(64, 44))
    far = [[20, 100], *POINTS[1:]]  # x 20 of the square frame is left of the narrow image
    (root / "fasion-annotation-test.csv").write_text("\n".join([HEADER, row(TEST[0], far)]) + "\n")
    people = read_deepfashion(root)
    first = people.records[0]
    assert np.isnan(first.keypoints[0]).all()
    assert not np.isnan(first.keypoints[1:]).any()
    (problem,) = (p for p in people.problems if p.rule == "joint-outside")
    assert TEST[0] in problem.message
    assert problem.message.endswith("nose")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: [(root / f"{k}.lst").unlink() for k in ("train", "test")],
            "neither train.lst nor test.lst",
        ),
        (
            lambda root: (root / "fasion-annotation-test.csv").write_text("name,x,y\n"),
            "must be name:keypoints_y",
        ),
        (lambda root: (root / "fasion-pairs-test.csv").write_text("a;b\n"), "must be from,to"),
        (lambda root: (root / "img").rename(root / "pictures"), "no usable image"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, spoil, words: str):
    root = make(tmp_path / "root")
    spoil(root)
    with pytest.raises(UserError, match=words) as error:
        read_deepfashion(root)
    assert "\n" not in str(error.value)
    assert error.value.advice
    with pytest.raises(UserError, match="no such folder"):
        read_deepfashion(tmp_path / "nowhere")


def test_one_list_and_lists_elsewhere(tmp_path: Path):
    root = make(tmp_path / "root")
    (tmp_path / "lists").mkdir()
    (root / "test.lst").rename(tmp_path / "lists" / "test.lst")
    people = read_deepfashion(root, lists=str(tmp_path / "lists"), images="img")
    assert [record.name for record in people.records] == TEST
    assert rules(people.problems) == {"missing-list": 1, "unread-file": 3, "unread-folder": 2}


def test_prepared(tmp_path: Path):
    root, out = make(tmp_path / "root"), tmp_path / "out"
    report = prepare_people("deepfashion", root, out, size=(64, 44), fit="crop")
    assert report.splits["train"]["people"] == 3
    assert report.pairs == {"train": 18, "val": 18}
    # garment 1 of item 1 is in both lists under two categories: the same number is a leak worth a look
    assert report.problems == {"item-train-test": 1, "person-train-test": 1}
    assert "1 of 3 test items" in report.summary()
    assert json.loads((out / "report.json").read_bytes())["config"]["fit"] == "crop"
    people = PackedPeople.open(out / "packed")
    assert people.header["fit"] == "crop"
    x, y = POINTS[0]
    np.testing.assert_allclose(people.keypoints[0, 0], [(x - 40 + 0.5) / 4 - 0.5, (y + 0.5) / 4 - 0.5])
    with pytest.raises(UserError, match="holdout"):
        prepare_people("deepfashion", root, tmp_path / "other", holdout=1)
    with pytest.raises(UserError, match="layout deepfashion: option split: unknown"):
        prepare_people("deepfashion", root, tmp_path / "other", options={"split": 1})


def test_a_dry_run_reads_key_points_and_lists_rows_of_no_image(tmp_path: Path):
    root = make(tmp_path / "root")
    path = root / "fasion-annotation-test.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], row(FLAT), f"{TEST[0]}: [1]: [1]"]) + "\n")  # the last has no row
    dry = look_at_people("deepfashion", root)
    report = prepare_people("deepfashion", root, tmp_path / "out")
    assert dry.annotations == report.annotations
    assert dry.annotations["keypoints"] == 17
    assert dry.problems == report.problems
    assert dry.problems == {
        "bad-keypoints": 1,
        "item-train-test": 1,
        "missing-keypoints": 1,
        "unknown-image": 1,
        "person-train-test": 1,
    }
