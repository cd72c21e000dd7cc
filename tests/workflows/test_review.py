"""Decisions by hand: what exports, trainings, studies, augmenting and preparing make of them; the library."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import augment_runner as runner
import numpy as np
import pytest
from annotate_runner import draw_folder, stubs
from tiny_study import ARMS, tiny

from reposer.annotation.annotate import annotate
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_people
from reposer.data.records import DECISIONS, Decision, decide, decisions_hash, kept_by_hand, read_decisions
from reposer.data.synthetic.people import GeneratedPeople
from reposer.errors import UserError
from reposer.generation.augmentation import AugmentOptions
from reposer.generation.forgetting import forget
from reposer.generation.lineage import set_faults
from reposer.generation.set_exports import export_set
from reposer.storage.manifest import read_rows
from reposer.studies.plan import SET, StudyPlan
from reposer.workflows.review import (
    ANNOTATED,
    AUGMENTED,
    EVALUATION,
    STUDY,
    TRAINING,
    Library,
    PictureSet,
    Shown,
    Wanted,
)

HASH, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runner.prepare_drawn(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "whole"
    runner.write(prepared, out, 2)
    return out


@pytest.fixture
def augmented(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def by_id(library: Library, kind: str) -> str:
    return next(place.id for place in library.places() if place.kind == kind)


def test_a_decision_is_about_one_picture_and_can_be_taken_back(tmp_path: Path) -> None:
    decide(tmp_path, {"a.png": Decision(HASH, False), "b/c.png": Decision(HASH, True)})
    names, digests = ["a.png", "a.png", "a.png", "b/c.png", "d.png"], [HASH, OTHER, "", HASH, HASH]
    kept = kept_by_hand(tmp_path, names, digests, [True, True, True, False, False])
    assert kept.tolist() == [False, True, False, True, False]
    before = decisions_hash(tmp_path)
    assert decide(tmp_path, {"a.png": None}).keys() == {"b/c.png"}
    assert decisions_hash(tmp_path) not in ("", before)
    decide(tmp_path, {"b/c.png": None})
    assert decisions_hash(tmp_path) == decisions_hash(tmp_path / "nowhere") == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no JSON object"),
        ('{"decisions": {}}', "'schema_version' is missing"),
        ('{"schema_version": 2, "decisions": {}}', "another version"),
        ('{"schema_version": 1, "decisions": []}', "wrong kind"),
        ('{"schema_version": 1, "decisions": {"../a": {}}}', "'..'"),
        (
            '{"schema_version": 1, "decisions": {"a.png": {"sha256": "x", "decision": "keep"}}}',
            "a.png: sha256",
        ),
        (
            f'{{"schema_version": 1, "decisions": {{"a.png": {{"sha256": "{HASH}", "decision": "dorp"}}}}}}',
            "drop?",
        ),
        (
            f'{{"schema_version": 1, "decisions": {{"a.png": {{"sha256": "{HASH}", "decision": 1}}}}}}',
            "a.png",
        ),
        (f'{{"schema_version": 1, "decisions": {{"a.png": {{"sha256": "{HASH}"}}}}}}', "decision"),
    ],
)
def test_a_damaged_file_of_decisions_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / DECISIONS).write_text(text)
    with pytest.raises(UserError, match=DECISIONS) as told:
        read_decisions(tmp_path)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError):
        decide(tmp_path, {"a.png": None})
    assert (tmp_path / DECISIONS).read_text() == text


def test_decisions_are_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / DECISIONS).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError):
        decide(tmp_path / "set", {"a.png": Decision(HASH, True)})
    assert not (tmp_path / "elsewhere.json").exists()


def test_exports_and_trainings_leave_out_what_was_dropped(
    prepared: Path, augmented: Path, tmp_path: Path
) -> None:
    people = PackedPeople.open(prepared / "packed")
    whole = GeneratedPeople.open(augmented, people)
    assert whole.kept.all()
    library = Library(augmented)
    shown = library.set(by_id(library, AUGMENTED))
    gone = [1, 4]
    shown.decide(gone, "drop")
    assert [not kept for kept in shown.decided()] == [row in gone for row in range(len(shown.pictures))]
    less = GeneratedPeople.open(augmented, people)
    assert np.flatnonzero(~less.kept).tolist() == gone
    assert less.content_hash != whole.content_hash  # a training that was started with all does not go on
    assert any(DECISIONS in note for note in less.notes)
    export_set(augmented, tmp_path / "out", "list")
    with (tmp_path / "out" / "train.csv").open() as file:
        exported = {row["path"] for row in csv.DictReader(file) if row["synthetic"] == "1"}
    names = [shown.pictures[row].file for row in range(len(shown.pictures)) if row not in gone]
    assert exported == {f"images/{name}" for name in names}
    assert set_faults(augmented) == []
    shown.decide(gone, "undo")
    assert GeneratedPeople.open(augmented, people).content_hash == whole.content_hash


def test_a_person_is_forgotten_with_the_decisions_about_them(augmented: Path) -> None:
    rows = read_rows(augmented).to_pylist()
    decide(augmented, {row["file"]: Decision(row["sha256"], False) for row in rows})
    forget(augmented, 2)
    left = read_rows(augmented)["file"].to_pylist()
    assert read_decisions(augmented).keys() == set(left) < {row["file"] for row in rows}
    assert set_faults(augmented) == []


def test_augmenting_leaves_out_dropped_real_images(prepared: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(prepared.parent / "raw", tmp_path / "raw"))
    people = PackedPeople.open(prepared / "packed")
    gone = next(name for name, split in zip(people.names, people.splits, strict=True) if split == "train")
    digest = people.sha256[people.index(gone)]
    decide(raw, {f"bounding_box_train/{gone}": Decision(digest, False)})
    options = AugmentOptions(factor=2, background="donor")
    report = runner.augmented(runner.stub_model(), prepared, tmp_path / "set", options, images=raw)
    rows = read_rows(tmp_path / "set").to_pylist()
    assert rows
    assert gone not in {row[side] for row in rows for side in ("source", "donor")}
    assert not (tmp_path / "set" / "real" / gone).exists()
    assert any("1 images were dropped by hand" in note for note in report.notes)


def test_preparing_leaves_out_and_lists_dropped_images(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "people", 12)
    annotate(folder, None, stubs)
    library = Library(folder)
    shown = library.set(by_id(library, ANNOTATED))
    assert (len(shown.pictures), shown.pictures[0].person) == (12, "0001")
    assert shown.pictures[0].keypoints is not None
    assert shown.pictures[0].keypoints[-1] is None
    assert shown.image(0) == (folder / shown.pictures[0].file).read_bytes()
    assert shown.map(0) == (folder / "parsing" / shown.pictures[0].file).read_bytes()
    shown.decide([0], "drop")
    report = prepare_people("folders", folder, tmp_path / "prepared", pairs="parsing", size=(40, 24))
    gone = shown.pictures[0].file
    assert report.problems["dropped-by-hand"] == 1
    assert gone in (tmp_path / "prepared" / "problems.csv").read_text()
    assert len(PackedPeople.open(tmp_path / "prepared" / "packed").names) == 11
    for pairs in ("pairs_train.csv", "pairs_val.csv"):
        assert gone.replace("/", "_") not in (tmp_path / "prepared" / pairs).read_text()
    shown.decide(list(range(12)), "drop")
    with pytest.raises(UserError, match="every image was dropped by hand"):
        prepare_people("folders", folder, tmp_path / "none", pairs="parsing", size=(40, 24))


def test_a_study_trains_anew_where_pictures_were_dropped(prepared: Path, tmp_path: Path) -> None:
    study = tiny(prepared, arms=(ARMS[0], ARMS[1]), controls=(), seeds=(0,))
    before = StudyPlan(study, tmp_path)
    augmented = before.cells[1].augmented
    assert augmented is not None
    place = before.cache.folder(augmented) / SET
    place.mkdir(parents=True)
    decide(place, {"a.png": Decision(HASH, False)})
    after = StudyPlan(study, tmp_path)
    assert after.cells[1].training.key != before.cells[1].training.key
    assert after.cells[0].training.key == before.cells[0].training.key  # of real images alone
    assert after.cells[1].augmented == augmented  # the pictures stay


def test_the_library_finds_what_can_be_looked_at(augmented: Path, tmp_path: Path) -> None:
    for folder, file in (
        ("runs/a", "metrics.jsonl"),
        ("runs/a", "config.json"),
        ("runs/a/evaluation", "image_quality.json"),
        ("study/stages/training-1/run", "config.json"),
        ("study/stages/training-1/run", "metrics.jsonl"),
        ("study/stages/training-1", "done.json"),
        ("study/stages/training-2/run", "config.json"),  # not finished
        ("study/stages/training-2/run", "metrics.jsonl"),
        (".hidden/run", "config.json"),
        (".hidden/run", "metrics.jsonl"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / file).write_text("{}")
    (tmp_path / "link").symlink_to(augmented)
    found = {(place.title, place.kind) for place in Library(tmp_path).places()}
    assert found == {
        ("set", AUGMENTED),
        ("runs/a", TRAINING),
        ("runs/a/evaluation", EVALUATION),
        ("study", STUDY),
        ("study/stages/training-1/run", TRAINING),
    }
    with pytest.raises(UserError, match="no such folder any more"):
        Library(tmp_path).place("../set")


def test_pictures_are_found_by_person_camera_score_and_state(augmented: Path) -> None:
    library = Library(augmented)
    shown = library.set(by_id(library, AUGMENTED))
    rows = read_rows(augmented).to_pylist()
    wanted = Wanted(person="3", camera="2")
    page = shown.page(wanted)
    assert [one["file"] for one in page["rows"]] == [
        r["file"] for r in rows if (r["pid"], r["camid"]) == (3, 2)
    ]
    assert page["people"] == sorted({str(row["pid"]) for row in rows}, key=int)
    assert page["fitting"] == len(page["rows"]) < page["pictures"] == len(rows)
    scored = type(shown)(shown.kind, shown.folder, _with_scores(shown.pictures), shown.inside)
    page = scored.page(Wanted(score="sharpness", low=2, high=5, descending=True))
    assert [one["scores"]["sharpness"] for one in page["rows"]] == [5, 4, 3, 2]
    assert page["range"] == [1, len(rows) - 1]  # one has no score
    assert scored.page(Wanted(score="sharpness", low=math.nan))["fitting"] == 0
    with pytest.raises(UserError, match="score sharpnes: unknown"):
        scored.page(Wanted(score="sharpnes"))
    shown.decide([0], "drop")
    shown.decide([1], "keep")
    for state, count in (
        ("dropped", 1),
        ("by hand", 2),
        ("undecided", len(rows) - 2),
        ("kept", len(rows) - 1),
    ):
        assert shown.page(Wanted(state=state))["fitting"] == count
    assert len(shown.page(Wanted(start=2, count=3))["rows"]) == 3
    with pytest.raises(UserError, match="state"):
        Wanted(state="keptt")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("scores", [(1.0, None, 3.0), (None, 2.0, None, -1.0, 5.0), (None, None), (2.0, 2.0)])
def test_pictures_without_a_score_come_last_in_both_directions(tmp_path, scores, descending) -> None:
    pictures = tuple(
        Shown(f"{i}.jpg", "", "1", "1", {} if s is None else {"s": s}, True, "", {}, (), None, None, None)
        for i, s in enumerate(scores)
    )
    pictures += (replace(pictures[0], file="first.jpg", scores={"s": 0.5}),)
    page = PictureSet("augmented set", tmp_path, pictures, "").page(Wanted(score="s", descending=descending))
    shown = [row["scores"].get("s") for row in page["rows"]]
    known = sorted((s for s in (*scores, 0.5) if s is not None), reverse=descending)
    assert shown == known + [None] * scores.count(None)
    without = [row["file"] for row in page["rows"] if not row["scores"]]
    assert without == sorted(without)


def _with_scores(pictures):
    return tuple(replace(one, scores={"sharpness": float(i)} if i else {}) for i, one in enumerate(pictures))


def test_a_picture_that_changed_is_not_shown(augmented: Path) -> None:
    library = Library(augmented)
    shown = library.set(by_id(library, AUGMENTED))
    (augmented / "images" / shown.pictures[0].file).write_bytes(b"another")
    with pytest.raises(UserError, match="changed since the set was made"):
        shown.image(0)
    for row in (-1, len(shown.pictures)):
        with pytest.raises(UserError, match="load the page again"):
            shown.image(row)


def test_an_unfinished_or_damaged_set_is_one_line(augmented: Path) -> None:
    library = Library(augmented)
    identity = by_id(library, AUGMENTED)
    job = json.loads((augmented / "job.json").read_text())
    (augmented / "job.json").write_text(json.dumps(job | {"items": 10_000}))
    with pytest.raises(UserError, match="shards are not there"):
        library.set(identity)


def test_a_set_that_is_removed_while_its_page_is_open_is_one_line(augmented: Path) -> None:
    library = Library(augmented.parent)
    identity = by_id(library, AUGMENTED)
    assert library.set(identity).pictures
    shutil.rmtree(augmented)
    with pytest.raises(UserError, match="no such folder any more"):
        library.set(identity)


def test_people_are_sorted_whatever_their_folders_are_called(tmp_path: Path) -> None:
    names = ["--5", "-", "10", "9", "٣", "³", "1" * 200, "x"]
    shown = Shown("a.jpg", HASH, "", "", {}, True, "", {}, (), None, None, None)
    pictures = tuple(replace(shown, person=name) for name in names)
    page = PictureSet(ANNOTATED, tmp_path, pictures, "").page(Wanted())
    assert page["people"] == ["9", "10", *sorted({*names} - {"9", "10"})]
