"""Label and mask files of every accepted kind, and every refusal with its file, field and label."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reposer.data.label_files import read_labels, read_mask
from reposer.data.parsing import PALETTE, read_parsing, write_parsing
from reposer.data.records import AnnotationError
from reposer.errors import UserError
from reposer.images import voc_palette
from reposer.storage.paths import RefusedFileError

MAP = np.arange(64, dtype=np.uint8).reshape(8, 8) % 20


def save(path: Path, array: np.ndarray, mode: str) -> Path:
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    elif mode == "1":
        image = image.point(lambda value: 255 if value else 0).convert("1")
    elif mode != "L":
        image.putpalette(PALETTE.tobytes())
        image = image.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["P", "L"])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_palette_and_gray_values_are_indices(tmp_path: Path, mode: str, suffix: str) -> None:
    np.testing.assert_array_equal(read_parsing(save(tmp_path / f"a{suffix}", MAP, mode), (8, 8)), MAP)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint16])
def test_integer_arrays_are_indices(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", MAP.astype(dtype))
    parsing = read_parsing(tmp_path / "a.npy", (8, 8))
    assert parsing.dtype == np.uint8
    np.testing.assert_array_equal(parsing, MAP)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_are_refused_with_advice(tmp_path: Path, mode: str) -> None:
    with pytest.raises(RefusedFileError, match=r"a\.png.*palette or gray PNG") as caught:
        read_parsing(save(tmp_path / "a.png", MAP, mode))
    assert caught.value.rule == "not-one-channel"


def test_another_size_names_both_sizes_width_first(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", MAP[:6], "P")
    with pytest.raises(AnnotationError, match=r"a\.png, size: is 8x6 .*its image is 16x4") as caught:
        read_parsing(path, (4, 16))
    assert caught.value.listed.field == "size"


def test_unknown_labels_are_named(tmp_path: Path) -> None:
    wrong = MAP.copy()
    wrong[0, :3] = (20, 99, 255)
    path = save(tmp_path / "a.png", wrong, "L")
    with pytest.raises(AnnotationError, match=r"a\.png, label: 20, 99, 255 not in lip20 \(0 to 19\)"):
        read_parsing(path)
    with pytest.raises(AnnotationError, match="18, 19"):
        read_parsing(save(tmp_path / "b.png", MAP, "L"), labels="atr18")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_parsing(tmp_path / "a.png", np.tile(MAP, (9, 9)))
    data = (tmp_path / "a.png").read_bytes()
    for length in (0, 1, 20, len(data) // 2, len(data) - 20):
        (tmp_path / "b.png").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"b\.png"):
            read_parsing(tmp_path / "b.png")


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=MAP)
    return buffer.getvalue()


def _saved(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


BAD_ARRAYS = {
    "empty file": (b"", "file"),
    "text": (b"hello", "file"),
    "truncated": (_saved(MAP)[:-1], "file"),
    "header of a giant": (_saved(MAP).replace(b"(8, 8)", b"(9**9,)"), "file"),
    "archive": (_archive(), "file"),
    "damaged archive": (_archive()[:60], "file"),
    "pickled objects": (_saved(np.array([[{"a": 1}]], object), allow_pickle=True), "file"),
    "floats": (_saved(MAP.astype(float)), "array"),
    "three dimensions": (_saved(MAP[None]), "array"),
    "no pixel": (_saved(MAP[:0]), "array"),
    "negative": (_saved(-MAP.astype(int)), "label"),
    "above 255": (_saved(MAP.astype(int) * 300), "label"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path: Path, case: str) -> None:
    data, field = BAD_ARRAYS[case]
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(AnnotationError, match=r"a\.npy") as caught:
        read_labels(tmp_path / "a.npy")
    assert caught.value.listed.field == field


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npy", "w"):
        pass
    with pytest.raises(AnnotationError, match="archive"):
        read_labels(tmp_path / "a.npy")


def test_fifos_folders_and_links_outside_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(root / "fifo.npy")
    (root / "folder.npy").mkdir()
    np.save(tmp_path / "outside.npy", MAP)
    (root / "link.npy").symlink_to(tmp_path / "outside.npy")
    for name in ("fifo.npy", "folder.npy", "link.npy", "absent.npy"):
        with pytest.raises(RefusedFileError, match=name):
            read_labels(root / name, root)
    assert read_labels(root / "link.npy").shape == (8, 8)


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 1), ("L", 255), ("P", 1), ("P", 7)])
def test_masks_of_every_kind(tmp_path: Path, mode: str, value: int) -> None:
    expected = MAP % 3 == 0
    path = save(tmp_path / "a.png", expected.astype(np.uint8) * np.uint8(value), mode)
    mask = read_mask(path, (8, 8))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_mask_from_an_array_and_of_another_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MAP > 9)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.npy"), MAP > 9)
    with pytest.raises(AnnotationError, match=r"a\.npy, size: is 8x8"):
        read_mask(tmp_path / "a.npy", (8, 9))


def reduced(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """A palette image as optimizers write it: the used colors alone, the most frequent first."""
    values, counts = np.unique(labels, return_counts=True)
    order = values[np.argsort(-counts, kind="stable")]
    places = np.zeros(256, np.uint8)
    places[order] = np.arange(len(order))
    image = Image.fromarray(places[labels])
    image.putpalette(colors[order].astype(np.uint8).tobytes())
    return image


@pytest.mark.parametrize(
    ("colors", "told"),
    [
        (np.repeat(np.arange(256)[:, None], 3, 1), "a palette of grays which are not their indices"),
        (voc_palette(256), "a palette of PASCAL VOC's colors in another order"),
    ],
)
def test_a_palette_that_was_put_in_another_order_is_refused(tmp_path: Path, colors, told: str) -> None:
    """Its indices are other labels than the ones that its colors stand for."""
    labels = np.kron([[0, 5, 5], [5, 9, 9], [13, 13, 13]], np.ones((2, 2), int)).astype(np.uint8)
    reduced(labels, colors).save(tmp_path / "a.png")
    with pytest.raises(RefusedFileError, match=told) as refused:
        read_labels(tmp_path / "a.png", exact=True)
    assert refused.value.rule == "palette-order"
    whole = Image.fromarray(labels)
    whole.putpalette(colors.astype(np.uint8).tobytes())
    whole.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png", exact=True), labels)
    own = np.random.default_rng(3).integers(0, 256, (256, 3))  # colors that mean nothing to anybody
    reduced(labels, own).save(tmp_path / "c.png")
    assert read_labels(tmp_path / "c.png", exact=True).max() == 3


def test_lossy_maps_are_refused_whatever_their_format(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.kron(MAP, np.ones((2, 2), np.uint8))[..., None], 3, 2))
    image.save(tmp_path / "a.webp", quality=80)
    with pytest.raises(RefusedFileError, match="a lossy WebP, which invents labels beside every edge"):
        read_labels(tmp_path / "a.webp", exact=True)
    image.save(tmp_path / "b.webp", lossless=True)
    np.testing.assert_array_equal(read_labels(tmp_path / "b.webp", exact=True), np.asarray(image)[..., 0])
