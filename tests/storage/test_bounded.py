"""Untrusted bytes: a crash, a bomb or an endless parser ends in one line, and good files read rightly."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from reposer.data.layouts import tables
from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.embedding import Embedding
from reposer.models.generators import build_generator, build_predictor
from reposer.models.parsing_networks import ParsingNetwork
from reposer.storage import bounded
from reposer.storage.bounded import parse_json, read_in_child, read_mat, read_npy, read_npz
from reposer.storage.paths import RefusedFileError
from reposer.storage.tables import check_decoded, read_table
from reposer.trained.networks import GeneratorConfig

PATH = Path("x.mat")


def mat(**variables) -> bytes:
    content = io.BytesIO()
    scipy.io.savemat(content, variables, do_compression=True)
    return content.getvalue()


def mat_bomb(count: int) -> bytes:
    """A compressed MATLAB 5 file whose one variable ``x`` is ``count`` zero doubles."""
    name = struct.pack("<II", 1, 1) + b"x" + bytes(7)
    flags, dims = struct.pack("<IIII", 6, 8, 6, 0), struct.pack("<IIii", 5, 8, 1, count)
    head = flags + dims + name + struct.pack("<II", 9, 8 * count)
    packer = zlib.compressobj(9)
    packed = packer.compress(struct.pack("<II", 14, len(head) + 8 * count) + head)
    zeros = bytes(1 << 20)
    packed += b"".join(packer.compress(zeros) for _ in range(8 * count >> 20)) + packer.flush()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(packed)) + packed


def test_mat_variables_come_back_as_they_were_written():
    names = np.array(["1_001_1_01.png", "b.png"], dtype=object)
    data = mat(filelist=names, index=np.array([[1, 2, 3]]), features=np.eye(3, dtype=np.float32))
    found = read_mat(PATH, data, ["filelist", "index", "features", "absent"])
    assert set(found) == {"filelist", "index", "features"}
    assert [str(v) for v in found["filelist"].ravel()] == ["1_001_1_01.png", "b.png"]
    assert found["index"].ravel().tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found["features"], np.eye(3))


def test_a_mat_bomb_is_stopped_by_the_childs_limits():
    data = mat_bomb(1 << 26)  # 512 MiB of zeros in half a megabyte
    assert len(data) < 1_000_000
    with pytest.raises(UserError, match=r"x\.mat: .*memory"):
        read_in_child("mat", PATH, data, ["x"], memory=500 << 20)


@pytest.mark.parametrize("ending", ["crash", "loop"])
def test_a_dying_or_endless_parser_is_one_line(tmp_path, monkeypatch, ending):
    # The child imports the program anew: a module of that name in front of SciPy does the harm.
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("")
    body = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})" if ending == "crash" else "while 1: pass"
    (tmp_path / "scipy" / "io.py").write_text(body)
    source = str(Path(bounded.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), source)))
    monkeypatch.setattr(bounded, "_SOURCE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match="crashed" if ending == "crash" else "too long"):
        read_in_child("mat", PATH, b"x", ["x"], seconds=1)
    assert time.monotonic() - began < 20


def test_npz_counts_before_it_unpacks(tmp_path):
    content = io.BytesIO()
    np.savez_compressed(content, a=np.zeros(4_000_000), b=np.arange(3))
    assert len(content.getvalue()) < 100_000
    with pytest.raises(RefusedFileError, match="unpacks to 32,0"):
        read_npz(PATH, content, max_bytes=1_000_000)
    assert read_npz(PATH, content, ["b", "c"], max_bytes=1000)["b"].tolist() == [0, 1, 2]


def test_arrays_that_claim_more_than_the_file_holds_take_no_memory():
    content = io.BytesIO()
    head = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(content, head)
    with pytest.raises(RefusedFileError, match="an array"):
        read_npy(PATH, content.getvalue() + bytes(80))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.npy", content.getvalue() + bytes(80))
    with pytest.raises(RefusedFileError, match="an array"):
        read_npz(PATH, archive)
    good = io.BytesIO()
    np.save(good, np.arange(6).reshape(2, 3))
    assert read_npy(PATH, good.getvalue()).tolist() == [[0, 1, 2], [3, 4, 5]]


# encrypted, two ways of compression, strong encryption
@pytest.mark.parametrize(("at", "value"), [((6, 8), 1), ((8, 10), 97), ((8, 10), 9), ((6, 8), 0x40)])
def test_an_archive_that_zipfile_cannot_open_is_damaged(at, value):
    content = io.BytesIO()
    np.savez(content, a=np.arange(3))
    data = bytearray(content.getvalue())
    for mark, place in zip((b"PK\3\4", b"PK\1\2"), at, strict=True):
        data[data.index(mark) + place] = value
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        read_npz(PATH, io.BytesIO(data))


HEADS = ["{'descr': (((", "{'shape': " + "(" * 60, "'" * 3, "{'a': 1\n  2\n 3}", "\\\n\\", "[" * 9000, "\0"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_that_is_none_is_damaged(head, version):
    size = struct.pack("<H" if version == 1 else "<I", len(head))
    data = b"\x93NUMPY" + bytes([version, 0]) + size + head.encode() + bytes(80)
    with pytest.raises(ValueError, match="header"):
        read_npy(PATH, data)


def test_json_is_bounded_in_depth_and_number(monkeypatch):
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * 200_000 + "]" * 200_000)
    monkeypatch.setattr(bounded, "MAX_JSON_VALUES", 100)
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_json(b"[" + b"[]," * 200 + b"1]")


def test_a_text_repeated_by_parquets_dictionary_is_counted(tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), ["x" * 1_000_000])
    pq.write_table(pa.table({"path": text}), tmp_path / "d.parquet")
    # without Arrow's own note of the type a reader takes it for plain texts, 20 GB of them
    bare = pq.ParquetFile(tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 1_200_000
    with pytest.raises(pa.ArrowInvalid, match="unpacks to more"):
        check_decoded(bare, str(tmp_path / "d.parquet"))
    pq.write_table(pa.table({"path": ["a", "bcd"] * 10_000}), tmp_path / "good.parquet")
    assert read_table(tmp_path / "good.parquet")["path"].to_pylist()[:2] == ["a", "bcd"]


@pytest.mark.parametrize("schema", [True, False])
def test_a_text_repeated_in_lists_is_counted(schema, tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), ["x" * 1_000_000])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 20_000], pa.int32()), text)
    rows = {"problems": lists, "in": pa.StructArray.from_arrays([lists], ["a"])}
    for name, column in rows.items():
        pq.write_table(pa.table({name: column}), tmp_path / "d.parquet", store_schema=schema)
        assert (tmp_path / "d.parquet").stat().st_size < 1_200_000
        with pytest.raises(pa.ArrowInvalid, match="unpacks to more"):
            read_table(tmp_path / "d.parquet")
    good = {"problems": [["a", "bcd"], [], None] * 1000, "keypoints": [[[1.0, 2.0]] * 18] * 3000}
    pq.write_table(pa.table(good), tmp_path / "good.parquet")
    assert read_table(tmp_path / "good.parquet").to_pydict() == good


def _varint(value: int, length: int = 0) -> bytes:
    """Thrift's number, zigzag; of ``length`` bytes, longer than it need be."""
    value, found = value * 2, []
    while value or len(found) < length or not found:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found[:-1], found[-1] & 127])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("where", [str, pa.BufferReader])
