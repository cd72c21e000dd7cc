"""`reposer repose` from photo to files, with people drawn in label colors and annotators that read them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import reposer
from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.interfaces import PERSON, AnnotatorInfo, Masks, Poses
from reposer.data.keypoints import JOINTS, middle_hip, scale_keypoints
from reposer.data.parsing import LIP_LABELS, PALETTE
from reposer.errors import UserError
from reposer.generation.pictures import is_marked, load_person
from reposer.generation.reposing import proportioned
from reposer.generation.targets import canonical_pose
from reposer.storage import outputs as storage
from reposer.storage.outputs import write_output
from reposer.workflows import photo_people as people
from reposer.workflows import repose as module
from reposer.workflows.repose import ReposeOptions, read_poses, repose_files

COLORS = PALETTE[: len(LIP_LABELS)].astype(int)
WALL = (250, 250, 250)
PARTS = (("hair", 0.0, 0.08), ("face", 0.08, 0.16), ("upper-clothes", 0.16, 0.5), ("pants", 0.5, 1.0))


def person(photo: np.ndarray, left: int, top: int, height: int) -> None:
    """Draw somebody of label colors, three times as tall as wide; what leaves the photo is cut off."""
    for name, start, end in PARTS:
        rows = slice(top + int(start * height), top + int(end * height))
        photo[rows, left : left + height // 3] = PALETTE[LIP_LABELS.index(name)]


def photo_of(*people: tuple[int, int, int], size: tuple[int, int] = (200, 350)) -> np.ndarray:
    photo = np.full((*size, 3), WALL, np.uint8)
    photo[::16] = (200, 205, 210)
    for one in people:
        person(photo, *one)
    return photo


def labels_of(pixels: np.ndarray) -> np.ndarray:
    """The label whose color is nearest, where one is near."""
    away = np.abs(pixels[..., None, :].astype(int) - COLORS[1:]).sum(-1)
    return np.where(away.min(-1) < 60, away.argmin(-1) + 1, 0).astype(np.uint8)


class Reads:
    """A detector, parser, masker and keypoint detector of such people."""

    info = AnnotatorInfo("fake")
    needs_keypoints = False

    def __call__(self, images, keypoints=None):
        return torch.from_numpy(np.stack([labels_of(one) for one in images.permute(0, 2, 3, 1).numpy()]))


class ReadMasks(Reads):
    def __call__(self, images, parsing=None):
        mask = super().__call__(images).numpy() > 0
        sources = tuple("network" if one.any() else "everything" for one in mask)
        return Masks(mask, sources, np.full(len(mask), -1))


class ReadJoints(Reads):
    def __call__(self, images):
        poses = []
        for parsing in super().__call__(images).numpy():
            rows, columns = (np.flatnonzero((parsing > 0).any(axis)) for axis in (1, 0))
            pants = np.flatnonzero((parsing == LIP_LABELS.index("pants")).any(1))
            shirt = np.flatnonzero((parsing == LIP_LABELS.index("upper-clothes")).any(1))
            pose = np.full((18, 2), np.nan, np.float32)
            if len(shirt):
                torso = (shirt[-1] - shirt[0]) / 0.95
                pose = canonical_pose("front") * torso + (columns.mean(), shirt[-1])
                pose[pose[:, 1] > rows[-1] + 2] = np.nan
            if not len(pants):
                pose[8:14] = np.nan
            poses.append(pose.astype(np.float32))
        keypoints = np.stack(poses)
        return Poses(
            keypoints, (~np.isnan(keypoints[..., 0])).astype(np.float32), np.ones(len(poses), np.int64)
        )


class Finds(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.empty(0))

    def forward(self, images):
        found = []
        for image in images:
            labels, _ = ndimage.label(labels_of((image * 255).byte().permute(1, 2, 0).numpy()) > 0)
            places = ndimage.find_objects(labels)
            boxes = [[x.start, y.start, x.stop, y.stop] for y, x in places if y.stop - y.start > 20]
            count = len(boxes)
            boxes = torch.tensor(boxes).float().view(count, 4)
            found.append(
                {"boxes": boxes, "scores": torch.full((count,), 0.9), "labels": torch.full((count,), PERSON)}
            )
        return found


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(AnnotatorChoice, "open", lambda self: Annotators(Reads(), ReadMasks(), ReadJoints()))
    monkeypatch.setattr(AnnotatorChoice, "open_detector", lambda self: (Finds(), AnnotatorInfo("fake")))


def save(path, photo):
    Image.fromarray(photo).save(path)
    return path


def test_two_people_in_two_poses_and_in_place(run, tmp_path):
    photo = photo_of((210, 30, 150), (40, 60, 120))
    place = save(tmp_path / "holiday.png", photo)
    out = tmp_path / "out"
    command = ("repose", place, "--pose", "front,left", "--out", out, "--in-place", "--threads", 1)
    code, printed, error = run(*command)
    assert code == 0, error
    assert "holiday.png: 2 people, from left to right" in printed
    assert "1 photos, 2 people, 6 pictures" in printed
    files = sorted(path.name for path in (out / "pictures" / "holiday").glob("[!.]*.png"))
    crops = [f"p0{number}_{pose}.png" for number in (1, 2) for pose in ("front", "left")]
    assert files == ["front.png", "left.png", *crops]
    record = json.loads((out / "repose.json").read_text())
    assert record["synthetic"] is True
    assert [row["person"] for row in record["pictures"]] == [1, 1, 2, 2, 0, 0]
    first = record["pictures"][0]
    assert first["box"][0] < 50  # the left one
    assert record["made_by"]["generator"] == "transport"
    for row in record["pictures"]:
        data = (out / row["file"]).read_bytes()
        assert is_marked(data)
        assert __import__("hashlib").sha256(data).hexdigest() == row["sha256"]
    whole = np.array(Image.open(out / "pictures" / "holiday" / "front.png"))
    assert whole.shape == photo.shape
    far = np.ones(photo.shape[:2], bool)
    for row in record["pictures"][:4]:
        left, top, right, bottom = row["frame"]
        far[max(top, 0) : bottom, max(left, 0) : right] = False
    assert far.sum() > 12_000
    assert (whole[far] == photo[far]).all()
    # a front that is re-posed to a front keeps the colors where they were
    shirt = whole[30 + 50, 210 + 25]
    assert np.abs(shirt.astype(int) - PALETTE[LIP_LABELS.index("upper-clothes")]).max() < 60
    side = np.array(Image.open(out / "pictures" / "holiday" / "left.png"))
    covered = [(labels_of(one[:, 200:300]) > 0).sum() for one in (side, photo)]
    assert covered[0] < 0.8 * covered[1]  # narrower
    assert Image.open(out / "contact_sheet.png").size[1] > 300
    assert run(*command)[0] == 0  # its own files are replaced


def test_who_is_cut_off_stays_as_tall_and_it_is_said(tmp_path):
    photo = photo_of((50, 50, 350), size=(200, 250))  # the photo ends at the hips
    (picture,) = reposer.repose(photo, pose="front")
    assert picture.person == 1
    assert any("not in the photo" in remark for remark in picture.remarks)
    hair = labels_of(picture.image) == LIP_LABELS.index("hair")
    was = labels_of(photo) == LIP_LABELS.index("hair")
    assert 0.6 < hair.any(1).sum() / was.any(1).sum() < 1.7
    assert picture.image.shape[0] <= 200


def test_nobody_and_bad_files_are_said_and_passed_over(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "more").mkdir()
    save(folder / "a.png", photo_of((100, 30, 150)))
    save(folder / "more" / "a.png", photo_of((120, 30, 150)))
    save(folder / "b.png", photo_of())
    (folder / "c.jpg").write_bytes(b"no picture")
    save(folder / "d.png", photo_of((20, 50, 48), (100, 30, 150)))
    code, printed, error = run("repose", folder, "--out", tmp_path / "out", "--threads", 1)
    assert code == 0, error
    assert "b.png: no person was found" in printed
    assert "c.jpg: " in printed
    assert "left out" in printed
    assert "d.png: a person of" in printed  # too small to be of use
    assert "3 photos, 3 people, 3 pictures" in printed
    record = json.loads((tmp_path / "out" / "repose.json").read_text())
    assert len({row["file"] for row in record["pictures"]}) == 3  # two photos are called a.png
    code, _, error = run("repose", folder / "b.png", "--out", tmp_path / "none", "--threads", 1)
    assert code == 1
    assert "nobody was found" in error
    code, _, error = run("repose", folder / "c.jpg", "--out", tmp_path / "none", "--threads", 1)
    assert code == 1
    assert "fault of ours" not in error
    with pytest.raises(UserError, match="no person was found"):
        reposer.repose(folder / "b.png")


@pytest.mark.slow
def test_poses_by_name_file_and_photo(run, tmp_path):
    photo = save(tmp_path / "photo.png", photo_of((100, 30, 150)))
    pose = {
        "keypoints": [
            None if np.isnan(x) else [float(x), float(y)] for x, y in canonical_pose("back") * 80 + 150
        ]
    }
    (tmp_path / "my.JSON").write_text(json.dumps(pose | {"width": 300, "height": 300}))
    other = save(tmp_path / "other.png", photo_of((50, 10, 165)))
    made = reposer.repose(photo, pose=["left", str(tmp_path / "my.JSON"), str(other)])
    assert [one.pose for one in made] == ["left", "my", "other"]
    assert any("back of head" in remark for remark in made[1].remarks)
    for text, told in (
        ("frnt", "did you mean front"),
        (" , ", "names no pose"),
        (str(tmp_path / "no.json"), "no.json"),
    ):
        code, _, error = run("repose", photo, "--pose", text, "--out", tmp_path / "out", "--threads", 1)
        assert code == 1, text
        assert told in error
        assert error.count("\n") == 1
        assert "fault of ours" not in error
    (tmp_path / "more").mkdir()
    twin = save(tmp_path / "more" / "other.png", photo_of((80, 40, 140)))
    with pytest.raises(UserError, match="two poses are called other"):
        reposer.repose(photo, pose=[str(other), str(twin)])
    nobody = save(tmp_path / "nobody.png", photo_of())
    with pytest.raises(UserError, match="no person was found"):
        reposer.repose(photo, pose=str(nobody))


def test_the_pose_of_a_photo_is_of_its_largest_person_in_torso_lengths(tmp_path):
    photo = save(tmp_path / "other.png", photo_of((50, 10, 165)))
    found = [
        SimpleNamespace(
            frame=(0, top, 40, 100), person=SimpleNamespace(keypoints=canonical_pose(name) * scale + 30)
        )
        for name, top, scale in (("back", 40, 10), ("left", 0, 25), ("front", 20, 15))
    ]
    studio = SimpleNamespace(people=lambda pixels, name: (found, []))
    (target,) = read_poses(str(photo), studio)
    assert (target.name, target.size) == ("other.png", "torso")
    np.testing.assert_allclose(target.keypoints, canonical_pose("left"), atol=1e-5)
    largest = found[1].person.keypoints
    for joint, place in (
        ("neck", np.nan),
        ("right-hip", np.nan),
        ("left-hip", np.nan),
        ("neck", middle_hip(largest)),
    ):
        found[1].person.keypoints = largest.copy()
        found[1].person.keypoints[JOINTS.index(joint)] = place
        with pytest.raises(UserError, match=r"other\.png: shoulders or hips of its person were not found"):
            read_poses(str(photo), studio)


def test_files_of_the_users_are_never_replaced(run, tmp_path):
    photo = save(tmp_path / "photo.png", photo_of((100, 30, 150)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "contact_sheet.png").write_bytes(b"mine")
    code, _, error = run("repose", photo, "--out", out, "--threads", 1)
    assert code == 1
    assert "is there already" in error
    assert (out / "contact_sheet.png").read_bytes() == b"mine"


def outputs(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".png", ".json") and path.name != ".reposer-outputs.json"
    }


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    save(folder / "a.png", photo_of((210, 30, 150), (40, 60, 120)))
    save(folder / "b.png", photo_of((100, 30, 150)))
    save(folder / "c.png", photo_of())
    save(folder / "d.png", photo_of((60, 20, 150)))
    return folder


def stops_at(number):
    def on_photo(done, photos):
        if done == number:
            raise KeyboardInterrupt

    return on_photo


@pytest.mark.parametrize("people", [1, 3, 50])
def test_a_stopped_run_names_what_it_made_and_is_gone_on_with(photos, tmp_path, monkeypatch, people):
    monkeypatch.setattr(module, "SHEET_PEOPLE", people)
    options, calls = ReposeOptions(in_place=True), []
    whole = repose_files(photos, "front,left", tmp_path / "whole", options, lambda *told: calls.append(told))
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert (whole.photos, whole.people, whole.pictures) == (3, 4, 14)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        repose_files(photos, "front,left", out, options, stops_at(2))
    assert not (out / "repose.json").exists()
    named = [
        row
        for place in ("a", "b")
        for row in json.loads((out / "pictures" / place / "repose.json").read_text())["pictures"]
    ]
    assert named == json.loads((tmp_path / "whole" / "repose.json").read_text())["pictures"][: len(named)]
    made = {name for name in outputs(out) if name.endswith(".png") and not name.endswith("sheet.png")}
    assert made == {row["file"] for row in named}
    asked = []
    make = module._make
    monkeypatch.setattr(
        module, "_make", lambda studio, place, *rest: asked.append(place.photo) or make(studio, place, *rest)
    )
    report = repose_files(photos, "front,left", out, options, lambda done, photos: None)
    assert asked == ["c.png", "d.png"]
    assert outputs(out) == outputs(tmp_path / "whole")
    assert (report.photos, report.people, report.pictures) == (3, 4, 14)
    lines = [line for line in report.lines if line != "2 photos had been made before"]
    assert tuple(lines) == whole.lines
    assert len(lines) == len(report.lines) - 1
    told = f"contact_sheet.png shows the first {people} of 4 people"
    assert (told in whole.lines) == (people < 4)
    heights = Image.open(out / "contact_sheet.png").size[1] // 256
    assert heights == min(people, 4)


@pytest.mark.parametrize(
    "change", ["pose", "in place", "photo", "picture gone", "sheet gone", "record damaged", "record of lists"]
)
def test_what_is_no_longer_the_same_is_made_again(photos, tmp_path, monkeypatch, change):
    out, pose, options = tmp_path / "out", "front", ReposeOptions()
    repose_files(photos / "b.png", pose, out, options, lambda done, photos: None)
    asked = []
    make = module._make
    monkeypatch.setattr(
        module, "_make", lambda studio, place, *rest: asked.append(place.photo) or make(studio, place, *rest)
    )
    repose_files(photos / "b.png", pose, out, options, lambda done, photos: None)
    assert asked == []
    folder = out / "pictures" / "b"
    if change == "pose":
        pose = "left"
    elif change == "in place":
        options = ReposeOptions(in_place=True)
    elif change == "photo":
        save(photos / "b.png", photo_of((110, 30, 150)))
    elif change == "picture gone":
        (folder / "p01_front.png").unlink()
    elif change == "sheet gone":
        (folder / ".sheet.png").unlink()
    else:
        record = json.loads((folder / "repose.json").read_text())
        record |= {"pictures": 7} if change == "record damaged" else {"pictures": [[1], None], "said": 3}
        write_output(folder / "repose.json", json.dumps(record).encode())
    repose_files(photos / "b.png", pose, out, options, lambda done, photos: None)
    assert asked == ["b.png"]
    fresh = tmp_path / "fresh"
    repose_files(photos / "b.png", pose, fresh, options, lambda done, photos: None)
    assert outputs(fresh).items() <= outputs(out).items()


def test_memory_of_a_run_does_not_keep_the_sheet_of_every_photo(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHEET_PEOPLE", 2)
    drawn = []
    draw = module.draw_grid
    monkeypatch.setattr(
        module, "draw_grid", lambda rows, titles: drawn.append(len(rows)) or draw(rows, titles)
    )
    strips = []
    row = module.sheet_row
    monkeypatch.setattr(module, "sheet_row", lambda *what: strips.append(1) or row(*what))
    report = repose_files(photos, "front", tmp_path / "out", ReposeOptions(), lambda done, photos: None)
    assert drawn == [2]
    assert len(strips) == 2
    assert "contact_sheet.png shows the first 2 of 4 people" in str(report)


def test_a_record_of_the_users_is_never_replaced(photos, tmp_path):
    folder = tmp_path / "out" / "pictures" / "b"
    folder.mkdir(parents=True)
    (folder / "repose.json").write_text("{}")
    with pytest.raises(UserError, match=r"repose\.json: is there already"):
        repose_files(photos / "b.png", "front", tmp_path / "out", ReposeOptions(), lambda done, photos: None)
    assert (folder / "repose.json").read_text() == "{}"


def joints_in_photo(found):
    """A person's own joints in pixels of the photo that was looked at."""
    own, size = found.person.keypoints, found.person.image.shape[:2]
    return scale_keypoints(own, size, found.pixels.shape[:2]) + np.float32(found.frame[:2])


