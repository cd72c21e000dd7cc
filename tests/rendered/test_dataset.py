"""Data sets of rendered people: purity, names and layout, the reader's view of them, refusals."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from reposer.data.keypoints import read_keypoints_csv
from reposer.data.layouts.market1501 import parse_name, read_market1501
from reposer.data.parsing import read_parsing
from reposer.errors import UserError
from reposer.rendered.dataset import write_rendered_dataset
from reposer.rendered.renderer import iterate_rendered, plan_shot, render_shots

FEW = {"identities": 2, "test_identities": 2, "images_per_identity": 5, "size": (64, 32), "workers": 1}


def _all(**arguments):
    batches = [batch for _, batch in iterate_rendered([3, 8], 5, (64, 32), **arguments)]
    return [
        np.concatenate([getattr(b, name) for b in batches]) for name in ("images", "parsing", "keypoints")
    ]


def _same(one, other):
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered") / "people"
    return root, write_rendered_dataset(root, **FEW)


def test_an_image_depends_on_seed_person_and_index_only():
    reference = _all(batch_size=10)
    assert _same(reference, _all(batch_size=3))
    assert _same(reference, _all(batch_size=4, workers=2))  # other processes, another order
    alone = render_shots([plan_shot(0, 8, 3)], (64, 32))
    assert _same([alone.images[0], alone.parsing[0]], [reference[0][8], reference[1][8]])


def test_other_seeds_people_and_indices_give_other_pictures():
    keys = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (0, 1, 2)]
    images = render_shots([plan_shot(*key) for key in keys], (64, 32)).images
    for i in range(len(keys)):
        for j in range(i):
            assert np.abs(images[i].astype(int) - images[j]).mean() > 5
    same_person = [plan_shot(0, 1, index) for index in range(12)]
    assert len({shot.identity for shot in same_person}) == 1
    assert {shot.camera.camid for shot in same_person} == {1, 2, 3, 4, 5, 6}
    assert plan_shot(1, 1, 0).identity != same_person[0].identity


def test_layout_and_names_are_market1501s(written):
    root, summary = written
    folders = {name: sorted(p.name for p in (root / name).iterdir()) for name in
               ("bounding_box_train", "query", "bounding_box_test")}  # fmt: skip
    assert [len(v) for v in folders.values()] == [10, summary.query_images, summary.gallery_images]
    assert summary.query_images + summary.gallery_images == 10
    names = {folder: [parse_name(n) for n in files] for folder, files in folders.items()}
    train, query = names["bounding_box_train"], names["query"]
    assert {n.pid for n in train} == {1, 2}
    assert {n.pid for n in query} == {3, 4} == {n.pid for n in names["bounding_box_test"]}
    assert len({(n.pid, n.camid) for n in query}) == len(query)  # one query for each person and camera
    assert {(n.pid, n.camid) for n in names["bounding_box_test"]} <= {(n.pid, n.camid) for n in query}
    for n in query:  # and a match from another camera waits in the gallery
        assert any(g.pid == n.pid and g.camid != n.camid for g in names["bounding_box_test"])


def test_the_reader_finds_everything(written):
    root, _ = written
    records, problems = read_market1501(root)
    assert len(records) == 20
    assert not list(problems)
    for record in records:
        assert record.parsing
        assert record.mask
        assert record.keypoints is not None
        assert (record.width, record.height) == (32, 64)


def test_files_hold_what_was_rendered(written):
    root, _ = written
    poses, problems = read_keypoints_csv(root / "keypoints.csv")
    assert not problems
    people = json.loads((root / "people.json").read_text())
    for shots, batch in iterate_rendered([1, 3], 5, (64, 32)):
        for n, shot in enumerate(shots):
            parsing = read_parsing(root / "parsing" / f"{shot.stem}.png", (64, 32))
            assert (parsing == batch.parsing[n]).all()
            mask = Image.open(root / "mask" / f"{shot.stem}.png")
            assert mask.mode == "1"
            assert (np.array(mask) == batch.masks[n]).all()
            assert np.array_equal(poses[f"{shot.stem}.jpg"], np.rint(batch.keypoints[n]), equal_nan=True)
            (file,) = root.glob(f"*/{shot.stem}.jpg")
            decoded = np.array(Image.open(io.BytesIO(file.read_bytes()))).astype(int)
            assert np.abs(decoded - batch.images[n]).mean() < 4  # JPEG, quality 95
            entry = people["images"][file.name]
            assert (entry["pid"], entry["camid"]) == (shot.identity.pid, shot.camera.camid)
            assert entry["yaw"] == pytest.approx(shot.pose.yaw, abs=1e-3)
            assert people["people"][str(shot.identity.pid)]["lower"] == shot.identity.lower


def test_writing_again_gives_the_same_bytes(written, tmp_path):
    root, _ = written
    write_rendered_dataset(tmp_path / "again", **(FEW | {"workers": 2}))
    for file in sorted(root.rglob("*.*")):
        assert (tmp_path / "again" / file.relative_to(root)).read_bytes() == file.read_bytes()


def test_an_earlier_set_is_replaced_and_anything_else_refused(tmp_path):
    seen = []
    root = tmp_path / "people"
    small = FEW | {"identities": 1, "test_identities": 0, "images_per_identity": 1}
    write_rendered_dataset(root, **FEW)
    write_rendered_dataset(root, **small, progress=lambda done, total: seen.append((done, total)))
    assert len(list(root.rglob("*.jpg"))) == 1
    assert seen == [(1, 1)]
    precious = tmp_path / "mine"
    precious.mkdir()
    (precious / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="mine"):
        write_rendered_dataset(precious, **small)
    assert (precious / "thesis.txt").read_text() == "do not lose"


def test_nothing_stays_of_a_failed_write(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rendered_dataset(tmp_path / "people", **FEW, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"identities": 0, "test_identities": 0},
        {"identities": 9000, "test_identities": 1000},
        {"identities": -1},
        {"images_per_identity": 0},
        {"size": (8, 8)},
        {"seed": -1},
    ],
)
def test_impossible_counts_are_refused(change, tmp_path):
    with pytest.raises(UserError, match=r"\d"):
        write_rendered_dataset(tmp_path / "people", **(FEW | change))
    assert list(tmp_path.iterdir()) == []
