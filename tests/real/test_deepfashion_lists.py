"""The published lists of DeepFashion In-shop: names, the 8,570 test pairs line by line, the overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reposer.data.keypoints import read_keypoints_csv
from reposer.data.layouts.deepfashion import inshop_pairs
from reposer.data.layouts.inshop import parse_inshop_name, split_overlap
from reposer.data.pairs import read_pairs_csv

LISTS = Path(__file__).parents[3] / "shared" / "data" / "deepfashion_lists"

pytestmark = [pytest.mark.real, pytest.mark.skipif(not LISTS.is_dir(), reason="no real data here")]


def test_every_published_name_is_read_and_written_back():
    for kind, count in (("train", 48_674), ("test", 4_038)):
        names = (LISTS / f"{kind}.lst").read_text().split()
        assert len(names) == len(set(names)) == count
        for text in names:
            name = parse_inshop_name(text)
            assert name.flat == text
            assert parse_inshop_name(name.original) == name


def test_the_published_test_pairs_follow_from_the_key_points():
    poses, problems = read_keypoints_csv(LISTS / "fasion-annotation-test.csv")
    assert (len(poses), problems) == (4_038, [])
    published, _ = read_pairs_csv(LISTS / "fashion-pairs-test.csv")
    names = list(poses)
    assert len(published) == 8_570
    assert inshop_pairs(names, np.stack(list(poses.values())), "val") == published  # in the published order


def test_the_key_points_are_of_the_square_frame():
    poses, _ = read_keypoints_csv(LISTS / "fasion-annotation-test.csv")
    highest = np.nanmax(np.stack(list(poses.values())), axis=(0, 1))
    assert highest[0] >= 216  # beyond 256x176 and its border
    assert (highest < 256).all()


def test_the_overlap_of_the_official_split():
    """Counted here from the plain text, without the code: everything before the variant's two digits."""
    products, images = {}, {}
    for kind in ("train", "test"):
        images[kind] = (LISTS / f"{kind}.lst").read_text().split()
        products[kind] = {name.rsplit("_", 1)[0][:-2] for name in images[kind]}
    shared = products["train"] & products["test"]
    overlap = split_overlap(*([parse_inshop_name(n) for n in images[kind]] for kind in ("train", "test")))
    assert set(overlap.products) == shared
    assert len(shared) == 503
    assert overlap.product_images == sum(n.rsplit("_", 1)[0][:-2] in shared for n in images["test"]) == 2_266
    assert (overlap.garments, overlap.test_products, overlap.test_images) == (0, 930, 4_038)
    assert (overlap.items, overlap.item_images) == (513, 2_285)
