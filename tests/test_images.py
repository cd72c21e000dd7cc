"""Ranges, strict decoding against pictures written byte by byte, encoding."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import bmp, chunk, encoded, exif, jpeg, picture, pixels, png, png_pixels, without
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from reposer import images
from reposer.data.label_files import read_mask
from reposer.image_metadata import count_scans


def test_ranges_by_hand():
    stored = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    model = images.to_float(stored)
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.flatten(), torch.tensor([-1.0, -1 / 255, 1 / 255, 1.0]))
    assert torch.equal(images.to_uint8(model), stored)
    assert torch.equal(images.to_uint8(torch.tensor([-3.0, 3.0])), torch.tensor([0, 255], dtype=torch.uint8))
    assert images.to_float(model) is model


def test_imagenet_normalization_by_hand():
    white = images.imagenet_normalize(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(
        white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_bmp_written_by_hand_decodes_to_its_pixels(tmp_path: Path):
    wanted = pixels(width=16, height=6)
    data = wanted[::-1, :, ::-1].tobytes()  # bottom up, blue first
    (tmp_path / "a.bmp").write_bytes(bmp(16, 6, data=data))
    found = images.decode(tmp_path / "a.bmp")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.writeable


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(channels: int):
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    data = png_pixels(values if channels == 3 else values[..., 0], {1: 0, 3: 2}[channels])
    found = images.decode_bytes(data, "a.png")
    wanted = values / 257.0  # 65535 -> 255
    assert np.abs(found - wanted).max() <= 1
    assert found[0, 0].max() == 0
    assert found[0, 1].min() == 255


def _turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores for an upright picture: EXIF 2.32, row 0 and column 0 of the stored array."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return stored[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(orientation: int, file_format: str):
    upright = pixels()
    stored = Image.fromarray(np.ascontiguousarray(_turned(upright, orientation)))
    data = encoded(stored, file_format, exif=exif(orientation), lossless=True)
    np.testing.assert_array_equal(images.decode_bytes(data, "a.png"), upright)


def test_transparency_is_laid_on_black():
    color = np.full((8, 8, 3), 200, np.uint8)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    alpha[4] = 128
    image = Image.fromarray(np.dstack([color, alpha]))
    found = images.decode_bytes(encoded(image, "PNG"), "a.png")
    assert (found[:4] == 200).all()
    assert np.abs(found[4].astype(int) - 100).max() <= 1  # 200 * 128 / 255
    assert (found[5:] == 0).all()


def test_palette_transparency_is_not_dropped():
    image = Image.fromarray(np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0])
    found = images.decode_bytes(encoded(image, "PNG", transparency=0), "a.png")
    assert (found[:, :4] == 0).all()  # clear red
    assert (found[:, 4:] == [0, 255, 0]).all()


def test_adobe_cmyk_is_not_inverted():
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    data = encoded(white, "JPEG")
    assert images.decode_bytes(data, "a.jpg").min() > 250
    with pytest.raises(images.ImageError) as refusal:
        images.decode_bytes(without(data, 0xEE), "a.jpg")
    assert refusal.value.rule == "cmyk-unmarked"


def test_interlaced_png_is_not_taken_for_a_cut_one(tmp_path: Path):
    """An Adam7 file made by hand: the seven passes of a 5 x 5 gray picture, zlib over their rows."""
    values = np.arange(25, dtype=np.uint8).reshape(5, 5) * 10
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    rows = b"".join(
        b"\0" + line.tobytes()
        for x, y, across, down in passes
        for line in values[y::down, x::across]
        if line.size
    )
    plain = png(5, 5, 8, 0, rows)
    header = chunk(b"IHDR", plain[16:28] + b"\1")
    data = plain[:8] + header + plain[33:]
    np.testing.assert_array_equal(images.decode_bytes(data, "a.png")[..., 0], values)
    short = png(5, 5, 8, 0, rows[:-6])
    with pytest.raises(images.ImageError):
        images.decode_bytes(short[:8] + header + short[33:], "a.png")


def test_picture_names_rules_format_and_hash(tmp_path: Path):
    data = jpeg(exif=exif(6))
    (tmp_path / "a.png").write_bytes(data)
    found = images.read_picture(tmp_path / "a.png")
    assert found.rules == ("wrong-extension", "exif-rotated")
    assert found.format == "JPEG"
    assert found.sha256 == hashlib.sha256(data).hexdigest()


def test_a_cut_file_is_refused_by_name(tmp_path: Path):
    data = jpeg()
    (tmp_path / "a.jpg").write_bytes(data[: data.index(b"\xff\xda") + 20])  # the header, and no pixels
    with pytest.raises(images.ImageError) as refusal:
        images.decode(tmp_path / "a.jpg")
    assert refusal.value.rule == "truncated"
    assert str(tmp_path / "a.jpg") in str(refusal.value)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_indices_are_not_colors(tmp_path: Path, mode: str):
    wanted = np.random.default_rng(0).integers(0, 20, (12, 10), dtype=np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (20, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(images.encode_png(wanted, palette if mode == "P" else None))
    assert Image.open(tmp_path / "a.png").mode == mode
    np.testing.assert_array_equal(images.decode_indices(tmp_path / "a.png"), wanted)
    (tmp_path / "b.png").write_bytes(images.encode_png(palette[wanted]))
    with pytest.raises(images.ImageError) as refusal:
        images.decode_indices(tmp_path / "b.png")
    assert refusal.value.rule == "not-one-channel"


@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_0_1_and_0_255(tmp_path: Path, high: int):
    wanted = np.random.default_rng(0).random((12, 10)) < 0.5
    (tmp_path / "a.png").write_bytes(images.encode_png((wanted * high).astype(np.uint8)))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), wanted)
    (tmp_path / "b.png").write_bytes(images.encode_png(wanted))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), wanted)


def test_soft_masks_are_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(images.encode_png(pixels()[..., 0]))
    np.save(tmp_path / "a.npy", pixels()[..., 0])
    for name in ("a.png", "a.npy"):
        with pytest.raises(images.ImageError) as refusal:
            read_mask(tmp_path / name)
        assert refusal.value.rule == "not-binary"
        np.testing.assert_array_equal(read_mask(tmp_path / name, soft=True), pixels()[..., 0] >= 128)


@pytest.mark.parametrize("end", ["png", "npy"])
def test_two_values_without_a_0_are_no_mask(tmp_path: Path, end: str):
    values = np.where(np.random.default_rng(0).random((12, 10)) < 0.5, 1, 2).astype(np.uint8)
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "a.png").write_bytes(images.encode_png(values))
    with pytest.raises(images.ImageError, match="a mask of 1 and 2, of which neither is 0"):
        read_mask(tmp_path / f"a.{end}")
    for value, wanted in ((0, False), (7, True)):  # nobody, and everybody
        np.save(tmp_path / "a.npy", np.full((4, 4), value, np.uint8))
        assert (read_mask(tmp_path / "a.npy") == wanted).all()


def test_encoding_round_trips():
    wanted = pixels()
    np.testing.assert_array_equal(images.decode_bytes(images.encode_png(wanted), "a.png"), wanted)
    lossy = images.decode_bytes(images.encode_jpeg(wanted), "a.jpg")
    assert np.abs(lossy.astype(int) - wanted).mean() < 4
    coarse = images.encode_jpeg(wanted, quality=30)
    assert len(coarse) < len(images.encode_jpeg(wanted))
    for wrong in (wanted.astype(np.float32), wanted[..., :2], wanted[..., 0]):
        with pytest.raises(TypeError):
            images.encode_jpeg(wrong)


def test_encoded_files_carry_no_metadata():
    image = picture()
    image.info["comment"] = b"who, where"
    array = np.asarray(image)
    for data in (images.encode_jpeg(array), images.encode_png(array)):
        found = Image.open(io.BytesIO(data))
        assert not found.getexif()
        assert set(found.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_threads_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    broken = jpeg(exif=exif(6)[:16])  # Pillow warns of it

    def work() -> None:
        for _ in range(50):
            images.decode_bytes(broken, "a.jpg")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def _used(folder: Path, data: bytes) -> images.Picture:
    (folder / "a.jpg").write_bytes(data)
    return images.read_picture(folder / "a.jpg")


def _tiff(order: str, entries: list[tuple[int, int, int, int]], cut: int | None = None) -> bytes:
    """EXIF data of one directory, written by hand: tag, type, count, value or offset."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    rows = b""
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        rows += struct.pack(order + "HHI", tag, kind, count)
        rows += struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
    return b"Exif\0\0" + (head + rows + b"\0\0\0\0")[:cut]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "broken",
    [
        (0x927C, 7, 5000, 90000),  # a maker note past the end
        (0x8825, 4, 1, 70000),  # positions nowhere
        (0x8769, 4, 1, 8),  # a directory that is its own
        (0x0201, 4, 1, 1 << 31),  # a thumbnail nowhere
        (0x010F, 99, 7, 12),  # a type that does not exist
        (0x010F, 2, 0xFFFFFFFF, 12),
    ],
)
def test_broken_metadata_cost_neither_picture_nor_orientation(tmp_path, order, broken):
    first = [broken, (0x0112, 3, 1, 6)] if broken[0] < 0x0112 else [(0x0112, 3, 1, 6), broken]
    found = _used(tmp_path, jpeg(exif=_tiff(order, first)))
    plain = images.decode_bytes(jpeg(), "a.jpg")
    assert found.rules == ("exif-rotated",)
    np.testing.assert_array_equal(found.pixels, np.rot90(plain, -1))


