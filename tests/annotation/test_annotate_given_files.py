"""The user's own masks and keypoints: what changes in them between two calls is noticed, and only that."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from annotate_runner import StubParser, draw_folder, tree
from PIL import Image

from reposer.annotation import journal
from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import Annotators
from reposer.annotation.faults import annotation_faults
from reposer.annotation.keypoints import KeypointFiles
from reposer.annotation.person_mask import FolderMasks
from reposer.data.keypoints import read_keypoints_csv, write_keypoints_csv
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError

SIZE = (40, 24)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(journal, "SHARD_ITEMS", 2)


@pytest.fixture
def people(tmp_path) -> Path:
    return draw_folder(tmp_path / "people", 6, (SIZE,), people=1)


def stem(number: int) -> str:
    return f"0001/{number:04d}_c{number % 2 + 1}"


def put_mask(folder: Path, number: int, rows: int) -> None:
    place = folder / f"{stem(number)}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SIZE, bool)
    mask[:rows, 4:20] = True
    Image.fromarray(mask).save(place)


def put_pose(folder: Path, number: int, x: float, kind: str) -> None:
    place = folder / (f"{stem(number)}_keypoints.json" if kind != "pidm" else f"{stem(number)}.txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pidm":
        place.write_text("".join(f"{x} {joint}\n" for joint in range(18)))
    else:
        points = [value for joint in range(18) for value in (x, joint, 1)]
        place.write_text(json.dumps({"people": [{"pose_keypoints_2d": points}]}))


def run(people: Path, masks: Path | None, keypoints: tuple[str, Path] | None = None):
    def opened() -> Annotators:
        files = KeypointFiles(*keypoints) if keypoints else None
        return Annotators(StubParser(), FolderMasks(masks) if masks else None, files)

    return annotate(people, None, opened, how=AnnotateOptions(batch_size=2))


def read_rows(people: Path) -> set[str]:
    return {row["file"] for row in journal.read_book(people / journal.BOOK).to_pylist()}


def test_a_mask_that_changes_comes_goes_or_breaks(people, tmp_path):
    masks = tmp_path / "masks"
    for number in range(5):  # the sixth image has none
        put_mask(masks, number, 30)
    assert run(people, masks).rules == {"missing-mask": 1}
    assert run(people, masks).work.written == 0

    put_mask(masks, 0, 20)
    report = run(people, masks)
    assert report.work.written == 2  # its shard
    assert report.work.notes == [
        "0001/0000_c1.png and 1 more are annotated again: your own mask or keypoint file of "
        "0001/0000_c1.png has changed"
    ]
    assert np.array(Image.open(people / f"mask/{stem(0)}.png")).sum() == 20 * 16

    put_mask(masks, 5, 10)  # comes
    report = run(people, masks)
    assert (report.work.written, report.rules) == (2, {})
    assert np.array(Image.open(people / f"mask/{stem(5)}.png")).sum() == 10 * 16

    (masks / f"{stem(2)}.png").unlink()  # goes
    report = run(people, masks)
    assert (report.work.written, report.rules) == (2, {"missing-mask": 1})
    assert not (people / f"mask/{stem(2)}.png").exists()

    (masks / f"{stem(4)}.png").write_bytes(b"broken")
    report = run(people, masks)
    assert (report.work.written, report.rules) == (2, {"bad-mask": 1, "missing-mask": 1})
    assert run(people, masks).work.written == 0


def test_a_touched_or_copied_folder_is_the_same(people, tmp_path):
    masks = tmp_path / "masks"
    for number in range(6):
        put_mask(masks, number, 30)
    run(people, masks)
    before = tree(people)
    os.utime(masks / f"{stem(0)}.png", (1, 1))
    (masks / "0001/stray.png").write_bytes(b"of no image")
    assert run(people, masks).work.written == 0
    assert tree(people) == before


def test_a_file_that_shadows_another_is_noticed(people, tmp_path):
    """a/b.png is looked for before a_b.png."""
    masks = tmp_path / "masks"
    for number in range(6):
        put_mask(masks, number, 30)
        shutil.move(masks / f"{stem(number)}.png", masks / f"{stem(number).replace('/', '_')}.png")
    assert run(people, masks).rules == {}
    put_mask(masks, 3, 15)
    assert run(people, masks).work.written == 2
    assert np.array(Image.open(people / f"mask/{stem(3)}.png")).sum() == 15 * 16


@pytest.mark.parametrize("kind", ["openpose", "viton", "pidm"])
def test_keypoint_files_that_change(people, tmp_path, kind):
    folder = tmp_path / "poses"
    for number in range(5):
        put_pose(folder, number, 7.0, kind)
    assert run(people, None, (kind, folder)).rules == {"missing-keypoints": 1}
    assert run(people, None, (kind, folder)).work.written == 0
    put_pose(folder, 2, 9.0, kind)
    put_pose(folder, 5, 11.0, kind)
    report = run(people, None, (kind, folder))
    assert (report.work.written, report.rules) == (4, {})
    poses, _ = read_keypoints_csv(people / "keypoints.csv", {})
    assert [poses[f"{stem(n)}.png"][0, 0] for n in range(6)] == [7, 7, 9, 7, 7, 11]


def test_a_table_that_changes_is_another_job(people, tmp_path):
    table = tmp_path / "poses.csv"
    pose = np.full((18, 2), 7, np.float32)
    write_keypoints_csv(table, {f"{stem(n)}.png": pose for n in range(6)})
    run(people, None, ("colon", table))
    before = tree(people)
    write_keypoints_csv(table, {f"{stem(n)}.png": pose + n for n in range(6)})
    with pytest.raises(UserError, match=r"belongs to another job, these differ: keypoints\.sha256"):
        run(people, None, ("colon", table))
    assert tree(people) == before


def test_a_journal_of_another_version_is_made_again(people, tmp_path, monkeypatch):
    from reposer.annotation import annotate as module

    masks = tmp_path / "masks"
    put_mask(masks, 0, 30)
    with monkeypatch.context() as patch:
        patch.setattr(module, "CROP_COLUMNS", tuple(c for c in module.CROP_COLUMNS if c[0] != journal.GIVEN))
        run(people, masks)
    report = run(people, masks)
    assert report.work.written == 6
    assert "is of another version" in report.work.notes[0]


def test_folders_of_annotations_among_the_images_hold_no_people(people):
    """Given ones say nothing, others that are called like annotations are listed; the check agrees."""
    for number in range(6):
        put_mask(people / "silhouette_maps", number, 30)
        put_pose(people / "joints", number, 5, "openpose")
        put_mask(people / "schp", number, 30)
    shutil.copytree(people / "schp", people / "train" / "Masks")
    draw_folder(people / "joints" / "rendered", 2, (SIZE,))
    picture = people / "train" / "0009" / "0009_c1.png"
    draw_folder(people / "train", 1, (SIZE,), people=1)
    (people / "train" / "0001").rename(picture.parent)
    given = people / "silhouette_maps", ("openpose", people / "joints")
    report = run(people, *given)
    rows = read_rows(people)
    assert sorted(rows) == sorted([*(f"{stem(n)}.png" for n in range(6)), "train/0009/0000_c1.png"])
    assert report.rules == {"unread-folder": 2, "missing-mask": 1, "missing-keypoints": 1}
    listed = (people / "annotation" / "problems.csv").read_text()
    assert "\nschp,,folder," in listed
    assert "\ntrain/Masks,,folder," in listed
    assert annotation_faults(people) == []
    assert run(people, *given).work.written == 0

    put_mask(people / "silhouette_maps" / "more", 7, 30)
    assert annotation_faults(people) == []
    draw_folder(people / "0002", 1, (SIZE,))
    (fault,) = annotation_faults(people)
    assert fault.startswith("0002/0001/0000_c1.png: the image is in no row")


def test_a_folder_of_nothing_but_annotations_is_said(people, tmp_path):
    (people / "0001").rename(people / "masks")
    with pytest.raises(UserError, match=r"holds no image of people \(masks, folder: looks like annotations"):
        run(people, None)


def test_the_users_masks_are_doubted_as_prepare_doubts_them(people, tmp_path):
    """All inverted, one of them not; the same files under the same rules of ``prepare``."""
    masks = tmp_path / "masks"
    person = np.zeros(SIZE, bool)
    person[8:32, 6:18] = True
    for number in range(6):
        put_mask(masks, number, 30)
        Image.fromarray(person if number == 3 else ~person).save(masks / f"{stem(number)}.png")
    report = run(people, masks)
    assert report.rules == {"mask-inverted": 1, "odd-mask": 1}
    told = [note for note in report.work.notes if "invert these files" in note]
    assert len(told) == 1
    assert told[0].startswith(f"{masks}, mask: 6 masks have people at the border")
    assert told[0] in str(report)
    lines = (people / "annotation/problems.csv").read_text()
    assert f'{masks}/{stem(3)}.png,,mask,odd-mask,"has the person in the middle, but most' in lines
    assert annotation_faults(people) == []
    before = tree(people)
    assert run(people, masks).rules == report.rules  # nothing is made again
    assert tree(people) == before

    found = prepare_people("folders", people, tmp_path / "out", size=SIZE, pairs="parsing")
    assert found.problems["mask-inverted"] == 1
    assert found.problems["odd-mask"] == 1

    for number in range(6):
        Image.fromarray(person).save(masks / f"{stem(number)}.png")
    assert run(people, masks).rules == {}


@pytest.mark.parametrize("made", ["masks", "keypoints", "both", "maps"])
def test_whatever_is_not_made_is_no_fault(people, tmp_path, made):
    for number in range(6):
        put_mask(tmp_path / "masks", number, 30)
        put_pose(tmp_path / "poses", number, 5.0 + number, "openpose")
    masks = FolderMasks(tmp_path / "masks") if made in ("masks", "both") else None
    joints = KeypointFiles("openpose", tmp_path / "poses") if made in ("keypoints", "both") else None
    parser = StubParser() if made == "maps" else None
    report = annotate(
        people, None, lambda: Annotators(parser, masks, joints), how=AnnotateOptions(batch_size=2)
    )
    assert (report.annotated, report.rules) == (6, {})
    assert annotation_faults(people) == []
    gone = people / f"mask/{stem(2)}.png"
    if masks is not None:
        gone.unlink()
        assert [fault.split(":")[0] for fault in annotation_faults(people)] == [f"mask/{stem(2)}.png"]


def test_a_folder_that_no_path_can_name_costs_only_itself(people, tmp_path):
    for name in ("a:b", "CON", "blank "):
        shutil.copytree(people / "0001", people / name)
    masks = tmp_path / "masks"
    for number in range(6):
        put_mask(masks, number, 30)
    report = run(people, masks)
    assert (report.annotated, report.rules) == (6, {"bad-path": 3})
    assert annotation_faults(people) == []