def write_pose(path, joints):
    points = [None if np.isnan(x) else [float(x), float(y)] for x, y in joints]
    path.write_text(json.dumps({"keypoints": points}))
    return path


@pytest.mark.parametrize("longest", [4096, 350, 320])
@pytest.mark.parametrize("left", [40, 210])
def test_joints_in_pixels_of_the_photo_mean_the_photo(tmp_path, monkeypatch, longest, left):
    monkeypatch.setattr(module, "_LONGEST", longest)
    photo = photo_of((40, 60, 120), (210, 30, 150))
    pixels = module._within(photo)
    found, _ = module._Studio(ReposeOptions()).people(pixels, "photo")
    one = found[0 if left == 40 else 1]
    joints = scale_keypoints(joints_in_photo(one), pixels.shape[:2], photo.shape[:2])
    seen = []
    monkeypatch.setattr(module.Reposer, "__call__", lambda self, *what: seen.append(what) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reposer.repose(photo, pose=str(write_pose(tmp_path / "own.json", joints)))
    source, target, _ = seen[0]
    np.testing.assert_array_equal(source.keypoints, one.person.keypoints)  # of the other nothing was made
    away = np.abs(proportioned(target, source).keypoints - source.keypoints)
    assert np.nanmax(away) < 0.02
    assert (~np.isnan(away[:, 0])).sum() >= 10  # the others lie at the edge


def test_whom_a_pose_does_not_fit_is_told_and_the_others_are_made(photos, run, tmp_path):
    found, _ = module._Studio(ReposeOptions()).people(photo_of((210, 30, 150), (40, 60, 120)), "a")
    pose = write_pose(tmp_path / "own.json", joints_in_photo(found[1]))
    out = tmp_path / "out"
    command = ("repose", photos, "--pose", f"{pose},left", "--out", out, "--in-place", "--threads", 1)
    code, printed, error = run(*command)
    assert code == 0, error
    assert "a.png: person 1: target own.json: no keypoint lies inside the image" in printed
    made = {name.rpartition("/")[2] for name in outputs(out) if name.startswith("pictures/a/p")}
    assert made == {"p01_left.png", "p02_left.png", "p02_own.png"}
    cell = np.array(Image.open(out / "contact_sheet.png"))[30:270, -380:-210]
    assert (cell == 255).all()  # of the first person, between the label map and the second pose
    nowhere = write_pose(tmp_path / "no.json", np.full((18, 2), 9000.0))
    for source in (photos, photos / "b.png"):
        code, _, error = run("repose", source, "--pose", nowhere, "--out", tmp_path / "none", "--threads", 1)
        assert code == 1
        assert "no pose fits" in error
        assert "no keypoint lies inside the image" in error
        assert error.count("error: ") == 1
    with pytest.raises(UserError, match="no keypoint lies inside the image"):
        reposer.repose(photos / "b.png", pose=str(nowhere))


def test_a_crop_that_a_person_fills_needs_no_detector(monkeypatch):
    monkeypatch.setattr(
        Finds,
        "forward",
        lambda self, images: [
            {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)} for _ in images
        ],
    )
    crop = photo_of((6, 4, 120), size=(128, 64))
    (picture,) = reposer.repose(crop, pose="back")
    assert picture.image.shape[1] <= 64
    with pytest.raises(UserError, match="no person"):
        reposer.repose(photo_of(size=(128, 64)))