@pytest.mark.parametrize("cut", [5, 9, 12, 19])
def test_a_cut_directory_is_listed_and_the_picture_used_as_stored(tmp_path, cut):
    found = _used(tmp_path, jpeg(exif=_tiff("<", [(0x0112, 3, 1, 6)], cut)))
    assert found.rules == ("exif-damaged",)
    np.testing.assert_array_equal(found.pixels, images.decode_bytes(jpeg(), "a.jpg"))


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe2\0\x0eICC_PROFILE\0",
        b"\xff\xe1\0\x20http://ns.adobe.com/xap/1.0/\0<",
        b"\xff\xe2\0\x0aMPF\0II*\0",
    ],
)
def test_a_cut_profile_text_or_index_costs_no_picture(tmp_path, segment):
    segment = segment.ljust(2 + segment[3], b"?")
    plain = jpeg(exif=exif(6))
    found = _used(tmp_path, plain[:2] + segment + plain[2:])
    assert "exif-rotated" in found.rules
    np.testing.assert_array_equal(found.pixels, images.decode_bytes(plain, "a.jpg"))


def secret_files() -> dict[str, bytes]:
    """One file of each format with a secret in every place for metadata, none of them turned."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E], exif[0x0131] = "SECRET", "SECRET"
    exif.get_ifd(0x8825)[29] = "SECRET"
    told = {"exif": exif.tobytes(), "icc_profile": b"SECRET" * 30, "xmp": b"<x>SECRET</x>"}
    text = PngInfo()
    text.add_text("Comment", "SECRET")
    text.add_text("More", "SECRET" * 9, zip=False)
    made = {}
    for kind, more in {
        "JPEG": {**told, "comment": b"SECRET", "quality": 80, "progressive": True},
        "PNG": {"exif": told["exif"], "icc_profile": b"SECRET" * 30, "pnginfo": text},
        "WEBP": {**told, "lossless": True},
        "BMP": {},
    }.items():
        content = io.BytesIO()
        image.save(content, kind, **more)
        made[kind] = content.getvalue() + b"SECRET behind the end"
    return made


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("turn", [1, 6])
def test_copies_lose_metadata_and_no_pixel(kind: str, turn: int):
    data = secret_files()[kind]
    if turn != 1 and kind != "BMP":
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = turn, "SECRET"
        content = io.BytesIO()
        save = {"quality": 80} if kind == "JPEG" else {}
        Image.open(io.BytesIO(data)).save(content, kind, exif=exif.tobytes(), **save)
        data = content.getvalue()
    clean = images.without_metadata(data, f"x.{kind.lower()}")
    assert (b"SECRET" in data and b"SECRET" not in clean) or (kind == "BMP" and b"SECRET" not in clean)
    np.testing.assert_array_equal(images.decode_bytes(clean, "x"), images.decode_bytes(data, "x"))
    # an outside reader: Pillow sees the same stored pixels, the turn and nothing else
    stored, before = Image.open(io.BytesIO(clean)), Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(before))
    assert dict(stored.getexif()) == ({0x0112: 6} if turn == 6 and kind != "BMP" else {})
    assert images.without_metadata(clean, "x") == clean, "the second time nothing is left to take out"


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 3), (4, 15), (8, 255)])
@pytest.mark.parametrize("color", [0, 3])
def test_label_maps_of_few_bits_are_read_as_stored(tmp_path: Path, bits: int, most: int, color: int):
    values = np.arange(32 * 8).reshape(8, 32) % (most + 1)
    places = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in places)

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 8, bits, color, 0, 0, 0))
    data += chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 and bits == 8 else b""
    data += chunk(b"PLTE", bytes(3 * (most + 1))) if color == 3 and bits < 8 else b""
    (tmp_path / "x.png").write_bytes(data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(images.decode_indices(tmp_path / "x.png"), values)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    content = io.BytesIO()
    Image.new("L", (2000, 2000)).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data.rindex(b"\xff\xda")
    again = data[:-2] + data[last:-2] * 200 + b"\xff\xd9"
    images.decode_bytes(data, "x.jpg")
    began = time.monotonic()
    with pytest.raises(images.ImageError, match="scans of 2000x2000") as caught:
        images.decode_bytes(again, "x.jpg")
    assert caught.value.rule == "too-many-scans"
    assert time.monotonic() - began < 1


def test_a_thumbnail_and_filling_bytes_are_no_scans():
    """Marks of scans inside segments (thumbnails hold whole JPEGs) and behind the end count for nothing."""
    data = jpeg(progressive=True)
    thumbnails = b"\xff\xe5\x20\x02" + b"\xff\xda\x00\x08" * 0x800
    odd = data[:2] + thumbnails * 3 + b"odd" + b"\xff" * 9 + data[2:] + b"\xff\xda" * 999
    assert count_scans(odd) == count_scans(data) == 10  # libjpeg's script for a color picture
    np.testing.assert_array_equal(images.decode_bytes(odd, "x"), images.decode_bytes(data, "x"))
    clean = images.without_metadata(odd, "x")
    assert len(clean) <= len(data)
    np.testing.assert_array_equal(images.decode_bytes(clean, "x"), images.decode_bytes(data, "x"))
    began = time.monotonic()
    assert count_scans(b"\xff\xd8" + b"\xff" * 5_000_000) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_color_profile_stays_for_the_viewer(kind: str):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    told = Image.Exif()
    told[0x010E] = "SECRET"
    data = encoded(picture(), kind, icc_profile=profile, exif=told.tobytes())
    clean = images.without_metadata(data, "x")
    opened = Image.open(io.BytesIO(clean))
    assert opened.info["icc_profile"] == profile
    assert not opened.getexif()
    assert b"SECRET" in data
    assert b"SECRET" not in clean
    assert images.without_metadata(clean, "x") == clean
    large = profile[36:].ljust(1_000_000, b"x")
    large = (len(large) + 36).to_bytes(4, "big") + profile[4:36] + large
    clean = images.without_metadata(encoded(picture(), kind, icc_profile=large), "x")
    assert "icc_profile" not in Image.open(io.BytesIO(clean)).info, "no place to hide a megabyte"


def test_a_bitmap_names_no_file_of_its_author():
    """BITMAPV5HEADER: a linked profile is a path on somebody's disk behind the pixels."""
    plain = bmp(8, 6, data=pixels(width=8, height=6).tobytes())
    secret = rb"C:\Users\SECRET\x.icm"
    rest = b"KNIL" + bytes(52) + struct.pack("<III", 124 + 144, len(secret), 0)
    info = struct.pack("<I", 124) + plain[18:54] + bytes(16) + rest
    data = b"BM" + struct.pack("<IHHI", 138 + 144 + len(secret), 0, 0, 138) + info + plain[54:] + secret
    assert len(info) == 124
    clean = images.without_metadata(data, "x")
    assert b"SECRET" not in clean
    assert clean[2:6] == struct.pack("<I", len(clean))
    np.testing.assert_array_equal(images.decode_bytes(clean, "x"), images.decode_bytes(plain, "x"))
    assert images.without_metadata(clean, "x") == clean
    assert images.without_metadata(plain, "x") == plain
