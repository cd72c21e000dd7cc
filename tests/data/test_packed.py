"""Packed people against files read one by one with Pillow; missing annotations, bad files, kills, damage."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reposer.data.packed import PackedPeople, by_person
from reposer.data.preparing.packing import pack
from reposer.data.records import AnnotationError
from reposer.errors import UserError
from reposer.storage.lock import try_lock
from reposer.structures import MISSING_LABEL, PersonRecord

MakePeople = Callable[..., list[PersonRecord]]
SIZE = (16, 8)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_everything_is_packed_in_the_order_of_the_records(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(7)[::-1]
    calls: list[tuple[int, int]] = []
    report = pack(
        records, tmp_path / "root", tmp_path / "packed", SIZE, on_progress=lambda *call: calls.append(call)
    )
    people = PackedPeople.open(tmp_path / "packed")
    people.verify()
    assert (report.count, report.missing_parsing, report.mask_sources) == (7, 0, {"mask": 7})
    assert report.problems == []
    assert calls == [(done, 7) for done in range(1, 8)]
    assert (len(people), people.size) == (7, SIZE)
    assert people.names == tuple(record.name for record in records)
    assert people.pids.tolist() == [record.pid for record in records]
    assert people.camids.tolist() == [record.camid for record in records]
    assert people.splits.tolist() == [record.split for record in records]
    for place, record in enumerate(records):
        assert people.index(record.name) == place
        image, parsing, mask = (
            np.array(Image.open(tmp_path / "root" / path))
            for path in (record.path, record.parsing, record.mask)
        )
        np.testing.assert_array_equal(people.images[place], image)
        np.testing.assert_array_equal(people.parsing[place], parsing)
        np.testing.assert_array_equal(people.mask[place], mask)
        np.testing.assert_array_equal(people.keypoints[place], record.keypoints)


def test_threads_and_repetition_change_no_byte(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(9)
    for name, threads in (("a", 1), ("b", 4), ("b", 2)):  # the last one replaces a folder
        pack(records, tmp_path / "root", tmp_path / name, SIZE, threads=threads)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "root"]


def test_another_size_is_resized_as_pillow_does(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(3, size=(48, 24))
    pack(records, tmp_path / "root", tmp_path / "packed", SIZE)
    people = PackedPeople.open(tmp_path / "packed")
    for place, record in enumerate(records):
        image = Image.open(tmp_path / "root" / record.path).resize((8, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(people.images[place], np.array(image))
        # a third of the size: nearest takes the middle of each 3x3 block
        for packed, path in ((people.parsing, record.parsing), (people.mask, record.mask)):
            full = np.array(Image.open(tmp_path / "root" / str(path)))
            np.testing.assert_array_equal(packed[place], full[1::3, 1::3])
        assert record.keypoints is not None
        np.testing.assert_allclose(people.keypoints[place], (record.keypoints - 1) / 3, atol=1e-5)


def test_missing_annotations_are_filled_and_counted(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(4)
    root = tmp_path / "root"
    records[0] = replace(records[0], parsing=None)
    records[1] = replace(records[1], mask=None, keypoints=None)
    records[2] = replace(records[2], parsing=None, mask=None)
    Image.new("L", (8, 16)).save(root / str(records[3].parsing))  # nobody on the map
    records[3] = replace(records[3], mask=None)
    report = pack(records, root, tmp_path / "packed", SIZE)
    people = PackedPeople.open(tmp_path / "packed")
    assert (report.missing_parsing, report.mask_sources) == (2, {"mask": 1, "ones": 2, "parsing": 1})
    assert (people.parsing[[0, 2]] == MISSING_LABEL).all()
    np.testing.assert_array_equal(people.mask[1], people.parsing[1] != 0)
    assert people.mask[2:].all()
    assert (people.parsing[3] == 0).all()
    assert np.isnan(people.keypoints[1]).all()
    header = json.loads((tmp_path / "packed" / "packed.json").read_text())
    assert (header["missing_parsing"], header["mask_sources"]["ones"]) == (2, 2)


def test_bad_files_are_listed_and_the_rest_is_packed(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(6)
    root = tmp_path / "root"
    (root / records[1].path).write_bytes(b"no image")
    (root / records[2].path).unlink()
    Image.new("RGB", (8, 16), (1, 2, 3)).save(root / str(records[3].parsing))
    Image.new("L", (9, 16)).save(root / str(records[4].mask))
    report = pack(records, root, tmp_path / "packed", SIZE)
    people = PackedPeople.open(tmp_path / "packed")
    assert people.names == tuple(records[i].name for i in (0, 3, 4, 5))
    assert (report.count, report.missing_parsing, report.mask_sources) == (4, 1, {"mask": 3, "parsing": 1})
    listed = [(problem.file, problem.field) for problem in report.problems]
    assert listed == [
        (records[1].path, "image"),
        (records[2].path, "image"),
        (records[3].parsing, "parsing"),
        (records[4].mask, "mask"),
    ]
    assert "left out" in report.problems[0].message
    assert "mode RGB" in report.problems[2].message
    assert "9x16" in report.problems[3].message
    assert not any("\n" in str(problem) for problem in report.problems)


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(3)
    root, out = tmp_path / "root", tmp_path / "packed"
    with pytest.raises(UserError, match="empty"):
        pack([], root, out, SIZE)
    with pytest.raises(UserError, match="more than once"):
        pack([*records, records[1]], root, out, SIZE)
    for record in records:
        (root / record.path).write_bytes(b"")
    with pytest.raises(UserError, match="none of 3 images"):
        pack(records, root, out, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_an_image_outside_the_root_is_not_read(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(2)
    outside = tmp_path / "outside.png"
    (tmp_path / "root" / records[1].path).rename(outside)
    records[1] = replace(records[1], path="../outside.png")
    report = pack(records, tmp_path / "root", tmp_path / "packed", SIZE)
    assert report.count == 1
    assert report.problems[0].file == "../outside.png"
    assert "must not hold" in report.problems[0].message
    assert len(PackedPeople.open(tmp_path / "packed")) == 1


@pytest.mark.parametrize("linked", ["", "images.npy", "rows.parquet", "packed.json"])
def test_links_out_of_a_prepared_folder_are_not_followed(
    tmp_path: Path, make_people: MakePeople, linked: str
) -> None:
    elsewhere, prepared = tmp_path / "elsewhere", tmp_path / "prepared"
    prepared.mkdir()
    pack(make_people(2), tmp_path / "root", elsewhere / "packed", SIZE)
    if linked:
        shutil.copytree(elsewhere / "packed", prepared / "packed")
        (prepared / "packed" / linked).unlink()
    (prepared / "packed" / linked).symlink_to(elsewhere / "packed" / linked)
    with pytest.raises(UserError, match="leads outside"):
        PackedPeople.open(prepared / "packed")
    (tmp_path / "named").symlink_to(elsewhere)  # a link that the user names is followed
    assert len(PackedPeople.open(tmp_path / "named" / "packed")) == 2


@pytest.mark.parametrize("killed_at", [150, *(pytest.param(row, marks=pytest.mark.slow) for row in (1, 299))])
def test_after_a_kill_the_next_run_is_complete(
    tmp_path: Path, make_people: MakePeople, killed_at: int
) -> None:
    records = make_people(3) * 100
    records = [replace(record, name=f"{i}.png") for i, record in enumerate(records)]
    root, out = tmp_path / "root", tmp_path / "packed"

    def kill(done: int, total: int) -> None:
        if done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        pack(records, root, out, SIZE, on_progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(".packed.tmp-*"))) == 1
    pack(records, root, out, SIZE)
    PackedPeople.open(out).verify()
    assert len(PackedPeople.open(out)) == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "root"]


def test_the_folder_of_a_living_writer_is_not_removed(tmp_path: Path, make_people: MakePeople) -> None:
    living = tmp_path / ".packed.tmp-00000000"
    living.mkdir()
    lock = os.open(living, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert try_lock(lock)
        with pytest.raises(UserError, match="another process is writing there"):
            pack(make_people(2), tmp_path / "root", tmp_path / "packed", SIZE)
        assert living.is_dir()
    finally:
        os.close(lock)
    os.utime(living, (0, 0))  # what is of this moment may be a writer's that has not locked it yet
    pack(make_people(2), tmp_path / "root", tmp_path / "packed", SIZE)
    assert not living.exists()


def test_a_pair_batch_is_what_the_fields_say(people: PackedPeople) -> None:
    source, target = np.array([3, 0, 3]), np.array([1, 11, 4])
    batch = people.pair_batch(source, target)
    assert batch.source_image.shape == (3, 3, 16, 8)
    assert batch.source_image.dtype == batch.source_parsing.dtype == torch.uint8
    assert batch.source_mask.dtype == torch.bool
    assert batch.source_keypoints.dtype == torch.float32
    assert batch.source_image.is_contiguous(memory_format=torch.channels_last)
    assert batch.pids.tolist() == people.pids[source].tolist()
    for place in range(3):
        for side, person in (("source", source[place]), ("target", target[place])):
            image = getattr(batch, f"{side}_image")[place].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(image, people.images[person])
            for field in ("parsing", "mask", "keypoints"):
                value = getattr(batch, f"{side}_{field}")[place].numpy()
                np.testing.assert_array_equal(value, getattr(people, field)[person])


def test_a_batch_can_be_written_to_without_changing_the_files(people: PackedPeople) -> None:
    people.pair_batch(np.array([0]), np.array([1])).source_image.zero_()
    assert people.images[0].any()
    people.verify()


def test_unknown_people_are_errors(people: PackedPeople) -> None:
    with pytest.raises(IndexError):
        people.pair_batch(np.array([12]), np.array([0]))
    with pytest.raises(KeyError, match="absent"):
        people.index("absent")


def test_a_copy_maps_the_files_again(people: PackedPeople) -> None:
    again = copy.copy(people)  # what a spawned worker gets
    assert again.names == people.names
    assert again.images is not people.images
    np.testing.assert_array_equal(again.images, people.images)


def test_identity_hash_depends_on_the_people_only(tmp_path: Path, make_people: MakePeople) -> None:
    records = make_people(9)
    pack(records[::-1], tmp_path / "root", tmp_path / "a", SIZE)
    pack(records[1:], tmp_path / "root", tmp_path / "b", SIZE)
    a, b = PackedPeople.open(tmp_path / "a"), PackedPeople.open(tmp_path / "b")
    assert a.identity_hash("train") == b.identity_hash("train") == hashlib.sha256(b"2\n3").hexdigest()
    assert a.identity_hash("val") == hashlib.sha256(b"4").hexdigest()


@pytest.mark.parametrize("name", ["images.npy", "parsing.npy", "mask.npy", "rows.parquet"])
def test_one_changed_bit_is_found(people: PackedPeople, name: str) -> None:
    data = bytearray((people.folder / name).read_bytes())
    data[-300] ^= 1
    (people.folder / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=f"{name}, sha256"):
        people.verify()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no header": lambda folder: (folder / "packed.json").unlink(),
    "half a header": lambda folder: _cut(folder / "packed.json") or _cut(folder / "packed.json"),
    "header of a list": lambda folder: (folder / "packed.json").write_text("[]"),
    "later version": lambda folder: (folder / "packed.json").write_text('{"schema_version": 99}'),
    "count missing": lambda folder: (folder / "packed.json").write_text('{"schema_version": 1}'),
    "images gone": lambda folder: (folder / "images.npy").unlink(),
    "images cut": lambda folder: _cut(folder / "images.npy"),
    "masks exchanged": lambda folder: (folder / "images.npy").replace(folder / "mask.npy"),
    "rows gone": lambda folder: (folder / "rows.parquet").unlink(),
    "rows cut": lambda folder: _cut(folder / "rows.parquet"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(people: PackedPeople, case: str) -> None:
    DAMAGE[case](people.folder)
    with pytest.raises(AnnotationError, match=r"prepare") as caught:
        PackedPeople.open(people.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pids", [[], [5], [5, 5], [7, -1, 5, 7, 0, -1], [3, 2, 1]])
def test_places_by_person(pids: list[int]) -> None:
    found = by_person(np.array(pids, np.int64))
    assert list(found) == sorted(set(pids))
    for pid, places in found.items():
        assert places.tolist() == [place for place, one in enumerate(pids) if one == pid]