def test_a_footer_that_lies_about_a_list_is_not_believed(where, version, tmp_path, monkeypatch):
    """One row of three million zeros is a few bytes; its footer says ten."""
    count, path = 3_000_000, tmp_path / "x.parquet"
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array(np.zeros(count, np.int8)))
    options = {"data_page_size": 2**30, "write_batch_size": 2**30, "data_page_version": version}
    pq.write_table(pa.table({"joints": lists}), path, **options)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    told = _varint(count)
    data = data[:footer] + data[footer:].replace(told, _varint(10, len(told)))
    assert len(data) < 20_000
    path.write_bytes(data)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).num_values == 10
    source = str(path) if where is str else pa.BufferReader(data)
    opened = pq.ParquetFile(source)
    check_decoded(opened, source, 12 * count)
    with pytest.raises(pa.ArrowInvalid, match="unpacks to more than 1,000,000 bytes"):
        check_decoded(opened, source, 1_000_000)
    monkeypatch.setattr(check_decoded, "__defaults__", (1_000_000,))
    before = pa.total_allocated_bytes()
    with pytest.raises(pa.ArrowInvalid, match="unpacks to more"):
        read_table(data if where is pa.BufferReader else path)
    assert pa.total_allocated_bytes() - before < 1_000_000


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_generator("san", blocks=10**9),
        lambda: build_generator("patn", ngf=10**9),
        lambda: build_generator("rsa_gan", res_blocks=10**9),
        lambda: build_predictor("parsing_predictor", halvings=10**9),
        lambda: build_generator("san", deep_channels=[8] * 10**6),
        lambda: Embedding(size=(10**6, 10**6)),
        lambda: Embedding(backbone_args={"widths": [8] * 10**6}),
        lambda: ParsingNetwork(widths=(10**9, 1, 1, 1)),
        lambda: Embedding(size=(2000, 64)),
        lambda: build_discriminator(blocks=10**9),
        lambda: build_discriminator(shape=True, ndf=10**9),
    ],
)
def test_configurations_without_bound_are_refused_before_anything_is_built(build):
    began = time.monotonic()
    with pytest.raises(UserError, match="larger than any network"):
        build()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("size", [[10**5, 10**5], [2000, 64], [0, 64], [-1, 64]])
