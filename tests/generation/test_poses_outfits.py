"""Garment classes of planted maps, and of each label alone."""

import numpy as np
import pytest
from planted import Planted, parsing_map

from reposer.data.parsing import LIP_LABELS
from reposer.generation.poses import LOWER, UPPER, outfits
from reposer.structures import MISSING_LABEL


@pytest.mark.parametrize(
    ("lower", "name"),
    [
        ("pants", "trousers"),
        ("shorts", "shorts"),
        ("skirt", "skirt"),
        ("dress", "dress"),
        ("jumpsuits", "jumpsuit"),
        ("", "not visible"),
    ],
)
@pytest.mark.parametrize("upper", ["upper-clothes", "coat"])
@pytest.mark.parametrize("hat", [False, True])
def test_planted_outfits(lower, name, upper, hat):
    maps = parsing_map(Planted(pid=1, lower=lower, upper=upper, hat=hat))[None]
    worn = outfits(maps, np.array([0]))
    assert LOWER[worn.lower[0]] == name
    covered = lower in ("dress", "jumpsuits")  # painted over the coat in these maps
    assert UPPER[worn.upper[0]] == ("coat" if upper == "coat" and not covered else "top")
    assert worn.hat[0] == hat


def test_classes_differ_exactly_where_a_part_differs():
    rng = np.random.default_rng(0)
    people = [
        Planted(
            pid=1,
            lower=str(rng.choice(["pants", "shorts", "skirt", "dress", ""])),
            upper=str(rng.choice(["upper-clothes", "coat"])),
            hat=bool(rng.random() < 0.5),
        )
        for _ in range(60)
    ]
    maps = np.stack([parsing_map(person) for person in people])
    worn = outfits(maps, np.arange(60))
    parts = list(zip(worn.lower.tolist(), worn.upper.tolist(), worn.hat.tolist(), strict=True))
    for i in range(60):
        for j in range(60):
            assert (worn.classes[i] == worn.classes[j]) == (parts[i] == parts[j])


def test_rows_small_garments_and_unlabeled_pixels():
    maps = np.zeros((3, 10, 10), np.uint8)
    maps[0] = LIP_LABELS.index("upper-clothes")
    maps[0, 0, :4] = LIP_LABELS.index("pants")  # 4 % of the person
    maps[1] = maps[0]
    maps[1, 0, :6] = LIP_LABELS.index("pants")
    maps[2] = MISSING_LABEL
    worn = outfits(maps, np.array([2, 1, 0]))
    assert [LOWER[i] for i in worn.lower] == ["not visible", "trousers", "not visible"]
    assert [UPPER[i] for i in worn.upper] == ["not visible", "top", "top"]
    assert outfits(maps, np.empty(0, np.int64)).classes.shape == (0,)