def test_a_photo_too_large_to_work_on_is_made_smaller(monkeypatch):
    monkeypatch.setattr(module, "_LONGEST", 300)
    pictures = reposer.repose(photo_of((100, 30, 150)), pose="front", in_place=True)
    assert max(pictures[-1].image.shape) == 300
    assert replace(pictures[-1]).person == 0


PHOTO = photo_of((100, 30, 150))


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        ((PHOTO / 255).astype(np.float32), "is float32 (200, 350, 3), uint8 (H, W, 3) is wanted"),
        (PHOTO / 255, "is float64 (200, 350, 3), uint8 (H, W, 3) is wanted"),
        (PHOTO.astype(np.int64), "is int64 (200, 350, 3), uint8 (H, W, 3) is wanted"),
        (PHOTO > 0, "is bool (200, 350, 3), uint8 (H, W, 3) is wanted"),
        (PHOTO[..., 0], "is uint8 (200, 350), uint8 (H, W, 3) is wanted"),
        (PHOTO[..., [0, 1, 2, 2]], "is uint8 (200, 350, 4), uint8 (H, W, 3) is wanted"),
        (PHOTO[None], "is uint8 (1, 200, 350, 3), uint8 (H, W, 3) is wanted"),
        (PHOTO.transpose(2, 0, 1), "is uint8 (3, 200, 350), uint8 (H, W, 3) is wanted"),
        (np.zeros((), np.uint8), "is uint8 (), uint8 (H, W, 3) is wanted"),
        (PHOTO[:0], "is (0, 350, 3), without a pixel"),
        (PHOTO[:, :0], "is (200, 0, 3), without a pixel"),
        (PHOTO.tolist()[:1], "is of type list, an array of uint8 (H, W, 3) is wanted"),
        (Image.fromarray(PHOTO), "is of type Image, an array of uint8 (H, W, 3) is wanted"),
        (torch.from_numpy(PHOTO), "is of type Tensor, an array of uint8 (H, W, 3) is wanted"),
        (None, "is of type NoneType, an array of uint8 (H, W, 3) is wanted"),
    ],
)
def test_an_array_of_another_kind_is_told_before_the_networks_are_opened(monkeypatch, photo, said):
    monkeypatch.setattr(module, "_Studio", lambda options: 1 / 0)
    with pytest.raises(UserError) as error:
        reposer.repose(photo)
    assert error.value.problem == f"photo: {said}"
    assert "convert it" in str(error.value) or "give a picture" in str(error.value)
    with pytest.raises(UserError, match="mine: is"):
        load_person(photo, np.zeros((200, 350), np.uint8), size=(64, 32), name="mine")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["read-only", "mirrored", "of columns"])