def test_the_size_of_a_generator_is_bounded(size):
    GeneratorConfig(generator="san", size=(1024, 512))
    with pytest.raises(ValueError, match="1 to 1,024 pixels"):
        GeneratorConfig(generator="san", size=size)


def test_one_row_of_very_many_items_is_refused(tmp_path):
    """Less than 5 kB of Parquet: its one list repeats a value, here 10^7 times."""
    number = 10**7
    values = pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), pa.array(np.zeros(number, np.int8)))
    place = tmp_path / "x.parquet"
    pq.write_table(pa.table({"keypoints": values}), place, compression="zstd")
    assert place.stat().st_size < 5000
    with pytest.raises(pa.ArrowInvalid, match="unpacks to more than 10,000,000"):
        check_decoded(pq.ParquetFile(place), str(place), most=10**7)
    check_decoded(pq.ParquetFile(place), str(place), most=12 * number)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"path,pid,camid,split\n" + b"a.jpg,1,1,train\n" * 200, "more than 100 rows"),
        (b"path,pid,camid,split\n" + b"\n" * 200, "more than 100 rows"),
        (b"path,pid,camid,split\na.jpg,1,1,train" + b"," * 3000, "longer than 2,000 characters"),
        (b"path,pid,camid,split\n" + b'"\n",' * 1000, "longer than 2,000 characters"),
        (b"path,pid,camid,split" + b",x" * 900, "more than 50 columns"),
        (b"path,pid,camid,split\n" + b"a.jpg,1,1,train\n" * 700, "larger than 10,000 bytes"),
    ],
)
def test_a_csv_table_is_bounded(tmp_path, monkeypatch, content, told):
    limits = {"MAX_ROWS": 100, "_MAX_LINE": 2000, "_MAX_COLUMNS": 50, "_MAX_CSV_BYTES": 10_000}
    for name, value in limits.items():
        monkeypatch.setattr(tables, name, value)
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=told):
        list(tables.read_rows(tmp_path / "x.csv", tables.COLUMNS)[1])
    # as much as the bounds allow, a quoted line end and a short row among it
    rows = ['"a\nb.jpg",1,1,train', "c.jpg,2,3"] + ["d.jpg,1,1,train"] * 98
    (tmp_path / "x.csv").write_text("\ufeffpath,pid,camid,split\n" + "\n".join(rows), encoding="utf-8")
    read = list(tables.read_rows(tmp_path / "x.csv", tables.COLUMNS)[1])
    assert len(read) == 100
    assert read[0] == {"path": "a\nb.jpg", "pid": "1", "camid": "1", "split": "train"}
    assert read[1] == {"path": "c.jpg", "pid": "2", "camid": "3", "split": ""}


