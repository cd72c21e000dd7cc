"""What lies in a set's folder of pictures against what its manifest lists, in bounded memory."""

from __future__ import annotations

import shutil

import pytest

from reposer.storage import manifest
from reposer.storage.manifest import unlisted_pictures, write_part


@pytest.fixture
def folder(tmp_path):
    """Thirty pictures in three parts."""
    (tmp_path / "manifest").mkdir()
    (tmp_path / "images").mkdir()
    for part in range(3):
        names = [f"{part}_{i}.png" for i in range(10)]
        rows = [{"file": name, "sha256": ""} for name in names]
        write_part(manifest.part_path(tmp_path, part), rows, ())
        for name in names:
            (tmp_path / "images" / name).touch()
    return tmp_path


@pytest.mark.parametrize("at_once", [1_000_000, 4])
def test_what_no_part_lists_is_found_whatever_is_missing_or_doubled(folder, monkeypatch, at_once):
    monkeypatch.setattr(manifest, "_NAMES_AT_ONCE", at_once)
    parts = [manifest.part_path(folder, part) for part in range(3)]
    assert unlisted_pictures(folder, parts) == []
    (folder / "images" / "0_3.png").rename(folder / "images" / "other.png")  # as many as before
    (folder / "images" / "2_3.png").unlink()  # missing: no matter here
    assert unlisted_pictures(folder, parts) == ["other.png"]
    parts[1].write_bytes(b"damaged")
    assert unlisted_pictures(folder, parts) == [*(f"1_{i}.png" for i in range(10)), "other.png"]


def test_a_folder_of_pictures_that_is_gone_holds_none(folder):
    parts = [manifest.part_path(folder, part) for part in range(3)]
    shutil.rmtree(folder / "images")
    assert unlisted_pictures(folder, parts) == []
    (folder / "images").touch()
    assert unlisted_pictures(folder, parts) == []


def test_a_sound_set_needs_no_memory_for_its_names(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_NAMES_AT_ONCE", 0)  # a comparison of names would divide by this
    assert unlisted_pictures(folder, [manifest.part_path(folder, part) for part in range(3)]) == []