def test_an_array_that_may_not_be_written_is_copied(kind):
    whole = reposer.repose(PHOTO, pose="front")
    if kind == "mirrored":
        photo = PHOTO[:, ::-1].copy()[:, ::-1]
    elif kind == "of columns":
        photo = np.asfortranarray(PHOTO)
    else:
        photo = np.frombuffer(PHOTO.tobytes(), np.uint8).reshape(PHOTO.shape)
        photo.flags.writeable = False
    (picture,) = reposer.repose(photo, pose="front", in_place=False)
    np.testing.assert_array_equal(picture.image, whole[0].image)
    np.testing.assert_array_equal(photo, PHOTO)


@pytest.mark.parametrize("poses", [("front,back", "back,front"), ("left,front,back", "back,left,front")])
def test_poses_in_another_order_are_shown_in_that_order(photos, tmp_path, poses):
    for pose in poses:
        repose_files(photos, pose, tmp_path / "out", ReposeOptions(), lambda done, photos: None)
    repose_files(photos, poses[-1], tmp_path / "fresh", ReposeOptions(), lambda done, photos: None)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")
    record = json.loads((tmp_path / "out" / "repose.json").read_text())
    order = poses[-1].split(",")
    assert [row["pose"] for row in record["pictures"]] == order * 4
    report = repose_files(photos, poses[-1], tmp_path / "out", ReposeOptions(), lambda done, photos: None)
    assert "3 photos had been made before" in report.lines


