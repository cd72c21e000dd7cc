"""Marked files and portable names."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from reposer.errors import UserError
from reposer.generation.pictures import encode_marked, is_marked, mark, output_names, write_picture
from reposer.images import encode_jpeg, encode_png

PIXELS = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


@pytest.mark.parametrize("file_format", ["png", "jpg"])
def test_pillow_reads_the_mark_and_the_same_pixels(file_format):
    image = Image.open(io.BytesIO(encode_marked(PIXELS, file_format)))
    image.load()
    packet = image.info["xmp"] if file_format == "jpg" else image.info["XML:com.adobe.xmp"]
    description = next(ET.fromstring(packet).iter(DESCRIPTION))
    assert description.get(SOURCE_TYPE, "").endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    plain = encode_png(PIXELS) if file_format == "png" else encode_jpeg(PIXELS, 95)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(plain))))
    assert not image.getexif()


def test_only_a_marked_file_counts_as_marked():
    plain = encode_png(PIXELS)
    assert is_marked(mark(plain))
    assert not is_marked(plain)
    with pytest.raises(ValueError, match="neither"):
        mark(b"GIF89a")


def test_a_picture_is_written_by_its_extension(tmp_path):
    write_picture(tmp_path / "new" / "a.JPEG", PIXELS)
    assert is_marked((tmp_path / "new" / "a.JPEG").read_bytes())
    with pytest.raises(UserError, match=r"a\.webp: pictures are written as"):
        write_picture(tmp_path / "a.webp", PIXELS)


def test_names_are_portable_short_and_different():
    pairs = [
        ("0002_c1s1_000451_03.jpg", "0007_c2s3_070952_01.jpg"),
        ("folder/0002_c1s1_000551_01.jpg.jpg", "b.png"),
        ("A.jpg", "b.jpg"),
        ("a.jpg", "B.jpg"),  # the same name on a disk that ignores case
        ("é/ü?.jpg", "x y.jpg"),
        ("é/ü!.jpg", "x y.jpg"),
        ("n" * 300 + ".jpg", "d.jpg"),
        (".hidden.jpg", "d.jpg"),
    ]
    names = output_names(pairs, "png")
    assert names[0] == "0002_c1s1_000451_03___0007_c2s3_070952_01.png"
    assert names[1] == "0002_c1s1_000551_01.jpg___b.png"
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) <= 100 and name.isascii() and name[0] not in ".-" for name in names)
    assert output_names(pairs[:1], "png") == names[:1]
    with pytest.raises(UserError, match=r"1 pairs occur more than once, first a\.jpg -> b\.jpg"):
        output_names([("a.jpg", "b.jpg"), ("a.jpg", "b.jpg")], "png")