def test_a_parquet_table_is_bounded(tmp_path, monkeypatch):
    columns = {"path": ["a.jpg"] * 101, "pid": [1] * 101, "camid": [1] * 101, "split": ["train"] * 101}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert len(list(tables.read_rows(tmp_path / "x.parquet", tables.COLUMNS)[1])) == 101
    monkeypatch.setattr(tables, "MAX_ROWS", 100)
    with pytest.raises(UserError, match="more than 100 rows"):
        list(tables.read_rows(tmp_path / "x.parquet", tables.COLUMNS)[1])
    monkeypatch.undo()
    pq.write_table(pa.table(columns | {"pid": [[1, 2]] * 101}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="pid holds lists"):
        list(tables.read_rows(tmp_path / "x.parquet", tables.COLUMNS)[1])


def _lists(items, offsets=None):
    """One list of all the items, or several."""
    return pa.ListArray.from_arrays(pa.array(offsets or [0, len(items)], pa.int32()), items)


def _repeated(text: str | bytes, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [text])


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("pages", [256, 2**20])
def test_as_much_as_the_pages_hold_is_counted(codec, version, pages, tmp_path):
    """To the byte: 8 of a number, 12 of one in a list, nulls too, in pages of any kind and any row groups."""
    path = tmp_path / "x.parquet"
    numbers, items = [None, 2, 2, 4, 5] * 1000, [[1.5, None], None, [], [2.5] * 8, [4.0] * 0 + [None]] * 1000
    columns = {"a": pa.array(numbers, pa.int64()), "b": pa.array(items, pa.list_(pa.float64()))}
    values = sum(len(item) if item else 1 for item in items)  # a list that is null or empty takes a place too
    most = 8 * 5000 + 12 * values
    options = {"data_page_version": version, "compression": codec, "data_page_size": pages}
    pq.write_table(pa.table(columns), path, row_group_size=1700, write_batch_size=64, **options)
    opened = pq.ParquetFile(path)
    check_decoded(opened, str(path), most)
    with pytest.raises(pa.ArrowInvalid, match=f"unpacks to more than {most - 1:,}"):
        check_decoded(opened, str(path), most - 1)
    assert read_table(path).to_pydict() == {"a": numbers, "b": items}


def test_a_footer_that_lies_about_the_bytes_of_a_text_is_not_believed(tmp_path):
    """Twenty thousand times a text of one million: the footer says that its column is a few bytes."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"path": _repeated("x" * 1_000_000, 20_000)}), path, write_statistics=False)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    size = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    told = _varint(size)
    assert data[footer:].count(told) == 2  # of the column and of its group
    path.write_bytes(data[:footer] + data[footer:].replace(told, _varint(9, len(told))))
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 9
    with pytest.raises(pa.ArrowInvalid, match="unpacks to more"):
        read_table(path)


def test_what_no_page_holds_is_counted(tmp_path):
    """Lists of a fixed size take their place where they are null; texts that begin alike are stored once."""
    nulls = pa.nulls(500, pa.list_(pa.int64(), 10_000))
    deep = pa.StructArray.from_arrays([nulls], ["a"])
    alike = pa.array(["x" * 10_000] * 2000)
    pq.write_table(pa.table({"s": nulls}), tmp_path / "nulls.parquet")
    pq.write_table(pa.table({"s": deep}), tmp_path / "deep.parquet")
    encodings = {"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"s": alike}), tmp_path / "alike.parquet", **encodings)
    pq.write_table(
        pa.table({"s": _lists(alike)}),
        tmp_path / "lists.parquet",
        use_dictionary=False,
        column_encoding={"s.list.element": "DELTA_BYTE_ARRAY"},
    )
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 20_000
        before = pa.total_allocated_bytes()
        with pytest.raises(pa.ArrowInvalid, match="unpacks to more than 10,000,000"):
            check_decoded(pq.ParquetFile(path), str(path), 10**7)
        assert pa.total_allocated_bytes() - before < 10**6


def test_many_short_texts_in_lists_are_read_though_their_column_is_large(tmp_path):
    """Texts times bytes of their column is beyond the bound; in several row groups, dictionaries given up."""
    texts, path = [f"images/{i:040}.png" for i in range(4000)], tmp_path / "x.parquet"
    rows = {"sources": [texts[i : i + 2] for i in range(0, 4000, 2)], "of": [{"a": t} for t in texts[:2000]]}
    pq.write_table(
        pa.table(rows), path, row_group_size=1500, dictionary_pagesize_limit=1000, data_page_size=999
    )
    opened = pq.ParquetFile(path)
    assert 3000 * opened.metadata.row_group(0).column(0).total_uncompressed_size > 10**8
    check_decoded(opened, str(path), 10**7)
    assert read_table(path).to_pydict() == rows


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x15\x00\x15\x02",  # cut off
        b"\x15\x00\x15\x01\x15\x02\x00",  # a negative size
        b"\x15\x00\x15\x02\x15\x02\x00",  # says nothing of its values
        b"\x15\x00\x15\x02\x15\x02\x2c\x15\xff\xff\xff\xff\x0f\x05\x02\x02\x15\x00\x00\x00",  # a number twice
        b"\x15\x00\x15\x02\x15\x02\x2c\x15" + b"\x80" * 9 + b"\x01\x15\x00\x00\x00",  # of 64 bits
        b"\x1c" * 5000,  # structs in structs
    ],
)
def test_a_page_without_a_header_is_damaged(header, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": np.arange(9000)}), path, use_dictionary=False, compression="none")
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:start] + header.ljust(6000, b"\xff") + data[start + 6000 :])
    with pytest.raises(pa.ArrowInvalid, match="a page without a header"):
        read_table(path)