@pytest.mark.parametrize(
    ("file", "poses", "in_place", "said"),
    [
        ("p01_front.json", "front", True, "p01_front in the whole photo and front of person 1"),
        ("p12_front.json", "front", True, "p12_front in the whole photo and front of person 12"),
        ("p100_left.json", "front,left", True, "p100_left in the whole photo and left of person 100"),
        ("P01_Front.json", "front", True, "P01_Front in the whole photo and front of person 1"),
        ("Front.json", "front", False, "the pictures of front would have its names on some disks"),
        ("LEFT.json", "front,left", True, "the pictures of left would have its names on some disks"),
        ("p01_front.json", "front", False, None),
        ("p01_front.json", "left", True, None),
        ("p1_front.json", "front", True, None),
        ("p001_front.json", "front", True, None),
        ("p00_front.json", "front", True, None),
    ],
)
def test_poses_whose_pictures_would_be_one_file_are_refused(
    photos, run, tmp_path, file, poses, in_place, said
):
    found, _ = module._Studio(ReposeOptions()).people(PHOTO, "b")
    mine = write_pose(tmp_path / file, joints_in_photo(found[0]))
    out = tmp_path / "out"
    for pose in (f"{poses},{mine}", f"{mine},{poses}"):
        words = ("repose", photos / "b.png", "--pose", pose, "--out", out, *["--in-place"] * in_place)
        code, _, error = run(*words, "--threads", 1)
        if said is not None:
            assert (code, error.count("\n"), said.lower() in error.lower()) == (1, 1, True), error
            assert "rename the file" in error
            assert not out.exists()
            continue
        assert code == 0, error
        rows = json.loads((out / "repose.json").read_text())["pictures"]
        assert len({row["file"].lower() for row in rows}) == len(rows)
        assert len(rows) == (len(poses.split(",")) + 1) * (1 + in_place)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *((option, "none", "without") for option in ("parser", "mask", "keypoints", "detect")),
        *(
            ("keypoints", f"{kind}:FOLDER", "files of whole images")
            for kind in ("openpose", "colon", "viton")
        ),
        ("keypoints", "openpose:", "files of whole images"),
        ("mask", "FOLDER", "files of whole images"),
        ("mask", "selfy", "did you mean selfie"),
    ],
)
def test_annotators_that_see_nobody_are_refused_before_the_work(
    photos, run, tmp_path, monkeypatch, option, value, said
):
    monkeypatch.setattr(AnnotatorChoice, "open", lambda self: 1 / 0)
    monkeypatch.setattr(AnnotatorChoice, "open_detector", lambda self: 1 / 0)
    value = value.replace("FOLDER", str(photos))
    for source in (photos, photos / "b.png"):
        code, _, error = run("repose", source, f"--{option}", value, "--out", tmp_path / "out")
        assert (code, error.count("\n"), said in error) == (1, 1, True), error
        assert said.startswith("did") or f"--{option} {value}: " in error
        assert said.startswith("did") or f"name a network, or leave --{option} out" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=said):
        reposer.repose(PHOTO, annotators=AnnotatorChoice(**{"detect": "auto", option: value}))


