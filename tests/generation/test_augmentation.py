"""Augmented sets: what is in them, what is refused, the same tree however they are written."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from itertools import chain, islice
from pathlib import Path

import augment_runner as runner
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reposer.data.layouts.market1501 import (
    check_names,
    generated_name,
    is_generated,
    parse_generated,
    parse_name,
    with_camera,
)
from reposer.data.layouts.tables import list_table, unpack_set
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_market1501, prepare_people
from reposer.errors import UserError
from reposer.generation import set_exports
from reposer.generation.augmentation import AugmentOptions
from reposer.generation.filters import FilterOptions
from reposer.generation.forgetting import forget
from reposer.generation.lineage import set_faults
from reposer.generation.pictures import is_marked
from reposer.generation.set_exports import export_set
from reposer.jobs.workers import Step
from reposer.storage import files

RUNNER = Path(runner.__file__)


def tree(folder):
    """Relative path -> sha256 of everything below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Five training people and one held out, of three images each; two test people."""
    return runner.prepare_drawn(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """Factor 3 of it."""
    out = tmp_path_factory.mktemp("sets") / "whole"
    runner.write(prepared, out, 3, shard=8)
    return out


@pytest.fixture
def copied(whole, tmp_path):
    """A copy that may be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def rows_of(folder):
    return pq.read_table(folder / "manifest").to_pylist()


