"""Posing by hand: pictures equal those of the generator itself; photos and joints are refused in one line."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from annotate_runner import draw_folder, stubs
from bad_inputs import encoded, picture
from page_studio import page_studio
from PIL import Image

from reposer.annotation.annotate import annotate
from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.makers import choose_cuts
from reposer.data.orientation import ORIENTATIONS
from reposer.data.parsing import PALETTE
from reposer.errors import UserError
from reposer.generation.pictures import is_marked
from reposer.generation.reposing import frame_of
from reposer.generation.targets import PoseTarget, canonical_pose, place
from reposer.workflows import studio as module
from reposer.workflows.review import Library
from reposer.workflows.studio import MOST_OF_A_PHOTO, MOST_PEOPLE, RENDERED, Studio, open_studio, to_json


@pytest.fixture(scope="module")
def studio() -> Studio:
    return page_studio()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def a_photo(width: int = 60, height: int = 120) -> bytes:
    return encoded(picture(width=width, height=height), "PNG")


def test_a_picture_is_the_generators_own(studio: Studio) -> None:
    first = studio.subject(1)
    for name in ("front", "left"):
        data = studio.picture(1, first.described()["poses"][name], None, "source")
        pose = place(canonical_pose(name), first.person)
        target = PoseTarget(name, pose, studio.model.size)
        expected = studio.model.transfer(first.person, target.for_source(first.person), "source")
        assert np.array_equal(pixels(data), expected)
        assert is_marked(data)
    front, left = (
        studio.picture(1, first.described()["poses"][n], None, "source") for n in ("front", "left")
    )
    assert (pixels(front) != pixels(left)).mean() > 0.05


def test_what_the_page_is_told(studio: Studio) -> None:
    told = studio.described()
    assert told["canonical"] == list(ORIENTATIONS)
    assert told["size"] == [64, 128]
    assert {one["kind"] for one in told["people"]} >= {RENDERED}
    joints = told["people"][0]["joints"]
    assert len(joints) == 18
    assert all(joint is None or len(joint) == 2 for joint in joints)
    shown = Image.open(io.BytesIO(studio.map(1)))
    assert shown.mode == "P"
    assert np.array_equal(np.asarray(shown), studio.subject(1).person.parsing)
    assert np.array_equal(np.asarray(shown.getpalette()[:60]).reshape(20, 3), PALETTE)
    assert np.array_equal(pixels(studio.image(1)), studio.subject(1).person.image)


def test_corrected_joints_count_as_the_persons(studio: Studio) -> None:
    """Without the joints of an arm nothing can be carried along it: the picture is another one."""
    subject = studio.subject(1)
    target = subject.described()["poses"]["front"]
    own = to_json(subject.person.keypoints)
    same = studio.picture(1, target, own, "source")
    assert same == studio.picture(1, target, None, "source")
    moved = [None if at is None else [at[0] + 6, at[1] + 6] for at in own]
    assert (pixels(studio.picture(1, target, moved, "source")) != pixels(same)).any()


@pytest.mark.parametrize(
    ("joints", "words"),
    [
        ([None] * 17, "17 joints: 18 are wanted"),
        ([None] * 18, "no keypoint lies inside"),
        ([[5.0, 5.0, 5.0], *[None] * 17], "nose: is no place"),
        ([[float("nan"), 5.0], *[None] * 17], "nose: is no place"),
        ([[1e9, 5.0], *[None] * 17], "nose: is no place"),
        ([[100.0, 5.0], *[None] * 17], "no keypoint lies inside"),
    ],
)
def test_impossible_poses_are_one_line(studio: Studio, joints: list, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        studio.picture(1, joints, None, "source")
    assert "\n" not in str(told.value)


def test_backgrounds(studio: Studio) -> None:
    target = studio.subject(1).described()["poses"]["left"]
    assert studio.picture(1, target, None, "source") != studio.picture(1, target, None, "generated")
    for background in ("donor", "blue"):
        with pytest.raises(UserError, match="background"):
            studio.picture(1, target, None, background)


def test_a_photo_is_annotated_and_posed(studio: Studio) -> None:
    (subject,) = studio.add_photo(a_photo())
    assert subject.person.image.shape == (128, 64, 3)
    assert subject.person.original_size == (120, 60)
    assert set(np.unique(subject.person.parsing)) > {0}
    joints = subject.described()["joints"]
    assert joints[0] == pytest.approx(
        [0.04, 0.05], abs=0.01
    )  # of the stub: the first corner, in the model's pixels
    assert joints[17] is None
    assert studio.picture(subject.number, subject.described()["poses"]["back"], None, "source")


def test_a_large_photo_is_made_smaller_and_its_people_are_cut_out(studio: Studio, monkeypatch) -> None:
    monkeypatch.setattr(studio, "detector", object())
    boxes = np.array([[10.0 + 30 * i, 10, 38 + 30 * i, 80 + i] for i in range(12)])
    monkeypatch.setattr(module, "find_people", lambda _, pixels: (boxes, np.full(12, 0.9)))
    added = studio.add_photo(encoded(picture(width=400, height=100), "PNG"))
    assert len(added) == MOST_OF_A_PHOTO
    areas = [one.person.original_size[0] * one.person.original_size[1] for one in added]
    assert areas == sorted(areas, reverse=True)
    monkeypatch.setattr(module, "find_people", lambda _, pixels: (np.zeros((0, 4)), np.zeros(0)))
    (alone,) = studio.add_photo(a_photo())
    assert alone.notes[0].startswith("nobody was found in the photo; all of it counts")
    assert added[0].notes[0] == "4 smaller people of the photo are left out"
    monkeypatch.setattr(studio, "detector", None)
    (large,) = studio.add_photo(encoded(picture(width=1500, height=1600), "JPEG"))
    assert large.person.original_size[0] * large.person.original_size[1] <= 1_001_000


def test_people_of_a_photo_are_posed_in_their_proportions_and_nothing_is_shown_beyond_it(
    studio: Studio, monkeypatch
) -> None:
    """Half a person: the frame of 2:1 reaches below the photo, and none of it is squeezed into the crop."""
    photo = picture(width=100, height=100)
    monkeypatch.setattr(studio, "detector", object())
    box = np.array([[20.0, 10, 90, 100]])
    monkeypatch.setattr(module, "find_people", lambda _, pixels: (box, np.ones(1)))
    (subject,) = studio.add_photo(encoded(photo, "PNG"))
    ((cut,), _) = choose_cuts(box, np.ones(1), (100, 100))
    left, top, right, bottom = frame_of(cut.box)
    assert (bottom - top, bottom) == (2 * (right - left), top + 2 * (right - left))
    assert bottom > 130
    shown = pixels(studio.image(subject.number))
    beyond = np.flatnonzero((shown == shown[-1]).all((1, 2)))[0]
    assert beyond / len(shown) == pytest.approx((100 - top) / (bottom - top), abs=0.02)
    described = subject.described()
    assert not any(joint and joint[1] > 128 * beyond / len(shown) + 1 for joint in described["joints"])
    posed = pixels(studio.picture(subject.number, described["joints"], None, "source"))
    assert posed.shape == shown.shape
    assert (posed[beyond:] == shown[-1, -1]).all()
    assert not (posed[:beyond] == shown[-1, -1]).all((1, 2)).any()
    squeezed = place(canonical_pose("front"), subject.person)  # all of a body into the half that is shown
    assert not np.isnan(squeezed).any()
    assert described["poses"]["front"][10] is None, "the legs leave the frame"


def test_the_oldest_photos_go_and_the_samples_stay(studio: Studio, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_PEOPLE", 3)
    numbers = [studio.add_photo(a_photo())[0].number for _ in range(5)]
    assert [number in studio.subjects for number in numbers] == [False, False, True, True, True]
    assert 1 in studio.subjects
    with pytest.raises(UserError, match="not here any more"):
        studio.image(numbers[0])
    assert MOST_PEOPLE > 8


def test_people_of_an_annotated_folder(studio: Studio, tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "people", 2)
    annotate(folder, None, stubs)
    library = Library(folder)
    (place,) = library.places()
    shown = library.set(place.id)
    subject = studio.add_files(*shown.files(1))
    assert subject.name == Path(shown.pictures[1].file).name
    assert np.isnan(subject.person.keypoints[17]).all()
    assert not np.isnan(subject.person.keypoints[:17]).any()
    (folder / shown.pictures[1].file).write_bytes(b"another")
    with pytest.raises(UserError, match="changed since"):
        shown.files(1)


def test_annotators_are_opened_for_the_first_photo_and_their_lack_is_the_reason(
    studio: Studio, monkeypatch
) -> None:
    opened = []

    def open_them(self: AnnotatorChoice) -> Annotators:
        opened.append(self)
        if len(opened) == 1:
            raise UserError("weights are not here", "get them")
        return stubs()

    monkeypatch.setattr(AnnotatorChoice, "open", open_them)
    bare = Studio(studio.model, choice=AnnotatorChoice())
    assert bare.described()["photos"] is True
    assert not opened
    with pytest.raises(UserError, match="photos cannot be annotated yet: weights are not here: get them"):
        bare.add_photo(a_photo())
    assert bare.add_photo(a_photo())
    assert bare.add_photo(a_photo())
    assert len(opened) == 2
    closed = Studio(studio.model)
    assert closed.described()["photos"] is False
    with pytest.raises(UserError, match="photos cannot be annotated here"):
        closed.add_photo(a_photo())


def test_named_annotators_must_open_at_the_start(monkeypatch) -> None:
    def refuse(self: AnnotatorChoice) -> None:
        raise UserError("weights are not here", "get them")

    monkeypatch.setattr(AnnotatorChoice, "open", refuse)
    monkeypatch.setattr(module.Studio, "add_samples", lambda self: None)
    assert open_studio(threads=1, device="cpu").annotators is None
    with pytest.raises(UserError, match="weights are not here"):
        open_studio(choice=AnnotatorChoice(parser="schp_lip"), at_once=True, threads=1, device="cpu")


def test_a_picture_takes_less_than_a_second(studio: Studio) -> None:
    target = studio.subject(1).described()["poses"]["right"]
    studio.picture(1, target, None, "source")
    began = time.perf_counter()
    for _ in range(3):
        studio.picture(1, target, None, "source")
    assert (time.perf_counter() - began) / 3 < 1