@pytest.mark.parametrize(
    ("option", "value"),
    [("parser", "rule"), ("mask", "parsing"), ("mask", "maskrcnn=mine.pth"), ("keypoints", "vitpose=mine")],
)
def test_networks_that_are_named_are_opened(photos, monkeypatch, option, value):
    opened = []
    monkeypatch.setattr(AnnotatorChoice, "open_detector", lambda self: opened.append(self) or 1 / 0)
    choice = AnnotatorChoice(**{"detect": "auto", option: value})
    with pytest.raises(ZeroDivisionError):
        reposer.repose(PHOTO, annotators=choice)
    assert opened == [choice]


@pytest.mark.parametrize("place", ["reposed", "deep/er", "link"])
def test_a_folder_is_re_posed_into_itself_again_and_again(photos, run, monkeypatch, tmp_path, place):
    """`repose .` with its usual --out, which lies in the folder."""
    monkeypatch.chdir(photos)
    out = photos / place
    if place == "link":
        (tmp_path / "away").mkdir()
        out.symlink_to(tmp_path / "away")
    asked = ["repose", ".", "--threads", 1, *([] if place == "reposed" else ["--out", place])]
    told, made = [], []
    for _ in range(3):
        code, printed, error = run(*asked)
        assert code == 0, error
        told.append([line for line in printed.splitlines() if "been made before" not in line])
        made.append(outputs(out))
    assert told[0] == told[1] == told[2]
    assert "generated" not in printed
    assert made[0] == made[1] == made[2]
    assert "3 photos, 4 people, 4 pictures" in printed
    # what a further --out holds is not re-posed either, and it is said
    code, printed, error = run("repose", ".", "--out", "second", "--threads", 1)
    assert code == 0, error
    assert "3 photos, 4 people, 4 pictures" in printed
    if place != "link":
        assert f"{place}/contact_sheet.png and 4 more: generated already; left out" in printed


