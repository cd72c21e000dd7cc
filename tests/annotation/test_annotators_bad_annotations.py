"""A hundred malformed annotation files: each listed or handled by rule, every image annotated."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from annotate_runner import StubParser, draw_folder
from PIL import Image

from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.keypoints import KeypointFiles
from reposer.annotation.person_mask import FolderMasks
from reposer.data.keypoints import HEADER, read_keypoints_csv
from reposer.data.records import AnnotationError
from reposer.errors import UserError

SIZE = (40, 24)
GOOD = [float(v) for joint in range(18) for v in (joint % 24, 2 * joint, 0.9)]


def openpose(values: object = GOOD, **more: object) -> bytes:
    return json.dumps({"people": [{"pose_keypoints_2d": values, **more}]}).encode()


def changed(place: int, value: object) -> list:
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


BAD_JSON = [
    *(
        b"",
        b"\0" * 50,
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"\xff\xfe{}",
        b"{'people': []}",
        b"[" * 10_000,
    ),
    *(b'{"people": 3}', b'{"people": [1]}', b'{"people": [null]}', b'{"people": [{}]}', b'{"persons": []}'),
    *(openpose(v) for v in (None, 3, "text", [], [1], GOOD[:-1], [*GOOD, 1.0], {}, [[*GOOD]], [None] * 54)),
    *(openpose(changed(i, v)) for i in (0, 31, 53) for v in (None, "1", True, [], {}, 1e9, -1e9)),
    *(openpose(changed(i, float(v))) for i in (1, 2) for v in ("nan", "inf", "-inf")),
    openpose(changed(0, 24.0)),  # outside, by one pixel
    openpose(changed(1, 40.0)),
    openpose([1e300] * 54),
    b'{"people": [{"pose_keypoints_2d": [1e999' + b", 1" * 53 + b"]}]}",
]


def bad_masks(folder: Path, names: list[str]) -> int:
    """Writes an unusable mask for each name, of several kinds in turn; returns how many kinds."""
    rgb, gray = np.zeros((*SIZE, 3), np.uint8), np.arange(960, dtype=np.uint16).astype(np.uint8).reshape(SIZE)
    rgb[3, 3, 0] = 255  # a color; gray that is stored as RGB is a mask

    def image(array):
        return lambda path: Image.fromarray(array).save(path)

    kinds = [
        image(rgb),
        image(gray),
        image(np.zeros((24, 40), np.uint8)),
        image(np.zeros((3, 3), np.uint8)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a picture"),
        lambda path: path.symlink_to("/etc/hostname"),
        lambda path: (image(gray // 128 * 255)(path), path.write_bytes(path.read_bytes()[:60])),
        lambda path: np.save(path.with_suffix(".npy"), np.zeros(SIZE, np.float32)),
        lambda path: np.save(path.with_suffix(".npy"), np.zeros((*SIZE, 1), np.uint8)),
        lambda path: np.save(path.with_suffix(".npy"), np.full(SIZE, -1)),
        lambda path: path.with_suffix(".npy").write_bytes(b"\x93NUMPY" + bytes(40)),
        lambda path: np.save(path.with_suffix(".npy"), np.array([{}], object), allow_pickle=True),
    ]
    for i, name in enumerate(names):
        kinds[i % len(kinds)](folder / f"{name}.png")
    return len(kinds)


def problems(folder: Path) -> list[dict[str, str]]:
    with open(folder / "annotation/problems.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_hundred_malformed_files(tmp_path):
    count = len(BAD_JSON)
    folder = draw_folder(tmp_path / "people", count + 3, (SIZE,), people=1)
    names = sorted(path.stem for path in (folder / "0001").iterdir())
    poses, masks = tmp_path / "poses", tmp_path / "masks"
    poses.mkdir(), masks.mkdir()
    for name, data in zip(names, BAD_JSON, strict=False):
        (poses / f"0001_{name}_keypoints.json").write_bytes(data)
    (poses / f"0001_{names[count]}_keypoints.json").write_bytes(openpose())
    (poses / f"0001_{names[count + 1]}.json").write_bytes(b'{"people": []}')
    kinds = bad_masks(masks, [f"0001_{name}" for name in names[:count]])
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8) * 255).save(masks / f"0001_{names[count]}.png")
    assert count + kinds >= 60
    assert 2 * count >= 100

    def annotators() -> Annotators:
        return Annotators(StubParser(), FolderMasks(masks), KeypointFiles("openpose", poses))

    report = annotate(folder, None, annotators, how=AnnotateOptions(batch_size=7))
    assert report.annotated == count + 3
    assert len(list((folder / "parsing/0001").iterdir())) == count + 3
    assert [path.stem for path in (folder / "mask/0001").iterdir()] == [names[count]]
    kept, wrong = read_keypoints_csv(folder / "keypoints.csv", {})
    assert not wrong
    assert set(kept) == {f"0001/{name}.png" for name in names[count : count + 2]}
    assert report.rules == {
        "bad-keypoints": count,
        "missing-keypoints": 1,
        "bad-mask": count,
        "missing-mask": 2,
    }
    listed = problems(folder)
    assert sum(report.rules.values()) == len(listed)
    for name in names[:count]:
        told = {p["rule"] for p in listed if f"0001_{name}" in p["file"] or f"0001/{name}" in p["message"]}
        assert told == {"bad-keypoints", "bad-mask"}, name


def test_tables_keep_their_good_rows(tmp_path):
    folder = draw_folder(tmp_path / "people", 4, (SIZE,), people=1)
    names = [f"0001/{path.name}" for path in sorted((folder / "0001").iterdir())]
    ys, xs = [2 * j for j in range(18)], [j % 24 for j in range(18)]
    table = tmp_path / "k.csv"
    rows = [f"{names[0]}: {ys}: {xs}", f"{names[1].replace('/', '_')}: {ys}: {xs}"]
    rows += [f"{names[2].partition('/')[2]}: {xs}: {[*xs[:17], 99]}", "nonsense", f"{names[3]}: [1]: [2]"]
    table.write_text("\n".join([HEADER, *rows]))

    def annotators() -> Annotators:
        return Annotators(StubParser(), None, KeypointFiles("colon", table))

    report = annotate(folder, None, annotators)
    kept, _ = read_keypoints_csv(folder / "keypoints.csv", {})
    assert set(kept) == set(names[:2])
    assert report.rules == {"bad-keypoints": 3, "missing-keypoints": 1}
    messages = [p["message"] for p in problems(folder)]
    assert any("lies outside the image (24x40)" in message for message in messages)


@pytest.mark.parametrize("processes", [1, 2])
def test_one_row_is_not_the_pose_of_every_image_of_that_name(tmp_path, processes):
    folder = draw_folder(tmp_path / "people", 4, (SIZE,), people=2)
    for place in sorted(folder.iterdir()):
        for number, image in enumerate(sorted(place.iterdir())):
            image.rename(place / f"{number}.png")
    (folder / "0001" / "1.png").rename(folder / "0001" / "alone.png")
    ys, xs = [2 * j for j in range(1, 19)], [j % 24 for j in range(1, 19)]
    table = tmp_path / "k.csv"
    table.write_text("\n".join([HEADER, f"0.png: {ys}: {xs}", f"alone.png: {ys}: {xs}"]))
    choice = AnnotatorChoice("none", "none", f"colon:{table}")
    report = annotate(folder, None, choice.open, how=AnnotateOptions(processes=processes))
    assert set(read_keypoints_csv(folder / "keypoints.csv", {})[0]) == {"0001/alone.png"}
    assert report.rules == {"bad-keypoints": 2, "missing-keypoints": 1}


@pytest.mark.parametrize("content", [b"", b"name,x,y\n", b"\xff\xff", b"name:keypoints_x:keypoints_y\n"])
def test_a_table_with_another_header_stops_before_anything_is_made(tmp_path, content):
    folder = draw_folder(tmp_path / "people", 1)
    (tmp_path / "k.csv").write_bytes(content)
    for kind in ("colon", "comma"):
        choice = AnnotatorChoice("none", "none", f"{kind}:{tmp_path / 'k.csv'}")
        with pytest.raises(AnnotationError, match="header"):
            annotate(folder, None, choice.open)
    assert not (folder / "annotation").exists()


def test_what_is_not_there_is_said(tmp_path):
    for choice in ("openpose:nowhere", "colon:nowhere.csv"):
        with pytest.raises(UserError, match=r"nowhere.*: no such f"):
            AnnotatorChoice("none", "none", choice).open()
    with pytest.raises(UserError, match="unknown"):
        AnnotatorChoice("none", "none", "openpoze:nowhere").open()
    with pytest.raises(UserError, match="no such folder"):
        AnnotatorChoice("none", str(tmp_path / "nowhere")).open()


def test_a_folder_goes_on_with_what_it_was_begun_with():
    begun = {"parser": {"name": "schp_lip"}, "mask": {"name": "parsing"}, "keypoints": {"name": "none"}}
    one = AnnotatorChoice().continuing(begun)
    assert (one.parser, one.mask, one.keypoints) == ("schp_lip", "parsing", "none")
    own = AnnotatorChoice("rule", "selfie", "vitpose").continuing(begun)
    assert (own.parser, own.mask, own.keypoints) == ("rule", "selfie", "vitpose")  # what was said counts
    for strange in ({}, {"parser": None, "mask": {"name": 3}}, {"parser": {"name": "my"}, "mask": {}}):
        assert AnnotatorChoice().continuing(strange) == AnnotatorChoice()


@pytest.mark.parametrize("open_one", [AnnotatorChoice.open, AnnotatorChoice.open_detector])
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("foo", r"device foo: unknown: did you mean .* known: cpu, cuda, mps"),
        ("auto", "device auto: unknown"),
        ("cuda:99", "device cuda:99: unknown"),
        ("", "device '': unknown"),
        ("cuda", "device cuda: there is none on this machine: use device=cpu$"),
        ("mps", "device mps: there is none on this machine: use device=cpu$"),
    ],
)
def test_a_device_that_is_none_or_not_here_is_one_line(tmp_path, monkeypatch, open_one, device, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    choice = AnnotatorChoice("rule", str(tmp_path), "none", "maskrcnn=mine.pth", device=device)
    with pytest.raises(UserError, match=told):
        open_one(choice)