def test_the_set_holds_the_real_images_and_two_pictures_of_each(prepared, whole):
    people = PackedPeople.open(prepared / "packed")
    train = np.flatnonzero(people.splits == "train")
    assert len(train) == 15
    assert sorted(os.listdir(whole / "real")) == sorted(people.names[i] for i in train)
    rows = rows_of(whole)
    assert len(rows) == 30
    assert sorted(os.listdir(whole / "images")) == sorted(row["file"] for row in rows)
    training_names = {people.names[i] for i in train}
    for row in rows:
        name = parse_name(row["file"])
        assert (
            (name.pid, name.camid) == (row["pid"], row["camid"]) == (row["source_pid"], row["source_camid"])
        )
        peers = re.search(r"([-\d]+)_c(\d)", row["file"])
        assert (int(peers[1]), int(peers[2])) == (row["pid"], row["camid"])
        assert {row["source"], row["donor"]} <= training_names
        source = people.index(row["source"])
        assert row["source_sha256"] == people.sha256[source]
        data = (whole / "images" / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert is_marked(data)
        assert (row["synthetic"], row["kept"], row["dropped_because"]) == (True, True, None)


def test_a_picture_is_the_generator_s_answer_to_its_row(prepared, whole):
    people, model = PackedPeople.open(prepared / "packed"), runner.stub_model()
    row = rows_of(whole)[17]
    batch = people.pair_batch(np.array([people.index(row["source"])]), np.array([people.index(row["donor"])]))
    wanted = model(batch, "donor")[0].permute(1, 2, 0).numpy().astype(float)
    found = np.asarray(Image.open(io.BytesIO((whole / "images" / row["file"]).read_bytes())), float)
    assert np.abs(found - wanted).mean() < 6, "JPEG of noise"


def test_workers_write_the_set_of_one_process(prepared, whole, tmp_path):
    out, options = tmp_path / "out", AugmentOptions(3, background="donor", batch_size=8, shard_items=8)

    def step(name, i=0):
        step = Step(name, (i, 4) if name == "work" else None, lease=1)
        return str(runner.augmented(runner.stub_model(), prepared, out, options, step=step))

    step("plan")
    assert sorted(os.listdir(out / "real")) == sorted(os.listdir(whole / "real"))
    assert "30 pictures made here" in step("work", 3)
    assert "every shard is made" in step("work", 0)
    assert "15 real and 30 generated images of 5 people" in step("finish")
    assert tree(out) == tree(whole)
    assert set_faults(out) == []
    with pytest.raises(UserError, match="--step work with --processes 2: start one process for each worker"):
        runner.augmented(runner.stub_model(), prepared, out, options, step=Step("work"), processes=2)


def packed_members(folder):
    """(member, bytes, time, owner) of all tar files, in their order."""
    for place in sorted(folder.glob("*.tar")):
        with tarfile.open(place) as tar:
            for member in tar:
                yield member.name, tar.extractfile(member).read(), member.mtime, (member.uid, member.uname)


def test_packed_layouts_hold_every_image_once_and_always_in_the_same_bytes(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 20)
    for layout in ("webdataset", "parquet"):
        for out in (tmp_path / layout, tmp_path / f"{layout} again"):
            assert "15 real and 30 generated images" in export_set(whole, out, layout)
        assert tree(tmp_path / layout) == tree(tmp_path / f"{layout} again")
    wanted = [
        (place.name, place.read_bytes()) for kind in ("real", "images") for place in (whole / kind).iterdir()
    ]
    members = list(packed_members(tmp_path / "webdataset"))
    assert sorted(wanted) == sorted((name, data) for name, data, *_ in members if not name.endswith(".json"))
    assert {(when, owner) for *_, when, owner in members} == {(0, (0, ""))}
    index = json.loads((tmp_path / "webdataset" / "index.json").read_text())
    for shard, images in zip(index["shardlist"], (20, 20, 5), strict=True):
        data = (tmp_path / "webdataset" / shard["url"]).read_bytes()
        assert (shard["nsamples"], shard["filesize"]) == (images, len(data))
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    rows = pq.read_table(tmp_path / "webdataset" / "manifest.parquet").to_pylist()
    told = [json.loads(data) for name, data, *_ in members if name.endswith(".json")]
    assert [{k: row[k] for k in told[0]} for row in rows] == told
    packed = pq.read_table(tmp_path / "parquet" / "data").to_pylist()
    assert sorted((row["image"]["path"], row["image"]["bytes"]) for row in packed) == sorted(wanted)
    assert [row["pid"] for row in packed] == [row["pid"] for row in rows]
    assert sum(row["synthetic"] for row in packed) == 30


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_packed_set_is_unpacked_to_the_files_that_it_was_made_of(whole, tmp_path, monkeypatch, layout):
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 20)
    packed, out = tmp_path / "packed", tmp_path / "out"
    export_set(whole, packed, layout)
    export_set(whole, tmp_path / "list", "list", copy=True)
    assert "15 real and 30 generated images" in unpack_set(packed, out)
    assert tree(out) == tree(tmp_path / "list")
    shard = sorted(packed.rglob("train-*"))[1]
    data = shard.read_bytes()
    at = data.index(b"\xff\xd8") + 200  # in a picture
    for broken in (data[: len(data) // 2], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], b""):
        shard.write_bytes(broken)
        with pytest.raises(UserError, match=r"train-000001|cannot be read|manifest.parquet"):
            unpack_set(packed, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    shard.write_bytes(data)
    manifest = packed / "manifest.parquet"
    rows = pq.read_table(manifest)
    for column, hostile in (
        ("file", "../../evil.jpg"),
        ("shard", "../packed/train-000000.tar"),
        ("pid", None),
    ):
        changed = rows.slice(0, 20).to_pylist()
        for row in changed:
            row[column] = hostile
        pq.write_table(pa.Table.from_pylist(changed, rows.schema), manifest)
        with pytest.raises(UserError):
            unpack_set(packed, tmp_path / "again")
        assert not (tmp_path / "again").exists()
        assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_set_in_a_bucket_is_there_once_its_manifest_is(whole, tmp_path, monkeypatch, layout):
    """fsspec's memory stands for a bucket; test_augmentation_slow.py has a real S3."""
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 20)
    place = f"memory://{tmp_path.name}/{layout}"
    bucket, real_put = files.Bucket(place), files.Bucket.put

    def broken(self, file, name):
        if name.endswith(f"train-000002.{file.suffix[1:]}"):
            raise files.DiskError(f"{place}: the network is gone")
        real_put(self, file, name)

    monkeypatch.setattr(files.Bucket, "put", broken)
    with pytest.raises(UserError, match="the network is gone"):
        export_set(whole, place, layout)
    assert len(bucket.names()) == 2
    with pytest.raises(UserError, match=r"manifest\.parquet: no such object"):
        unpack_set(place, tmp_path / "nothing")
    monkeypatch.setattr(files.Bucket, "put", real_put)
    left = tmp_path / "left"
    left.write_bytes(b"of a larger export that was stopped")
    stale = "train-000009.tar" if layout == "webdataset" else "data/train-000009.parquet"
    bucket.put(left, stale)
    assert "15 real and 30 generated images" in export_set(whole, place, layout)
    export_set(whole, tmp_path / "here", layout)
    for name in bucket.names():
        bucket.get(name, tmp_path / "one", 10**9)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "here" / name).read_bytes()
        (tmp_path / "one").unlink()
    assert set(bucket.names()) == set(tree(tmp_path / "here"))
    assert unpack_set(place, tmp_path / "out") != unpack_set(tmp_path / "here", tmp_path / "again")
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    with pytest.raises(UserError, match=r"holds manifest\.parquet: choose a new place"):
        export_set(whole, place, layout)
    with pytest.raises(UserError, match="a bucket holds a packed layout"):
        export_set(whole, f"{place}/more", "market")
    with pytest.raises(UserError, match=r"nowhere://x: .*[Pp]rotocol not known"):
        unpack_set("nowhere://x", tmp_path / "nothing")


def test_an_unpacked_set_is_prepared_by_its_table(whole, tmp_path):
    export_set(whole, tmp_path / "packed", "parquet")
    unpack_set(tmp_path / "packed", tmp_path / "files")
    table = {"table": str(tmp_path / "files" / "train.csv"), "split": "train"}
    report = prepare_people("table", tmp_path / "files", tmp_path / "prepared", options=table)
    assert report.splits["train"]["images"] == 45
    files.write_new(tmp_path / "files" / "own.csv", b"path,pid,camid,split\nimages/a.jpg,1,1,train\n")
    with pytest.raises(UserError, match="has a column split: leave out --split"):
        list_table(tmp_path / "files", tmp_path / "files" / "own.csv", split="val")
    with pytest.raises(UserError, match=r"split.*nowhere"):
        list_table(tmp_path / "files", tmp_path / "files" / "own.csv", split="nowhere")


@pytest.mark.parametrize("layout", ["market", "folders", "list", "webdataset", "parquet"])
def test_names_are_compared_in_shares_where_there_are_many(whole, tmp_path, monkeypatch, layout):
    export_set(whole, tmp_path / "whole", layout)
    monkeypatch.setattr(set_exports, "_NAMES_AT_ONCE", 7)
    export_set(whole, tmp_path / "shares", layout)
    assert tree(tmp_path / "shares") == tree(tmp_path / "whole")
    real = set_exports._images
    monkeypatch.setattr(
        set_exports, "_images", lambda folder: chain(real(folder), islice(real(folder), 20, 21))
    )
    with pytest.raises(UserError, match="two images would have this name"):
        export_set(whole, tmp_path / "twins", layout)


def test_real_images_are_links_copies_or_left_out(prepared, whole, tmp_path):
    raw = prepared.parent / "raw" / "bounding_box_train"
    for place in (whole / "real").iterdir():
        assert os.path.samefile(place, raw / place.name)
    out = tmp_path / "copies"
    runner.augmented(runner.stub_model(), prepared, out, AugmentOptions(real="copy"))
    for place in (out / "real").iterdir():
        assert not os.path.samefile(place, raw / place.name)
        assert place.read_bytes() == (raw / place.name).read_bytes()
    runner.augmented(runner.stub_model(), prepared, tmp_path / "none", AugmentOptions(real="none"))
    assert not (tmp_path / "none" / "real").exists()
    assert set_faults(out) == set_faults(tmp_path / "none") == []


def without_links(monkeypatch, number, allowed=0):
    """A disk that makes so many hard links, and then none."""
    made, link = [], os.link

    def refuses(source, target, **how):
        if len(made) >= allowed:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        made.append(target)
        link(source, target, **how)

    monkeypatch.setattr(os, "link", refuses)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
@pytest.mark.parametrize("layout", ["market", "folders", "list"])
@pytest.mark.parametrize("allowed", [0, 20])
def test_an_export_to_a_disk_without_links_holds_copies_and_says_so(
    whole, tmp_path, monkeypatch, layout, number, allowed
):
    export_set(whole, tmp_path / "links", layout)
    without_links(monkeypatch, number, allowed)
    told = export_set(whole, tmp_path / "out", layout)
    first, second = told.splitlines()
    assert "15 real and 30 generated images" in first
    kind = "images" if allowed else "real"
    why = f"no hard links from {whole / kind} ({os.strerror(number)})"
    assert second == f"{tmp_path / 'out'}: holds copies: {why}"
    assert tree(tmp_path / "out") == tree(tmp_path / "links")
    links = sum(path.stat().st_nlink > 1 for path in (tmp_path / "out").rglob("*.*"))
    assert links == allowed
    assert "copies" not in export_set(whole, tmp_path / "asked", layout, copy=True)


def test_an_export_that_the_disk_refuses_for_another_reason_is_refused(whole, tmp_path, monkeypatch):
    without_links(monkeypatch, errno.ENOSPC)
    with pytest.raises(UserError, match="No space left"):
        export_set(whole, tmp_path / "out", "list")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_real_images_on_a_disk_without_links_are_copies_and_it_is_said(
    prepared, whole, tmp_path, monkeypatch, number
):
    without_links(monkeypatch, number)
    report = runner.augmented(runner.stub_model(), prepared, tmp_path / "set", AugmentOptions())
    raw = prepared.parent / "raw" / "bounding_box_train"
    assert f"real/ holds copies: no hard links from {raw} ({os.strerror(number)})" in str(report)
    assert set_faults(tmp_path / "set") == []
    for place in (tmp_path / "set" / "real").iterdir():
        assert place.read_bytes() == (raw / place.name).read_bytes()


def test_copies_of_real_images_bear_no_metadata(tmp_path):
    """The copies of a set and of its exports; a second run leaves them, a person can be forgotten."""
    prepared = runner.prepare_drawn(tmp_path)
    raw = tmp_path / "raw" / "bounding_box_train"
    told = Image.Exif()
    told[0x010E] = "SECRET"
    told.get_ifd(0x8825)[29] = "SECRET"
    for place in raw.iterdir():  # the same pixels: exact segments are put in, nothing is encoded
        data, body = place.read_bytes(), told.tobytes()
        segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        place.write_bytes(data[:2] + segment + data[2:])
    prepare_market1501(tmp_path / "raw", tmp_path / "told", holdout=1, size=runner.SIZE)
    out, options = tmp_path / "set", AugmentOptions(real="copy")
    runner.augmented(runner.stub_model(), tmp_path / "told", out, options)
    copies = sorted((out / "real").iterdir())
    assert copies
    for place in copies:
        source = raw / place.name
        assert b"SECRET" in source.read_bytes()
        assert b"SECRET" not in place.read_bytes()
        np.testing.assert_array_equal(np.array(Image.open(place)), np.array(Image.open(source)))
    assert set_faults(out) == []
    before = {place: place.stat().st_mtime_ns for place in copies}
    (out / "real.parquet").unlink()
    copies[0].write_bytes(b"spoiled")
    runner.augmented(runner.stub_model(), tmp_path / "told", out, options)
    after = {place: place.stat().st_mtime_ns for place in copies}
    assert {place for place in copies if after[place] != before[place]} == {copies[0]}
    assert set_faults(out) == []
    runner.augmented(runner.stub_model(), tmp_path / "told", tmp_path / "linked", AugmentOptions())
    export_set(tmp_path / "linked", tmp_path / "market", copy=True)
    for place in copies:
        assert (tmp_path / "market/bounding_box_train" / place.name).read_bytes() == place.read_bytes()
    forget(out, parse_name(copies[0].name).pid)
    assert set_faults(out) == []
    assert not copies[0].exists()
    assert prepared.is_dir()


def test_an_interrupted_set_is_finished_to_the_same_bytes(prepared, whole, tmp_path):
    def stop(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    options = AugmentOptions(factor=3, background="donor", batch_size=8, shard_items=8)
    with pytest.raises(KeyboardInterrupt):
        runner.augmented(runner.stub_model(), prepared, out, options, on_progress=stop)
    assert not (out / "summary.json").exists()
    with pytest.raises(UserError, match="shards are not there"):
        set_faults(out)
    report = runner.augmented(runner.stub_model(), prepared, out, options)
    assert report.kept + report.written == 30
    assert report.kept > 0
    assert tree(out) == tree(whole)
    assert runner.augmented(runner.stub_model(), prepared, out, options).written == 0


@pytest.mark.slow
def test_two_processes_write_the_same_tree(prepared, whole, tmp_path):
    run_runner("write", prepared, tmp_path / "two", 3, 2, 8)
    assert tree(tmp_path / "two") == tree(whole)


def run_runner(*arguments, launcher=()):
    done = subprocess.run(
        [sys.executable, *launcher, RUNNER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()[-1]


def test_another_configuration_is_refused_with_the_keys_that_differ(prepared, copied):
    before = tree(copied)
    options = AugmentOptions(factor=3, background="donor", batch_size=8, shard_items=8, seed=1)
    with pytest.raises(UserError) as error:
        runner.augmented(runner.stub_model(), prepared, copied, options)
    assert "settings.seed: 0 -> 1" in str(error.value)
    assert "settings.factor" not in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(copied) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 1}, "factor 1"),
        ({"factor": 0}, "factor 0"),
        ({"policy": "nearest"}, "policy nearest: unknown"),
        ({"background": "sky"}, "background sky"),
        ({"real": "move"}, "real move: unknown"),
        ({"budget": 0.0}, "budget 0"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_a_bad_option_is_one_clear_line(prepared, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        runner.augmented(runner.stub_model(), prepared, tmp_path / "out", AugmentOptions(**changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_generator_that_has_seen_held_out_people_is_refused(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    for splits in (("val",), ("train", "val"), ("train", "gallery"), ("query",)):
        model = runner.stub_model(people.identity_hash(*splits))
        with pytest.raises(UserError, match="trained on people that this data set holds out"):
            runner.augmented(model, prepared, tmp_path / "out", AugmentOptions())
    prepare_market1501(prepared.parent / "raw", tmp_path / "fewer_held_out", holdout=1, size=runner.SIZE)
    prepare_market1501(prepared.parent / "raw", tmp_path / "more_held_out", holdout=3, size=runner.SIZE)
    model = runner.stub_model(
        PackedPeople.open(tmp_path / "fewer_held_out" / "packed").identity_hash("train")
    )
    with pytest.raises(UserError, match="a holdout of 1 people"):
        runner.augmented(model, tmp_path / "more_held_out", tmp_path / "out", AugmentOptions())
    model = runner.stub_model(people.identity_hash("train"))
    report = runner.augmented(model, prepared, tmp_path / "good", AugmentOptions())
    assert "not recorded" not in str(report)
    assert {row["trained_on"] for row in rows_of(tmp_path / "good")} == {people.identity_hash("train")}


def test_people_without_maps_or_with_one_image_are_told_in_one_line(tmp_path):
    root = runner.draw_data_set(tmp_path / "raw", 3, 1)
    prepare_market1501(root, tmp_path / "prepared", size=runner.SIZE)
    with pytest.raises(UserError, match="same_identity finds no donor") as error:
        runner.augmented(
            runner.stub_model(),
            tmp_path / "prepared",
            tmp_path / "out",
            AugmentOptions(policy="same_identity"),
        )
    assert "\n" not in str(error.value)
    bare = runner.draw_data_set(tmp_path / "bare", 3, 2, parsing=False)
    prepare_market1501(bare, tmp_path / "bare_prepared", size=runner.SIZE)
    with pytest.raises(UserError, match="parsing"):
        runner.augmented(runner.stub_model(), tmp_path / "bare_prepared", tmp_path / "out", AugmentOptions())
    assert not (tmp_path / "out").exists()


def test_an_original_that_changed_is_named(tmp_path):
    prepared = runner.prepare_drawn(tmp_path)
    victim = sorted((tmp_path / "raw" / "bounding_box_train").iterdir())[4]
    victim.write_bytes(victim.read_bytes() + b"\0")
    with pytest.raises(UserError, match=f"{victim.name}: changed since it was prepared"):
        runner.augmented(runner.stub_model(), prepared, tmp_path / "out", AugmentOptions())


def test_a_filter_s_scores_and_reasons_are_in_the_manifest(prepared, tmp_path):
    options = AugmentOptions(filters=FilterOptions(sharpness=True, sharpness_quantile=0.5))
    report = runner.augmented(runner.stub_model(), prepared, tmp_path / "out", options)
    rows = rows_of(tmp_path / "out")
    fallen = [row for row in rows if not row["kept"]]
    assert 0 < len(fallen) < len(rows)
    assert all(row["dropped_because"] == "sharpness" for row in fallen)
    assert max(row["sharpness"] for row in fallen) < min(row["sharpness"] for row in rows if row["kept"])
    assert all(row["identity_distance"] is None for row in rows)
    assert f"dropped: {len(fallen)} sharpness" in str(report)
    assert set_faults(tmp_path / "out") == []
    export_set(tmp_path / "out", tmp_path / "market")
    names = set(os.listdir(tmp_path / "market" / "bounding_box_train"))
    assert not names & {row["file"] for row in fallen}
    assert len(names) == 15 + len(rows) - len(fallen)


# ---- forget and exports


def test_forgetting_leaves_nothing_of_a_person_and_a_sound_set(prepared, copied):
    rows = rows_of(copied)
    derived = {row["file"] for row in rows if 3 in (row["source_pid"], row["donor_pid"])}
    assert len(derived) > 6, "some as donor too"
    (copied / "packed_32x16").mkdir()
    (copied / "packed_32x16" / "images.npy").write_bytes(b"decoded")
    report = forget(copied, 3)
    assert (report.pictures, report.real) == (len(derived), 3)
    assert set_faults(copied) == []
    left = rows_of(copied)
    assert {row["file"] for row in left} == {row["file"] for row in rows} - derived
    assert set(os.listdir(copied / "images")) == {row["file"] for row in left}
    assert not [name for name in os.listdir(copied / "real") if name.startswith("0003")]
    assert not (copied / "packed_32x16").exists()
    assert b"0003_c" not in b"".join(path.read_bytes() for path in copied.rglob("*.json"))
    with pytest.raises(UserError, match="nobody of pid 3"):
        forget(copied, 3)
    forget(copied, 4)
    assert set_faults(copied) == []
    assert '"people": 2' in (copied / "removed.json").read_text()
    options = AugmentOptions(factor=3, background="donor", batch_size=8, shard_items=8)
    with pytest.raises(UserError, match="people were removed"):
        runner.augmented(runner.stub_model(), prepared, copied, options)


def test_forgetting_takes_hidden_leftovers_and_unlisted_pictures_and_names_trainings(
    prepared, copied, tmp_path
):
    """What killed processes left, pictures in no list, runs that used the set; a cache that is a link."""
    hidden = (".packed_32x16.replaced", ".packed_32x16.tmp-0123abcd", ".staging", "packed_64x32")
    for name in hidden:
        (copied / name).mkdir()
        (copied / name / "images.npy").write_bytes(b"decoded people")
    (copied / "images" / ".0003_c1.jpg.tmp-0123abcd").write_bytes(b"a person")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "images.npy").write_bytes(b"of somebody else")
    (copied / "packed_8x4").symlink_to(other)
    theirs = next(name for name in os.listdir(copied / "real") if name.startswith("0003"))
    stem = theirs.rpartition(".")[0]
    unlisted = [f"images/{stem}_g77.jpg", f"real/{stem}.png"]
    for name in (*unlisted, "images/somebody.jpg"):
        (copied / name).write_bytes(b"unlisted")
    runs = tmp_path / "runs"
    for name, folder in (("deep/a", copied), ("b", tmp_path / "another_set")):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps({"generated": {"folder": str(folder)}}))
    (runs / "c").mkdir()
    (runs / "c" / "config.json").write_text("{")
    for number, text in enumerate(("/a\0b", "/\ud800", "/\udcff", "/" + "x" * 5000, "/")):
        (runs / f"d{number}").mkdir()
        (runs / f"d{number}" / "config.json").write_text(json.dumps({"data": {"folder": text}}))
    report = forget(copied, 3, [runs])
    assert report.networks == (runs / "deep" / "a",)
    assert f"{runs / 'deep' / 'a'}: was trained on this set" in str(report)
    assert report.unlisted == ("images/somebody.jpg",)
    assert "images/somebody.jpg" in str(report)
    assert (copied / "images" / "somebody.jpg").exists()
    assert not any((copied / name).exists() for name in unlisted)
    assert not [name for name in os.listdir(copied) if "packed" in name or name.startswith(".staging")]
    assert not [name for name in os.listdir(copied / "images") if name.startswith(".")]
    assert (other / "images.npy").read_bytes() == b"of somebody else"  # the link went, not what it led to
    (copied / "images" / "somebody.jpg").unlink()
    assert set_faults(copied) == []
    with pytest.raises(UserError, match="no such folder"):
        forget(copied, 4, [tmp_path / "absent"])


def test_exports_read_as_what_they_are(whole, tmp_path):
    export_set(whole, tmp_path / "market")
    root = tmp_path / "market"
    names = os.listdir(root / "bounding_box_train")
    assert len(names) == 45
    report = prepare_market1501(root, tmp_path / "again", size=runner.SIZE)
    assert report.splits["train"]["images"] == 45
    assert report.splits["train"]["people"] == 5
    export_set(whole, tmp_path / "folders", "folders", copy=True)
    assert len(os.listdir(tmp_path / "folders" / "train")) == 5
    assert len(os.listdir(tmp_path / "folders" / "train" / "0002")) == 9
    export_set(whole, tmp_path / "list", "list")
    rows = list(csv.DictReader((tmp_path / "list" / "train.csv").open()))
    assert {int(row["label"]) for row in rows} == set(range(5))
    for row in rows:
        assert (tmp_path / "list" / row["path"]).is_file()
        assert parse_name(row["path"]).pid == int(row["pid"])
        assert is_generated(row["path"].rpartition("/")[2]) == (row["synthetic"] == "1")
    with pytest.raises(UserError, match="exists"):
        export_set(whole, tmp_path / "list", "list")


def test_generated_pictures_are_never_tested_on(whole, tmp_path):
    export_set(whole, tmp_path / "market")
    train, query = (tmp_path / "market" / name for name in ("bounding_box_train", "query"))
    query.mkdir()
    for name in ("0002_c1s1_000000_00.jpg", "0002_c1s1_000000_00_g01.jpg"):
        shutil.copy(train / name, query / f"1{name}")
    report = prepare_market1501(tmp_path / "market", tmp_path / "again", holdout=1, size=runner.SIZE)
    assert report.problems["generated-test"] == 1 + 6, "one in query, six of the person held out"
    assert (report.splits["query"]["images"], report.splits["val"]["images"]) == (1, 3)
    assert report.splits["train"]["images"] == 4 * 9


def test_names_keep_their_labels_and_their_copies():
    assert generated_name("0002_c1s1_000451_03.jpg", 1, "jpg") == "0002_c1s1_000451_03_g01.jpg"
    assert generated_name("0002_c1s1_000451_03.jpg.jpg", 120, "png") == "0002_c1s1_000451_03_g120.png"
    assert parse_generated("0002_c1s1_000451_03_g07.jpg") == ("0002_c1s1_000451_03", 7, "jpg")
    assert parse_generated("0002_c1s1_000451_03.jpg") is None
    assert is_generated("0002_c1s1_000451_03_g07.jpg.jpg")
    for name, camera, told, apart in (
        ("0002_c1s1_000451_03_g07.jpg", 12, "0002_c12s1_000451_03_g07.jpg", "0002_c12s1_000451_03_g07-1.jpg"),
        ("0002_c12s1_000451_03_g07.jpg", 2, "0002_c2s1_000451_03_g07.jpg", "0002_c2s1_000451_03_g07-12.jpg"),
        ("0002_c2s1_000451_03_g07.jpg", 2, *["0002_c2s1_000451_03_g07.jpg"] * 2),
        ("of_another_kind_g07.jpg", 2, *["of_another_kind_g07.jpg"] * 2),
    ):
        assert with_camera(name, camera) == told
        assert with_camera(name, camera, apart=True) == apart
        assert is_generated(told)
        assert is_generated(apart)
        if name.startswith("0002"):
            assert parse_name(told) == parse_name(apart) == (2, camera, 1, 451, 3)
    assert not is_generated("0002_c1s1_000451_03-2.jpg")
    assert parse_name("0002_c1s1_000451_03_g07.jpg") == parse_name("0002_c1s1_000451_03.jpg")
    for names, message in (
        (["a_g01.jpg", "A_g01.jpg"], "two files"),
        (["a b_g01.jpg"], "other characters"),
        (["a" * 100 + ".jpg"], "too long"),
    ):
        with pytest.raises(UserError, match=message):
            check_names(names)


# ---- faults


def fault_kinds():
    """Name -> what it does to a set."""

    def part(folder):
        return sorted((folder / "manifest").glob("part-*.parquet"))[1]

    def edit(folder, change):
        from reposer.generation.augmented_rows import columns_of
        from reposer.storage.manifest import read_part, write_part

        path = part(folder)
        rows = read_part(path).to_pylist()
        change(rows)
        write_part(path, rows, columns_of({}))  # sealed anew: only the contents can tell

    def foreign(place):
        return lambda folder: (folder / place).write_bytes(b"x")

    def image(folder, number=5):
        return sorted((folder / "images").iterdir())[number]

    def rename(folder):
        image(folder).rename(folder / "images" / "0002_c1s1_0_0_g01.jpg")

    def swap(folder):
        a, b = image(folder, 3).read_bytes(), image(folder, 4).read_bytes()
        image(folder, 3).write_bytes(b)
        image(folder, 4).write_bytes(a)

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.unlink()  # never through a hard link
        path.write_bytes(data)

    def replace(key, value):
        return lambda folder: edit(folder, lambda rows: rows[2].__setitem__(key, value))

    kinds = {
        "flipped picture": lambda folder: flip(image(folder)),
        "missing picture": lambda folder: image(folder).unlink(),
        "foreign picture": lambda folder: (folder / "images" / "0002_c1s1_000000_00_g09.jpg").write_bytes(
            b"x"
        ),
        "foreign file": foreign("images/Thumbs.db"),
        "renamed picture": lambda folder: image(folder).rename(
            image(folder).with_name("0002_c1s1_0_0_g01.jpg")
        ),
        "swapped pictures": swap,
        "flipped part": lambda folder: flip(part(folder)),
        "foreign part": foreign("manifest/part-00099.parquet"),
        "foreign in root": foreign("notes.txt"),
        "changed real image": lambda folder: flip(sorted((folder / "real").iterdir())[2]),
        "missing real image": lambda folder: sorted((folder / "real").iterdir())[2].unlink(),
        "foreign real image": foreign("real/0099_c1s1_000000_00.jpg"),
        "changed real list": lambda folder: flip(folder / "real.parquet"),
        "changed summary": lambda folder: (folder / "summary.json").write_text('{"generated": 1}'),
        "doubled row": lambda folder: edit(folder, lambda rows: rows.append(dict(rows[0]))),
        "missing row": lambda folder: edit(folder, lambda rows: rows.pop()),
    }
    wrong = {
        **{"pid": 99, "camid": 9, "source_pid": 99, "donor_pid": 99, "copy": 7, "policy": "coverage"},
        **{"synthetic": False, "kept": False, "dropped_because": "identity", "checkpoint": "0" * 64},
        **{"source": "0099_c1s1_000000_00.jpg", "donor": "0099_c1s1_000000_00.jpg", "trained_on": "f" * 64},
        **{"file": "0002_c1s1_000000_00_g77.jpg", "sha256": "0" * 64, "seed": 9, "background": "source"},
        **{"donor_sha256": "0" * 64, "source_sha256": "0" * 64, "donor_camid": 9, "sharpness": 1.0},
    }
    return kinds | {f"row with {key} {value}": replace(key, value) for key, value in wrong.items()}


@pytest.mark.parametrize("kind", fault_kinds())
def test_every_kind_of_fault_is_found(copied, kind):
    assert set_faults(copied) == []
    fault_kinds()[kind](copied)
    assert set_faults(copied), kind


def test_a_prepared_folder_opens_no_data_set_that_the_user_does_not_name(prepared, tmp_path, monkeypatch):
    """A stranger's report.json may name any folder: it is shown in the advice and never looked into."""
    foreign = Path(shutil.copytree(prepared, tmp_path / "foreign"))
    victim = Path(shutil.copytree(prepared.parent / "raw", tmp_path / "my photos"))
    report = json.loads((foreign / "report.json").read_text())
    report["config"]["data_set"] = str(victim)
    (foreign / "report.json").write_text(json.dumps(report))
    opened = []
    real_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **how: opened.append(path) or real_open(path, *rest, **how)
    )
    for how in ("link", "copy"):
        with pytest.raises(UserError, match=f"add --images '{victim}'.*or --real none"):
            runner.augmented(
                runner.stub_model(), foreign, tmp_path / "out", AugmentOptions(real=how), images=None
            )
    with pytest.raises(UserError, match="no such folder"):
        runner.augmented(
            runner.stub_model(), foreign, tmp_path / "out", AugmentOptions(), images=tmp_path / "no"
        )
    assert not [path for path in opened if str(path).startswith(str(victim))]
    assert not (tmp_path / "out").exists()