def test_photos_beside_generated_pictures_are_taken_and_a_picture_that_is_named(photos, run, tmp_path):
    out = photos / "out"
    assert run("repose", photos, "--out", out, "--threads", 1)[0] == 0
    save(out / "pictures" / "mine.png", photo_of((120, 30, 150)))  # of the user's, in the command's folder
    code, printed, error = run("repose", photos, "--out", out, "--threads", 1)
    assert code == 0, error
    assert "4 photos, 5 people, 5 pictures" in printed
    (photos / "copy.png").write_bytes((out / "pictures" / "b" / "p01_front.png").read_bytes())
    code, printed, error = run("repose", photos, "--out", out, "--threads", 1)
    assert "4 photos, 5 people, 5 pictures" in printed
    assert "\ncopy.png: generated already; left out" in f"\n{printed}"
    code, printed, error = run("repose", photos / "copy.png", "--out", tmp_path / "one", "--threads", 1)
    assert code == 0, error
    assert "1 photos, 1 people, 1 pictures" in printed
    for folder, said in (
        (out / "pictures" / "a", "holds no photo but generated pictures"),
        (tmp_path / "none", ""),
    ):
        folder.mkdir(exist_ok=True)
        code, _, error = run("repose", folder, "--out", tmp_path / "two", "--threads", 1)
        assert (code, error.count("\n"), (said or "holds no photo: ") in error) == (1, 1, True), error


def made_of(out):
    return {name for name in outputs(out) if name.startswith("pictures/")}


def again(photos, out, pose="front", **options):
    return repose_files(photos, pose, out, ReposeOptions(**options), lambda done, photos: None)


@pytest.mark.parametrize(
    "change", ["nobody", "no picture", "fewer", "gone", "renamed", "poses", "not in place", "its folder gone"]
)
def test_of_a_photo_that_is_another_no_old_picture_stays(photos, tmp_path, change):
    (photos / "more").mkdir()
    save(photos / "more" / "e.png", photo_of((100, 30, 150)))
    out, pose = tmp_path / "out", "front,back"
    again(photos, out, pose, in_place=True)
    (out / "pictures" / "a" / "mine.txt").write_text("mine")
    options = {"in_place": True}
    if change == "nobody":
        save(photos / "a.png", photo_of())
    elif change == "no picture":
        (photos / "a.png").write_bytes(b"gray")
    elif change == "fewer":
        save(photos / "a.png", photo_of((40, 60, 120)))
    elif change == "gone":
        (photos / "a.png").unlink()
    elif change == "renamed":
        (photos / "a.png").rename(photos / "z.png")
    elif change == "its folder gone":
        (photos / "more" / "e.png").unlink()
        (photos / "more").rmdir()
    elif change == "poses":
        pose = "left"
    else:
        options = {}
    report = again(photos, out, pose, **options)
    again(photos, tmp_path / "fresh", pose, **options)
    assert outputs(out) == outputs(tmp_path / "fresh")
    listed = {row["file"] for row in json.loads((out / "repose.json").read_text())["pictures"]}
    assert listed == {name for name in made_of(out) if name.endswith(".png") and ".sheet" not in name}
    assert (out / "pictures" / "a" / "mine.txt").read_text() == "mine"
    gone = {"gone": "a.png", "renamed": "a.png", "its folder gone": "more/e.png"}.get(change)
    told = [line for line in report.lines if line.endswith("is gone; so are its pictures")]
    assert told == ([f"{gone}: is gone; so are its pictures"] if gone else [])
    folders = {path.name for path in (out / "pictures").iterdir()} - {"a"}  # which the user's own file keeps
    assert folders == {name.split("/")[1] for name in listed} - {"a"}


