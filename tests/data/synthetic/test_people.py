"""A generated set is read as it was written, and refused where training on it would be a leak."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from generated_sets import write_set
from PIL import Image

from reposer.data.packed import PackedPeople
from reposer.data.preparing.report import refuse_synthetic
from reposer.data.synthetic import people as generated_cache
from reposer.data.synthetic.mixed import MixedDataset, ReidDataset
from reposer.data.synthetic.people import GeneratedPeople
from reposer.errors import UserError
from reposer.generation.pictures import encode_marked
from reposer.images import encode_png
from reposer.structures import PersonRecord


def test_pictures_and_labels_come_in_the_order_of_the_manifest(people, tmp_path):
    found = GeneratedPeople.open(write_set(tmp_path / "set", people), people)
    real = np.flatnonzero(people.splits == "train")
    assert np.array_equal(found.images, people.images[real][:, :, ::-1])  # mirrored, lossless
    assert found.pids.tolist() == people.pids[real].tolist()
    assert found.camids.tolist() == people.camids[real].tolist()
    assert found.sources == tuple(people.names[i] for i in real)
    assert found.donors == found.sources[1:] + found.sources[:1]
    assert found.kept.all()
    assert not found.notes


def test_pictures_of_another_size_are_resized(people, tmp_path):
    found = GeneratedPeople.open(write_set(tmp_path / "set", people, size_factor=2), people)
    for i, name in enumerate(found.names):
        image = Image.open(tmp_path / "set" / "images" / name).convert("RGB")
        slow = np.asarray(image.resize((8, 16), Image.Resampling.BILINEAR))
        assert np.abs(found.images[i].astype(int) - slow).max() <= 1


def test_the_cache_is_used_until_something_changes(people, tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", people)
    first = np.array(GeneratedPeople.open(folder, people).images)
    calls: list[Path] = []
    real = generated_cache._read
    monkeypatch.setattr(generated_cache, "_read", lambda *args: calls.append(args[0]) or real(*args))
    GeneratedPeople.open(folder, people)
    assert not calls
    array = folder / "packed_16x8" / "images.npy"
    damaged = bytearray(array.read_bytes())
    damaged[-1] ^= 1
    array.write_bytes(damaged)
    assert np.array_equal(GeneratedPeople.open(folder, people).images, first)
    assert len(calls) == len(first)
    other = write_set(tmp_path / "other", people, change=lambda rows: rows.pop())
    for part in (folder / "manifest").iterdir():
        part.write_bytes((other / "manifest" / part.name).read_bytes())
    assert len(GeneratedPeople.open(folder, people).images) == len(first) - 1


def test_a_picture_that_changed_is_named(people, tmp_path):
    folder = write_set(tmp_path / "set", people)
    name = sorted(entry.name for entry in (folder / "images").iterdir())[3]
    (folder / "images" / name).write_bytes(encode_png(np.zeros((16, 8, 3), np.uint8)))
    with pytest.raises(UserError, match=f"{name}: differs from its sha256"):
        GeneratedPeople.open(folder, people)
    (folder / "images" / name).unlink()
    with pytest.raises(UserError, match=name):
        GeneratedPeople.open(folder, people)


def _edit(row: int, **values):
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pid": 999, "source_pid": 999}, "pid 999 is nobody of the training people"),
        ({"pid": 5, "source_pid": 5}, "pid 5 is a test person"),
        ({"donor_pid": 5}, "donor_pid 5 is a test person"),
        ({"source_pid": 3}, "pid is not that of its source, 3"),
        ({"synthetic": False}, "synthetic is false"),
        ({"sha256": "held out"}, "sha256 is that of a held-out image"),
        ({"source_sha256": "held out"}, "source_sha256 is that of a held-out image"),
        ({"donor_sha256": "held out"}, "donor_sha256 is that of a held-out image"),
        ({"trained_on": "val"}, r"generator was trained on test people \(val\)"),
        ({"trained_on": "all"}, r"generator was trained on test people \(train \+ val\)"),
        ({"file": "../x.png"}, "a path must not hold"),
        ({"donor_pid": None}, "donor_pid is missing"),
    ],
)
def test_rows_that_must_not_be_trained_on_are_refused(people, tmp_path, values, message):
    """People 2, 3, 4 are trained on, 5 is held out; the bad row is the second one."""
    held_out = people.sha256[int(np.flatnonzero(people.splits == "val")[0])]
    known = {"held out": held_out, "val": people.identity_hash("val")}
    known["all"] = people.identity_hash("train", "val")
    values = {name: known.get(value, value) for name, value in values.items()}
    folder = write_set(tmp_path / "set", people, change=_edit(1, **values))
    with pytest.raises(UserError, match=rf"row 2, .*: .*{message}"):
        GeneratedPeople.open(folder, people)
    if "trained_on" in values or message.endswith("test person"):  # unless everybody is trained on
        GeneratedPeople.open(folder, people, ("train", "val"))


def test_a_file_in_two_rows_is_refused(people, tmp_path):
    folder = write_set(tmp_path / "set", people, change=lambda rows: rows.append(dict(rows[0])))
    with pytest.raises(UserError, match="stands in an earlier row"):
        GeneratedPeople.open(folder, people)


def test_an_unfinished_set_is_refused(people, tmp_path):
    folder = write_set(tmp_path / "set", people)
    (folder / "manifest" / "_part-00000.sha256").unlink()
    with pytest.raises(UserError, match="1 of 1 shards are not there"):
        GeneratedPeople.open(folder, people)


def test_what_a_reader_should_know_is_noted(people, tmp_path):
    def change(rows):
        for row in rows:
            row |= {"kept": row["pid"] != 2, "trained_on": "f" * 64}

    folder = write_set(tmp_path / "set", people, change=change, settings={"factor": 3})
    mixed = MixedDataset(ReidDataset(people, rows=np.arange(8)), GeneratedPeople.open(folder, people))
    said = " / ".join(mixed.notes())
    assert "3 of 9 generated pictures were dropped" in said
    assert "1 of 3 people have no generated picture" in said
    assert "cannot be told from their hash" in said
    assert "9 generated pictures for 8 real ones: factor 3 would be 16" in said
    assert "1 generated pictures have a source outside" in said


def test_real_and_generated_images_share_the_real_label_map(people, tmp_path):
    """With person 2 absent from the set, person 3 is still class 1."""
    folder = write_set(tmp_path / "set", people, change=lambda rows: rows.__delitem__(slice(0, 3)))
    generated = GeneratedPeople.open(folder, people)
    mixed = MixedDataset(ReidDataset(people), generated, weight=0.5)
    rows = np.array([9, 0, 14, 3])
    batch = mixed.batch(rows)
    assert batch.label.tolist() == [1, 0, 2, 1]
    assert batch.generated.tolist() == [True, False, True, False]
    assert batch.weight.tolist() == [0.5, 1.0, 0.5, 1.0]
    assert batch.known.all()
    assert mixed.names(rows) == (generated.names[0], people.names[0], generated.names[5], people.names[3])
    pixels = batch.image.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels[[0, 2]], generated.images[[0, 5]])
    assert np.array_equal(pixels[[1, 3]], people.images[[0, 3]])
    extra = MixedDataset(ReidDataset(people), generated, extra_class=True, known=False).batch(rows)
    assert extra.label.tolist() == [3, 0, 3, 1]
    assert extra.known.tolist() == [False, True, False, True]


def test_dropped_pictures_are_left_out_unless_asked_for(people, tmp_path):
    def change(rows):
        for number, row in enumerate(rows):
            row["kept"] = number % 2 == 0

    generated = GeneratedPeople.open(write_set(tmp_path / "set", people, change=change), people)
    assert MixedDataset(ReidDataset(people), generated).indices.tolist() == [0, 2, 4, 6, 8]
    assert len(MixedDataset(ReidDataset(people), generated, use_dropped=True)) == 18


def test_generated_pictures_are_no_test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    records = []
    for split in ("train", "val", "query", "gallery"):
        data = encode_marked(pixels, "jpg")
        (tmp_path / f"{split}.jpg").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        records.append(PersonRecord(f"{split}.jpg", f"{split}.jpg", 2, 1, split, 8, 16, digest))
    refuse_synthetic(tmp_path, records[:1])  # to train on them is the point
    for record in records[1:]:
        with pytest.raises(UserError, match=f"generated picture among the {record.split} images"):
            refuse_synthetic(tmp_path, [records[0], record])
    with pytest.raises(UserError, match="and 2 files more"):
        refuse_synthetic(tmp_path, records)
    (tmp_path / "query.jpg").write_bytes(encode_png(pixels))
    refuse_synthetic(tmp_path, [records[2]])


def test_the_check_of_a_packed_set_reads_the_hashes_of_its_files(people):
    assert isinstance(people, PackedPeople)
    assert len(people.sha256) == len(people) == len(set(people.sha256))
