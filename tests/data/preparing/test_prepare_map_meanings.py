"""Maps and masks whose files do not say what they mean: sets in every meaning, and what is made of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reposer.data.keypoints import HEADER
from reposer.data.label_files import read_mask
from reposer.data.packed import PackedPeople
from reposer.data.parsing import ATR_LABELS, CIHP_LABELS, LIP_LABELS, read_parsing
from reposer.data.preparing.prepare import look_at_people, prepare_people
from reposer.errors import UserError
from reposer.images import encode_jpeg, encode_png
from reposer.structures import MISSING_LABEL

SIZE = (16, 8)
# a person by the names of what they wear, from top to bottom, in the middle of the crop
PERSON = ("hair", "face", "upper-clothes", "left-arm", "pants", "left-leg", "right-leg", "right-shoe")


def drawn(names: tuple[str, ...], labels: tuple[str, ...]) -> np.ndarray:
    """(16, 8) uint8: stripes of two rows, background at the left and right."""
    found = np.zeros(SIZE, np.uint8)
    for row, name in enumerate(names):
        found[2 * row : 2 * row + 2, 2:6] = labels.index(name)
    return found


LIP = drawn(PERSON, LIP_LABELS)
SHOELESS = drawn((*PERSON[:-1], "right-leg"), LIP_LABELS)


def people(root: Path, maps: np.ndarray | None, masks: np.ndarray | None = None, count: int = 6) -> Path:
    """A folder of ``count`` crops of two people, all with the same map or mask."""
    for number in range(count):
        for kind, values in (("parsing", maps), ("mask", masks)):
            if values is not None:
                place = root / kind / f"{number % 2 + 1}_{number}_c1.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(encode_png(values))
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        place = root / f"{number % 2 + 1}" / f"{number}_c1.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_jpeg(pixels))
    return root


def prepared(root: Path, out: Path, **arguments) -> tuple[dict[str, str], PackedPeople]:
    """Rule -> its first line, and what was packed."""
    report = prepare_people("folders", root, out, size=SIZE, **arguments)
    return report.examples, PackedPeople.open(out / "packed")


@pytest.mark.parametrize(
    ("name", "labels"), [("lip20", LIP_LABELS), ("cihp20", CIHP_LABELS), ("atr18", ATR_LABELS)]
)
@pytest.mark.parametrize("first", [0, 1])
def test_every_label_set_becomes_lip(name, labels, first, tmp_path):
    root = people(tmp_path / "root", drawn(PERSON, labels) + np.uint8(first))
    problems, packed = prepared(root, tmp_path / "out", label_set=f"{name}+1" if first else name)
    assert problems == {}
    for number in range(6):
        np.testing.assert_array_equal(packed.parsing[number], LIP)
        np.testing.assert_array_equal(packed.mask[number], LIP > 0)


DOUBTS = {
    "atr": (drawn(PERSON, ATR_LABELS), "lip20", "no label above 14.*ATR's 18, give --label-set atr18"),
    "no shoes": (SHOELESS, "lip20", "no label above 17.*give --label-set atr18"),
    "from 1": (SHOELESS + np.uint8(1), "lip20", r"none of 6 maps holds.*give --label-set lip20\+1"),
    "pascal": (np.minimum(LIP, 6), "lip20", "no label above 6: PASCAL's 7 parts.*coarser"),
    "0 and 1": ((LIP > 0).astype(np.uint8), "lip20", "no label above 1: these are masks"),
    "background 5": (np.where(LIP == 0, 5, np.where(LIP == 5, 0, LIP)).astype(np.uint8), "lip20", ""),
    "hole": (np.where(LIP == 0, 19, 0).astype(np.uint8), "lip20", "the middle of 6 maps is background more"),
}


@pytest.mark.parametrize("case", [case for case in DOUBTS if DOUBTS[case][2]])
def test_a_set_of_maps_that_betrays_another_meaning_is_warned_of(case, tmp_path):
    maps, label_set, told = DOUBTS[case]
    report = prepare_people(
        "folders", people(tmp_path / "r", maps), tmp_path / "out", size=SIZE, label_set=label_set
    )
    assert set(report.problems) == {"parsing-labels"}
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(report.examples["parsing-labels"])
    assert "Warnings" in report.summary()


def test_few_maps_and_right_ones_are_not_doubted(tmp_path):
    assert prepared(people(tmp_path / "a", SHOELESS, count=4), tmp_path / "out")[0] == {}
    assert prepared(people(tmp_path / "b", LIP, LIP > 0), tmp_path / "more")[0] == {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.where(LIP > 0, 255, 0).astype(np.uint8), "0 and 255 alone are a mask.*give the folder as --mask"),
        (LIP + np.uint8(1), r"20 not in lip20 \(0 to 19\).*--label-set cihp20, atr18, or lip20\+1"),
        (np.arange(128, dtype=np.uint8).reshape(SIZE), "gray values or colors, no labels"),
    ],
)
def test_a_map_that_cannot_be_lip_says_what_it_seems_to_be(values, told, tmp_path):
    problems, packed = prepared(people(tmp_path / "root", values), tmp_path / "out")
    assert set(problems) == {"bad-parsing"}
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(problems["bad-parsing"])
    assert (packed.parsing == MISSING_LABEL).all()


@pytest.mark.parametrize("name", ["pascal7", "merged8", "lip", "lip20+2", "lip20+", ""])
def test_a_label_set_that_cannot_be_used_is_refused_before_anything_is_read(name, tmp_path):
    root = people(tmp_path / "root", LIP)
    said = f"label set {name or repr(name)}: ".replace("+", r"\+") + "(unknown|coarser).*lip20, cihp20, atr18"
    for work in (lambda: prepared(root, tmp_path / "o", label_set=name), lambda: look(root, name)):
        with pytest.raises(UserError, match=said):
            work()
    assert not (tmp_path / "o").exists()


def look(root: Path, name: str) -> None:
    look_at_people("folders", root, label_set=name)


@pytest.mark.parametrize("high", [1, 255])
def test_inverted_masks_are_warned_of_and_turned_by_the_option(high, tmp_path):
    person = LIP > 0
    root = people(tmp_path / "root", None, np.where(person, 0, high).astype(np.uint8))
    problems, packed = prepared(root, tmp_path / "a")
    assert set(problems) == {"mask-inverted"}
    assert "6 masks have people at the border" in problems["mask-inverted"]
    assert "give --inverted-masks" in problems["mask-inverted"]
    np.testing.assert_array_equal(packed.mask[0], ~person)
    problems, packed = prepared(root, tmp_path / "b", inverted_masks=True)
    assert problems == {}
    np.testing.assert_array_equal(packed.mask[0], person)
    root = people(tmp_path / "right", None, np.where(person, high, 0).astype(np.uint8))
    assert (
        "leave --inverted-masks out"
        in prepared(root, tmp_path / "c", inverted_masks=True)[0]["mask-inverted"]
    )


# ---- single files that differ from the rest


def overwrite(root: Path, kind: str, number: int, values: np.ndarray) -> str:
    place = f"{kind}/{number % 2 + 1}_{number}_c1.png"
    (root / place).write_bytes(encode_png(values))
    return place


def odd_lines(out: Path, rule: str) -> dict[str, str]:
    with (out / "problems.csv").open(newline="") as file:
        return {line["file"]: line["message"] for line in csv.DictReader(file) if line["rule"] == rule}


@pytest.mark.parametrize("count", [4, 9])  # too few to say anything of the set, and enough
@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_that_is_empty_full_or_inverted_is_listed(count, turned, tmp_path):
    person = LIP > 0
    usual = ~person if turned else person  # as files have it; --inverted-masks says so
    root = people(tmp_path / "root", None, usual, count=count)
    nobody = overwrite(root, "mask", 0, np.full(SIZE, turned))
    everybody = overwrite(root, "mask", 1, np.full(SIZE, not turned))
    other = overwrite(root, "mask", 2, ~usual)
    problems, packed = prepared(root, tmp_path / "out", inverted_masks=turned)
    assert set(problems) == {"odd-mask"}
    lines = odd_lines(tmp_path / "out", "odd-mask")
    assert lines.keys() == {nobody, everybody, other}
    assert "marks nobody" in lines[nobody]
    assert "marks every pixel" in lines[everybody]
    assert "at the border and not in the middle, as an inverted mask has" in lines[other]
    assert all(line.endswith("kept as it is: mend it, or delete it") for line in lines.values())
    for row, expected in enumerate((np.zeros(SIZE, bool), np.ones(SIZE, bool), ~person, person)):
        at = packed.index(next(name for name in packed.names if f"{row}_c1.jpg" in name))
        np.testing.assert_array_equal(packed.mask[at], expected)


def test_the_one_right_mask_of_an_inverted_set_is_listed(tmp_path):
    person = LIP > 0
    root = people(tmp_path / "root", None, ~person, count=9)
    right = overwrite(root, "mask", 4, person)
    problems, _ = prepared(root, tmp_path / "out")
    assert set(problems) == {"mask-inverted", "odd-mask"}
    told = "has the person in the middle, but most others at the border"
    assert odd_lines(tmp_path / "out", "odd-mask") == {right: f"{told}; kept as it is: mend it, or delete it"}


def test_a_mask_among_the_maps_and_an_empty_map_are_listed(tmp_path):
    root = people(tmp_path / "root", LIP, count=9)
    two = overwrite(root, "parsing", 0, LIP > 0)  # 1 bit: all that it can say is background or hat
    assert Image.open(root / two).mode == "1"
    empty = overwrite(root, "parsing", 1, np.zeros(SIZE, np.uint8))
    hole = overwrite(root, "parsing", 2, np.where(LIP > 0, 0, 19).astype(np.uint8))
    problems, _ = prepared(root, tmp_path / "out")
    assert set(problems) == {"odd-parsing"}
    lines = odd_lines(tmp_path / "out", "odd-parsing")
    assert lines.keys() == {two, empty, hole}
    assert "holds the labels 0 and 1 alone, as a mask does" in lines[two]
    assert "background alone, nobody" in lines[empty]
    assert "the person at the border" in lines[hole]


# ---- names and kinds of files


@pytest.mark.parametrize(
    "end", [".PNG", ".Png", ".NPY", ".bmp", ".BMP", "_mask.png", "_mask.PNG", "_seg.npy"]
)
@pytest.mark.parametrize("folder", ["", "1/"])
def test_masks_are_found_by_the_usual_names(end, folder, tmp_path):
    if folder and end == ".Png":
        pytest.skip("in a folder of its own a suffix is small or large")
    root, person = people(tmp_path / "root", None, count=2), LIP > 0
    stem = f"{folder}0_c1" if folder else "1_0_c1"
    place = root / "mask" / f"{stem}{end}"
    place.parent.mkdir(parents=True)
    if end.lower().endswith("npy"):
        with place.open("wb") as file:
            np.save(file, person)
    else:
        Image.fromarray(np.where(person, 255, 0).astype(np.uint8)).save(place)
    problems, packed = prepared(root, tmp_path / "out")
    assert set(problems) == {"missing-mask"}  # of the other image alone
    assert packed.mask[1].all()
    np.testing.assert_array_equal(packed.mask[0], person)


def test_what_lies_there_is_named(tmp_path):
    root = people(tmp_path / "root", None, count=2)
    for kind, name in (("mask", "1_0_c1.tif"), ("mask", "2_1_c1.jpg"), ("parsing", "1_0_c1.jpg")):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(LIP * np.uint8(12)).save(root / kind / name)
    report = prepare_people("folders", root, tmp_path / "out", size=SIZE)
    lines = (tmp_path / "out" / "problems.csv").read_text()
    assert report.problems == {"bad-mask": 2, "bad-parsing": 1, "missing-parsing": 1}
    assert "mask/1_0_c1.tif" in lines
    assert "mask/2_1_c1.jpg,,file,bad-mask,a mask with more than two values; not used: threshold it" in lines
    assert 'parsing/1_0_c1.jpg,,file,bad-parsing,"a JPEG, which invents labels' in lines


def test_a_jpeg_mask_is_cut_at_half_by_the_option(tmp_path):
    root, person = people(tmp_path / "root", None, count=1), np.zeros(SIZE, bool)
    person[4:12, 2:6] = True
    (root / "mask").mkdir()
    Image.fromarray(np.where(person, 255, 0).astype(np.uint8)).save(root / "mask" / "1_0_c1.JPG", quality=95)
    problems, packed = prepared(root, tmp_path / "out", soft_masks=True)
    assert problems == {}
    np.testing.assert_array_equal(packed.mask[0], person)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_gray_in_rgb_is_gray_and_colors_are_none(mode, tmp_path):
    Image.fromarray(LIP).convert(mode).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    np.testing.assert_array_equal(read_parsing(tmp_path / "a.png", SIZE), LIP)
    Image.fromarray(np.where(LIP > 0, 255, 0).astype(np.uint8)).convert(mode).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", SIZE), LIP > 0)
    wrong = np.array(Image.open(tmp_path / "a.png"))
    wrong[3, 3, -1] = 7  # one pixel blue, or half transparent
    Image.fromarray(wrong).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="one 8-bit channel is wanted"):
        read_parsing(tmp_path / "c.png", SIZE)


# ---- keypoints


def row(name: str, x: int) -> str:
    return f"{name}: {list(range(1, 15)) + [15] * 4}: {[x] * 18}"


def market(root: Path) -> list[str]:
    names = ["0002_c1s1_000001_00.jpg", "0003_c2s1_000001_00.jpg"]
    for folder, name in zip(("bounding_box_train", "query"), names, strict=True):
        (root / folder).mkdir(parents=True)
        pixels = np.random.default_rng(len(folder)).integers(0, 256, (*SIZE, 3), np.uint8)
        (root / folder / name).write_bytes(encode_jpeg(pixels))
    return names


@pytest.mark.parametrize("place", ["", "lists", "given"])
def test_key_points_of_several_files(place, tmp_path):
    root = tmp_path / "root"
    names = market(root)
    folder = tmp_path / "given" if place == "given" else root / place
    folder.mkdir(exist_ok=True)
    files = [folder / f"market-annotation-{kind}.csv" for kind in ("train", "test")]
    for number, file in enumerate(files):
        file.write_text(f"{HEADER}\n{row(names[number], number + 2)}\n")
    given = files if place == "given" else None
    report = prepare_people("market1501", root, tmp_path / "out", size=SIZE, keypoints=given)
    assert report.problems == {}
    assert report.config["keypoints"] == (None if given is None else [str(file) for file in files])
    packed = PackedPeople.open(tmp_path / "out" / "packed")
    assert packed.keypoints[:, 0].tolist() == [[2, 1], [3, 1]]
    if given:
        one = prepare_people("market1501", root, tmp_path / "one", size=SIZE, keypoints=files[:1])
        assert one.problems == {"missing-keypoints": 1}
        assert one.config["keypoints"] == str(files[0])
        twice = prepare_people("market1501", root, tmp_path / "two", size=SIZE, keypoints=[files[0], *files])
        assert twice.problems == {"bad-keypoints": 1}
        assert "has a row already" in twice.examples["bad-keypoints"]