@pytest.mark.parametrize("single", [True, False])
def test_a_last_photo_of_nobody_leaves_no_list_of_pictures_that_are_gone(tmp_path, single):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    save(folder / "a.png", photo_of((100, 30, 150)))
    source = folder / "a.png" if single else folder
    again(source, out)
    save(folder / "a.png", photo_of())
    with pytest.raises(UserError, match="nobody was found"):
        again(source, out)
    assert outputs(out) == {}
    assert list((out / "pictures").iterdir()) == []


def test_pictures_belong_to_the_folder_that_they_were_last_made_for(tmp_path):
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    for folder in (first, second):  # the same photo, and one of its own
        folder.mkdir()
        save(folder / "a.png", photo_of((100, 30, 150)))
    save(first / "b.png", photo_of((90, 40, 140)))
    again(first, out)
    again(second, out)
    (first / "a.png").unlink()
    report = again(first, out)
    assert not any("is gone" in line for line in report.lines)
    assert (out / "pictures" / "a" / "p01_front.png").is_file()  # of second/a.png
    moved = second.rename(tmp_path / "moved")
    save(moved / "c.png", photo_of((90, 40, 140)))
    again(moved, out)
    (moved / "a.png").unlink()
    report = again(moved, out)
    assert "a.png: is gone; so are its pictures" in report.lines
    assert not (out / "pictures" / "a" / "p01_front.png").exists()


def test_pictures_of_other_photos_and_files_of_others_are_never_removed(photos, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    save(other / "o.png", photo_of((100, 30, 150)))
    again(photos, out)
    was = made_of(out)
    again(other, out)  # another folder of photos
    again(photos / "b.png", out)  # one of them
    new = {f"pictures/o/{name}" for name in ("p01_front.png", ".sheet.png", "repose.json")}
    assert made_of(out) == was | new
    a, b, d = (out / "pictures" / name for name in "abd")
    record = json.loads((d / "repose.json").read_text())
    del record["root"]  # as of a version that did not say
    write_output(d / "repose.json", json.dumps(record).encode())
    (a / "p01_front.png").write_bytes(b"touched up")
    (a / "p07_front.png").write_bytes((a / "p02_front.png").read_bytes())  # none of the command's
    (tmp_path / "kept.png").write_bytes((a / "p02_front.png").read_bytes())
    (a / "p02_front.png").unlink()
    (a / "p02_front.png").symlink_to(tmp_path / "kept.png")
    (out / "pictures" / "b").rename(tmp_path / "b")
    (out / "pictures" / "b").symlink_to(tmp_path / "b")
    for name in "abd":
        (photos / f"{name}.png").unlink()
    save(photos / "f.png", photo_of((100, 30, 150)))
    report = again(photos, out)
    assert [line for line in report.lines if "is gone" in line] == ["a.png: is gone; so are its pictures"]
    assert {path.name for path in a.glob("[!.]*")} == {"p01_front.png", "p07_front.png", "p02_front.png"}
    assert (a / "p01_front.png").read_bytes() == b"touched up"
    assert (tmp_path / "kept.png").is_file()
    assert (b / "p01_front.png").is_file()  # behind a link
    assert (d / "p01_front.png").is_file()
    assert (out / "pictures" / "o" / "p01_front.png").is_file()


@pytest.mark.parametrize("value", ["../../photos/b.png", "/etc/passwd", "", 7, None, ["b.png"]])
def test_a_record_that_names_strange_files_removes_nothing(photos, tmp_path, value):
    out = tmp_path / "out"
    again(photos, out)
    folder = out / "pictures" / "a"
    record = json.loads((folder / "repose.json").read_text())
    for row in record["pictures"]:
        row |= {"file": value, "photo": value}
    write_output(folder / "repose.json", json.dumps(record).encode())
    (photos / "a.png").unlink()
    before = outputs(photos), made_of(out)
    again(photos, out)
    assert (outputs(photos), made_of(out)) == before


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_removal_that_was_stopped_is_gone_on_with(photos, tmp_path, monkeypatch, stop):
    out, removed = tmp_path / "out", []
    remove = storage.remove_output

    def stops(path):
        removed.append(path)
        if len(removed) == stop:
            raise KeyboardInterrupt
        remove(path)

    again(photos, out, "front,back")
    for module_of in (storage, people):
        monkeypatch.setattr(module_of, "remove_output", stops)
    (photos / "a.png").unlink()
    with pytest.raises(KeyboardInterrupt):
        again(photos, out, "left")
    again(photos, out, "left")
    again(photos, tmp_path / "fresh", "left")
    assert outputs(out) == outputs(tmp_path / "fresh")
