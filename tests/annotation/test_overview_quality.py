"""Flags of annotations, each by a case made for it; the page's histograms by counting."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reposer.annotation.annotators import Annotation
from reposer.annotation.overview import FLAGS, Histogram, draw_figure, intersection_over_union, measure

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "annotate.md"


def good() -> Annotation:
    parsing = np.zeros((20, 10), np.uint8)
    parsing[2:18, 2:8] = 5
    pose = np.full((18, 2), 5, np.float32)
    return Annotation(parsing, parsing != 0, "detector", pose, np.ones(18, np.float32), 1)


def masked(rows: slice, source: str = "detector") -> Annotation:
    mask = np.zeros((20, 10), bool)
    mask[rows] = True
    return replace(good(), mask=mask, mask_source=source)


def posed(*missing: int) -> Annotation:
    pose = np.full((18, 2), 5, np.float32)
    pose[list(missing)] = np.nan
    return replace(good(), keypoints=pose)


def test_a_good_one_has_its_numbers_and_no_flag():
    quality = measure(good())
    assert (quality.mask_area, quality.agreement, quality.joints) == (96 / 200, 1.0, 18)
    assert quality.flags == ()
    nothing = measure(Annotation())
    assert (nothing.mask_area, nothing.agreement, nothing.joints, nothing.flags) == (None, None, None, ())


@pytest.mark.parametrize(
    ("annotation", "flags"),
    [
        (replace(good(), parsing=np.zeros((20, 10), np.uint8), mask_source="parsing"), {"empty-parsing"}),
        (masked(slice(0, 1), "parsing"), {"small-mask"}),
        (masked(slice(0, 19), "parsing"), {"large-mask"}),
        (masked(slice(0, 20), "everything"), {"nobody-found"}),
        (masked(slice(0, 10)), {"mask-disagrees"}),  # 48 of 148 pixels
        (masked(slice(0, 10), "folder"), {"mask-disagrees"}),
        (masked(slice(0, 10), "parsing"), set()),  # it cannot disagree with itself
        (posed(8), {"missing-torso"}),
        (posed(*range(2, 18)), {"missing-torso", "few-joints"}),
        (posed(0, 1, 3, 4), set()),
        (replace(good(), people=2), {"several-people"}),
        (replace(good(), people=-1), set()),
    ],
)
def test_flags(annotation, flags):
    assert set(measure(annotation).flags) == flags
    assert flags <= FLAGS.keys()


def test_overlap_by_hand():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert intersection_over_union(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert intersection_over_union(a, b) == 4 / 12


def test_the_docs_name_every_flag():
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"| `{flag}` |" in text for flag in FLAGS)


def test_histograms_count():
    values = [0, 0.01, 0.5, 0.5, 0.5, 2.0]
    uri = draw_figure([Histogram("a <b>", values, 0, 1, 4, (0.25,))], {"hat": 3, "hair": 6}, "labels")
    svg = base64.b64decode(uri.partition(",")[2]).decode()
    heights = [float(h) for h in re.findall(r'<rect x="[^"]*" y="[^"]*" width="[^"]*" height="([^"]*)"', svg)]
    counts = [round(h / max(heights[:4]) * 3) for h in heights[:4]]
    assert counts == [2, 0, 3, 1]  # 2.0 counts in the last bin
    widths = [float(w) for w in re.findall(r'<rect x="80.0" y="[^"]*" width="([^"]*)"', svg)]
    assert widths[1] == 2 * widths[0]
    assert "a &lt;b&gt;" in svg
    assert "highest 3" in svg
    assert draw_figure([], {}, "").startswith("data:image/svg")
