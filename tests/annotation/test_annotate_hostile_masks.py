"""`annotate --mask FOLDER` with masks that no program should trust: each is read rightly or named, and the
other images are done."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reposer.cli import main as cli
from reposer.data.label_files import read_mask
from reposer.images import encode_png

SIZE = (40, 24)
PERSON = np.zeros(SIZE, np.bool_)
PERSON[5:36, 6:18] = True
NOISE = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.bool_)
GRAY = PERSON.astype(np.uint8) * 255


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(values: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A gray PNG of that size in its header, and a long run of zeros."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**7), 9)) + chunk(b"IEND", b"")
    )


def huge_array() -> bytes:
    """A header of 10^12 values, and none of them."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def animated() -> bytes:
    frames = [Image.fromarray(np.roll(GRAY, n, 1)) for n in range(3)]
    return encoded(frames[0], save_all=True, append_images=frames[1:])


PALETTE = Image.fromarray(PERSON.astype(np.uint8) * 3)
PALETTE.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 255, 255, 255])
TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {  # suffix, content, rule or ""
    "gray": (".png", encoded(Image.fromarray(GRAY)), ""),
    "one bit": (".png", encoded(Image.fromarray(PERSON)), ""),
    "palette": (".png", encoded(PALETTE), ""),
    "0 and 1": (".npy", array(PERSON.astype(np.uint8)), ""),
    "truth": (".npy", array(PERSON), ""),
    "64 bits": (".npy", array(PERSON.astype(np.int64)), ""),
    "Fortran order": (".npy", array(np.asfortranarray(PERSON)), ""),
    "gray in three channels": (".png", encoded(Image.fromarray(np.stack([GRAY] * 3, 2))), ""),
    "color": (".png", encoded(Image.fromarray(np.stack([GRAY, GRAY // 2, GRAY], 2))), "bad-mask"),
    "alpha": (".png", encoded(Image.fromarray(np.stack([GRAY, GRAY // 2, GRAY, GRAY], 2))), "bad-mask"),
    "another size": (".png", encoded(Image.fromarray(GRAY[:-1])), "bad-mask"),
    "sides swapped": (".png", encoded(Image.fromarray(np.ascontiguousarray(GRAY.T))), "bad-mask"),
    "another size, array": (".npy", array(PERSON[:, :-1]), "bad-mask"),
    "soft": (".png", encoded(Image.fromarray(GRAY // 2 + np.arange(24, dtype=np.uint8))), "bad-mask"),
    "16 bits": (".png", encoded(Image.fromarray(GRAY.astype(np.uint16) * 200)), "bad-mask"),
    "animated": (".png", animated, "bad-mask"),
    "GIF": (".png", encoded(Image.fromarray(GRAY), "GIF"), "bad-mask"),
    "float TIFF": (".png", encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), "bad-mask"),
    "JPEG": (".jpg", encoded(Image.fromarray(GRAY), "JPEG", quality=30), "bad-mask"),
    "cut": (".png", encoded(Image.fromarray(NOISE))[:-40], "bad-mask"),
    "empty": (".png", b"", "bad-mask"),
    "a page": (".png", b"<html>404</html>", "bad-mask"),
    "bomb": (".png", lambda: bomb(50_000, 50_000), "bad-mask"),
    "wide bomb": (".png", lambda: bomb(2**31 - 1, 1), "bad-mask"),
    "no pixel": (".npy", array(np.zeros((0, 24), np.uint8)), "bad-mask"),
    "three axes": (".npy", array(PERSON[..., None]), "bad-mask"),
    "float": (".npy", array(PERSON.astype(np.float32)), "bad-mask"),
    "not a number": (".npy", array(np.full(SIZE, np.nan)), "bad-mask"),
    "complex": (".npy", array(PERSON.astype(complex)), "bad-mask"),
    "objects": (".npy", lambda: array(np.full(SIZE, None), allow_pickle=True), "bad-mask"),
    "huge": (".npy", huge_array, "bad-mask"),
    "negative": (".npy", array(-PERSON.astype(np.int16)), "bad-mask"),
    "archive": (".npy", b"PK\x03\x04" + bytes(60), "bad-mask"),
    "turned by a tag": (".png", encoded(Image.fromarray(GRAY), exif=TURNED), ""),
}  # fmt: skip
PLACES: dict[str, Callable[[Path, Path], object]] = {  # what is no file of the folder
    "link out": lambda path, outside: path.symlink_to(outside),
    "link to itself": lambda path, outside: path.symlink_to(path.name),
    "link to nothing": lambda path, outside: path.symlink_to("nothing.png"),
    "link to a device": lambda path, outside: path.symlink_to("/dev/zero"),
    "FIFO": lambda path, outside: os.mkfifo(path),
    "folder": lambda path, outside: path.mkdir(),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, dict], Path]:
    """Exit code, the manifest's row of each image by what its mask is, and the folder that was written."""
    root = tmp_path_factory.mktemp("masks")
    crops, masks, outside = root / "crops", root / "masks", root / "outside.png"
    crops.mkdir()
    masks.mkdir()
    outside.write_bytes(FILES["gray"][1])
    names = [*FILES, *PLACES]
    for number, label in enumerate(names):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        (crops / f"{number:02d}.png").write_bytes(encode_png(image))
        suffix, content, _ = FILES.get(label, (".png", b"", ""))
        path = masks / f"{number:02d}{suffix}"
        if label in PLACES:
            PLACES[label](path, outside)
        else:
            path.write_bytes(content() if callable(content) else content)
    out = root / "out"
    nothing = ("--parser", "none", "--keypoints", "none")
    given = ("annotate", crops, *nothing, "--mask", masks, "--out", out, "--threads", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reposer", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    rows = pq.read_table(out / "annotation" / "manifest" / "part-00000.parquet").to_pylist()
    by_file = {row["file"]: row for row in rows}
    by_label = {label: by_file[f"{number:02d}.png"] for number, label in enumerate(names)}
    assert outside.read_bytes() == FILES["gray"][1]
    return int(str(stop.value.code)), by_label, out


@pytest.mark.parametrize("label", [*FILES, *PLACES])
def test_a_mask_is_read_rightly_or_named(told, label):
    code, rows, out = told
    assert code == 0
    row = rows[label]
    rule = FILES[label][2] if label in FILES else "bad-mask"
    rules = {problem["rule"]: problem["message"] for problem in row["problems"]}
    assert row["left_out"] is None
    if rule:
        assert rule in rules, rules
        assert row["mask"] is None
        assert "fault" not in rules[rule]
        assert len(rules[rule]) < 400
    else:
        assert "bad-mask" not in rules
        assert (read_mask(out / row["mask"]) == PERSON).all()
