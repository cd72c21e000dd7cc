"""Label sets: every cell of every conversion by name, flips by name, sides of gloves and socks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from reposer.data.parsing import (
    FLIP_LABELS,
    LABEL_SETS,
    LIP_LABELS,
    PALETTE,
    colorize,
    convert,
    read_parsing,
    unknown_labels,
    write_parsing,
)
from reposer.structures import MISSING_LABEL, NUM_LABELS

# What becomes of each label, by name; labels that are not listed keep their name.
RENAMED = {
    ("atr18", "lip20"): {"belt": "pants", "bag": "background"},
    ("lip20", "atr18"): {"coat": "upper-clothes", "jumpsuits": "dress"},
    ("cihp20", "lip20"): {"torso-skin": "background"},
    ("lip20", "cihp20"): {"jumpsuits": "dress"},
    ("lip20", "pascal7"): {
        **dict.fromkeys(("hat", "hair", "sunglasses", "face"), "head"),
        **dict.fromkeys(("upper-clothes", "dress", "coat", "jumpsuits", "scarf"), "torso"),
        **dict.fromkeys(("glove", "left-arm", "right-arm"), "lower-arms"),
        **dict.fromkeys(("pants", "skirt"), "upper-legs"),
        **dict.fromkeys(("socks", "left-leg", "right-leg", "left-shoe", "right-shoe"), "lower-legs"),
    },
    ("lip20", "merged8"): {
        **dict.fromkeys(("pants", "skirt"), "lower-clothes"),
        "hat": "hair",
        "sunglasses": "face",
        **dict.fromkeys(("upper-clothes", "dress", "coat", "jumpsuits", "scarf"), "upper-clothes"),
        **dict.fromkeys(("left-arm", "right-arm"), "arms"),
        **dict.fromkeys(("socks", "left-leg", "right-leg", "left-shoe", "right-shoe"), "legs"),
    },
}
RENAMED["lip20", "parts8"] = {
    **RENAMED["lip20", "merged8"],
    "glove": "arms",
    **dict.fromkeys(("left-shoe", "right-shoe"), "shoes"),
}
RENAMED["cihp20", "pascal7"] = {**RENAMED["lip20", "pascal7"], "torso-skin": "torso"}
RENAMED["atr18", "pascal7"] = {
    **RENAMED["lip20", "pascal7"],
    "belt": "upper-legs",  # through LIP's pants
    "bag": "background",
}
RENAMED["atr18", "merged8"] = {
    **RENAMED["lip20", "merged8"],
    "belt": "lower-clothes",
    "bag": "background",
}
RENAMED["cihp20", "merged8"] = {**RENAMED["lip20", "merged8"], "torso-skin": "background"}
RENAMED["cihp20", "atr18"] = {**RENAMED["lip20", "atr18"], "torso-skin": "background"}
RENAMED["atr18", "cihp20"] = RENAMED["atr18", "lip20"]

CELLS = [
    (source, target, label)
    for source, target in RENAMED
    for label in LABEL_SETS[source]
    if not (target == "atr18" and label in ("glove", "socks"))
]


@pytest.mark.parametrize(("source", "target", "label"), CELLS)
def test_every_cell_of_every_conversion(source: str, target: str, label: str) -> None:
    old = LABEL_SETS[source].index(label)
    new = convert(np.full((1, 1), old, np.uint8), source, target)[0, 0]
    assert LABEL_SETS[target][new] == RENAMED[source, target].get(label, label)


def test_the_sets_have_the_published_order() -> None:
    assert len(LIP_LABELS) == NUM_LABELS == 20
    assert [len(labels) for labels in LABEL_SETS.values()] == [20, 20, 18, 7, 8, 8]
    differences = [i for i in range(20) if LABEL_SETS["cihp20"][i] != LIP_LABELS[i]]
    assert differences == [10]
    assert LIP_LABELS[13:16] == ("face", "left-arm", "right-arm")
    assert LABEL_SETS["atr18"][9:12] == ("left-shoe", "right-shoe", "face")


def test_gloves_and_socks_join_the_nearer_side() -> None:
    lip = np.zeros((5, 9), np.uint8)
    lip[0, 0], lip[0, 8] = 15, 14  # right arm at the image's left
    lip[1, 1] = lip[1, 7] = 3  # a glove at each
    lip[4, 0], lip[4, 8] = 17, 18  # right leg, left shoe
    lip[3, 1] = lip[3, 6] = 8  # a sock at each
    atr = convert(lip, "lip20", "atr18")
    names = LABEL_SETS["atr18"]
    found = [names[atr[place]] for place in ((1, 1), (1, 7), (3, 1), (3, 6))]
    assert found == ["right-arm", "left-arm", "right-leg", "left-leg"]


def test_a_glove_without_arms_follows_any_limb_and_alone_is_left() -> None:
    lip = np.zeros((3, 9), np.uint8)
    lip[0, 1] = 3
    assert LABEL_SETS["atr18"][convert(lip, "lip20", "atr18")[0, 1]] == "left-arm"
    lip[2, 0], lip[2, 8] = 17, 16
    assert LABEL_SETS["atr18"][convert(lip, "lip20", "atr18")[0, 1]] == "right-arm"


def test_pixels_without_a_label_stay_so_and_unknown_labels_are_refused() -> None:
    parsing = np.array([[5, MISSING_LABEL]], np.uint8)
    assert convert(parsing, "lip20", "atr18").tolist() == [[4, MISSING_LABEL]]
    assert unknown_labels(parsing, "lip20") == []
    assert unknown_labels(np.array([[17, 18, 254]], np.uint8), "atr18") == [18, 254]
    with pytest.raises(ValueError, match=r"\[18\] are not in atr18"):
        convert(np.array([[18]], np.uint8), "atr18", "lip20")


@pytest.mark.parametrize("source", ["pascal7", "merged8"])
def test_a_coarse_set_is_not_refined(source: str) -> None:
    with pytest.raises(ValueError, match=f"{source} cannot be converted"):
        convert(np.zeros((2, 2), np.uint8), source, "lip20")


def test_conversion_to_the_same_set_is_a_copy() -> None:
    parsing = np.arange(20, dtype=np.uint8).reshape(4, 5)
    same = convert(parsing, "lip20", "lip20")
    assert (same == parsing).all()
    assert same is not parsing


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_flip_exchanges_left_and_right_by_name(labels: str) -> None:
    names = LABEL_SETS[labels]
    for index, name in enumerate(names):
        side, _, part = name.partition("-")
        other = {"left": f"right-{part}", "right": f"left-{part}"}.get(side, name)
        assert names[FLIP_LABELS[labels][index]] == other
    assert FLIP_LABELS[labels][MISSING_LABEL] == MISSING_LABEL


@settings(derandomize=True, max_examples=30)
@given(arrays(np.uint8, (4, 5), elements=st.integers(0, 17)))
def test_flip_and_conversion_commute(parsing: np.ndarray) -> None:
    first = convert(FLIP_LABELS["atr18"][parsing[..., ::-1]], "atr18", "lip20")
    second = FLIP_LABELS["lip20"][convert(parsing, "atr18", "lip20")[..., ::-1]]
    np.testing.assert_array_equal(first, second)


def test_palette_is_pascal_voc_s() -> None:
    # the first colors as published with the VOC 2012 development kit
    published = [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
    ]
    assert [tuple(color) for color in PALETTE[:7].tolist()] == published
    assert tuple(PALETTE[15].tolist()) == (192, 128, 128)  # VOC's "person"
    assert len(np.unique(PALETTE, axis=0)) == 20


def test_written_map_reads_back_and_shows_colors(tmp_path: Path) -> None:
    parsing = np.arange(20, dtype=np.uint8).reshape(4, 5)
    write_parsing(tmp_path / "a.png", parsing, {"model": "m", "weights_sha256": "0" * 64})
    np.testing.assert_array_equal(read_parsing(tmp_path / "a.png", (4, 5)), parsing)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), PALETTE[parsing])
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar == {"schema": "lip20", "model": "m", "weights_sha256": "0" * 64}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_colorize_leaves_missing_pixels_white() -> None:
    colors = colorize(np.array([[0, 1, MISSING_LABEL]], np.uint8))
    assert colors.tolist() == [[[0, 0, 0], [128, 0, 0], [255, 255, 255]]]
