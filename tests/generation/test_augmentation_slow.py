"""Augmented sets at size: killed again and again, any number of processes, a thousand faults, a full disk.

``REPOSER_AUGMENT_PICTURES`` sets the size of the job that is killed: 200,000 for the full figure.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import augment_runner as runner
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reposer.data.layouts.tables import unpack_set
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.generation import set_exports
from reposer.generation.lineage import set_faults
from reposer.storage.manifest import read_rows

PICTURES = int(os.environ.get("REPOSER_AUGMENT_PICTURES", "20000"))
KILLS = 50
HERE = Path(__file__).parent
RUNNER = Path(runner.__file__)


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fast = load("test_augmentation")

pytestmark = pytest.mark.slow


def tree_hash(folder):
    """sha256 over the names and contents of everything below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """50 training people of four images: 200 sources."""
    return runner.prepare_drawn(tmp_path_factory.mktemp("data"), people=51, images=4)


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """Factor 6 of it: 1,000 pictures in 16 shards."""
    out = tmp_path_factory.mktemp("sets") / "whole"
    runner.write(prepared, out, 6, shard=64)
    return out


def test_fifty_kills_lose_and_double_nothing(tmp_path_factory, tmp_path):
    people, copies = max(51, PICTURES // 400 + 1), 100
    prepared = runner.prepare_drawn(tmp_path, people=people, images=4)
    sources = 4 * (people - 1)
    copies = PICTURES // sources
    runner.write(prepared, tmp_path / "whole", copies + 1, shard=128)
    kills = fast.run_runner("kills", prepared, tmp_path / "killed", copies + 1, 1, 128, KILLS)
    assert int(kills) == KILLS
    assert tree_hash(tmp_path / "killed") == tree_hash(tmp_path / "whole")
    files = read_rows(tmp_path / "killed")["file"].to_pylist()
    assert len(files) == len(set(files)) == sources * copies
    assert set_faults(tmp_path / "killed") == []


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_writes_the_same_tree(prepared, whole, tmp_path, processes):
    fast.run_runner("write", prepared, tmp_path / "out", 6, processes, 64)
    assert tree_hash(tmp_path / "out") == tree_hash(whole)


def test_torchrun_writes_the_same_tree(prepared, whole, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    fast.run_runner("write", prepared, tmp_path / "out", 6, 1, 64, launcher=launcher)
    assert tree_hash(tmp_path / "out") == tree_hash(whole)


@pytest.mark.parametrize("processes", [1, 4])
def test_workers_of_their_own_write_the_same_tree(prepared, whole, tmp_path, processes):
    """As tasks of an array: no process group, each by its number."""
    out = tmp_path / "out"
    fast.run_runner("plan", prepared, out, 6, 1, 64)
    line = [sys.executable, str(RUNNER), "work", prepared, out, "6", "1", "64"]
    place = {"SLURM_ARRAY_TASK_COUNT": str(processes), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(line, env={**os.environ, **place, "SLURM_ARRAY_TASK_ID": str(i)})
        for i in range(processes)
    ]
    assert [one.wait() for one in started] == [0] * processes
    fast.run_runner("finish", prepared, out, 6, 1, 64)
    assert tree_hash(out) == tree_hash(whole)


def test_workers_under_torchrun_form_no_group(prepared, whole, tmp_path):
    out = tmp_path / "out"
    fast.run_runner("plan", prepared, out, 6, 1, 64)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    fast.run_runner("work", prepared, out, 6, 1, 64, launcher=launcher)
    fast.run_runner("finish", prepared, out, 6, 1, 64)
    assert tree_hash(out) == tree_hash(whole)


def test_an_array_of_seven_in_random_order_two_of_them_killed(prepared, whole, tmp_path):
    out, order = tmp_path / "out", random.Random(3).sample(range(7), 7)
    fast.run_runner("plan", prepared, out, 6, 1, 64)
    for number, i in enumerate([*order, *order[:2]]):
        done = len(list((out / "manifest").glob("_*")))
        line = [sys.executable, str(RUNNER), "work", prepared, out, "6", "1", "64"]
        place = {"SLURM_ARRAY_TASK_COUNT": "7", "SLURM_ARRAY_TASK_ID": str(i), "OMP_NUM_THREADS": "1"}
        task = subprocess.Popen(line, env={**os.environ, **place})
        while number < 2 and task.poll() is None:
            if len(list((out / "manifest").glob("_*"))) > done:
                task.kill()
        assert task.wait() == (-9 if number < 2 else 0)
    fast.run_runner("finish", prepared, out, 6, 1, 64)
    assert tree_hash(out) == tree_hash(whole)


def test_webdataset_and_datasets_read_the_packed_layouts(whole, tmp_path, monkeypatch):
    """The real libraries: every image, its bytes or pixels, and its labels."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    webdataset = pytest.importorskip("webdataset")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 400)
    wanted = {}
    for row in read_rows(whole).to_pylist():
        wanted[row["file"]] = (row["pid"], row["camid"], True, (whole / "images" / row["file"]).read_bytes())
    for row in pq.read_table(whole / "real.parquet").to_pylist():
        wanted[row["file"]] = (row["pid"], row["camid"], False, (whole / "real" / row["file"]).read_bytes())
    for layout in ("webdataset", "parquet"):
        set_exports.export_set(whole, tmp_path / layout, layout)

    def values(told):
        return told["pid"], told["camid"], told["synthetic"]

    tars = sorted(map(str, (tmp_path / "webdataset").glob("*.tar")))
    assert len(tars) == 3
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        told = json.loads(sample["json"])
        found[told["file"]] = (*values(told), sample["jpg"])
    assert found == wanted
    for sample in datasets.load_dataset("webdataset", data_files=tars, split="train"):
        told, image = sample["json"], np.asarray(sample["jpg"])
        *labels, data = wanted[told["file"]]
        assert values(told) == tuple(labels)
        assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(data))))
    loaded = datasets.load_dataset(str(tmp_path / "parquet" / "data"), split="train")
    assert loaded.num_rows == len(wanted)
    for sample in loaded:
        *labels, data = wanted[sample["file"]]
        assert values(sample) == tuple(labels)
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(Image.open(io.BytesIO(data))))


def unsigned_requests(server, most):
    """How many more requests of nobody it knows it answers."""
    words = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", most, words, method="POST")
    urllib.request.urlopen(request).close()


@pytest.fixture
def s3(monkeypatch):
    """A real server of S3 on this machine, with a bucket "sets"; its address."""
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    s3fs = pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    words = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
    for name, value in {**words, "DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("sets")
    yield address
    unsigned_requests(address, b"inf")
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_a_packed_set_goes_through_s3_and_a_bucket_without_rights_is_one_line(
    s3, whole, tmp_path, monkeypatch
):
    import s3fs

    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 400)
    for layout in ("webdataset", "parquet"):
        place = f"s3://sets/{layout}/one"
        set_exports.export_set(whole, tmp_path / layout, layout)
        set_exports.export_set(whole, place, layout)
        there = s3fs.S3FileSystem().find(place)
        here = [path for path in (tmp_path / layout).rglob("*") if path.is_file()]
        assert len(there) == len(here)
        for path in here:
            stored = s3fs.S3FileSystem().cat(f"{place}/{path.relative_to(tmp_path / layout)}")
            assert stored == path.read_bytes()
        unpack_set(place, tmp_path / f"{layout} unpacked")
    assert tree_hash(tmp_path / "webdataset unpacked") == tree_hash(tmp_path / "parquet unpacked")
    here, there = (
        prepare_people("packed", place, tmp_path / f"prepared {number}").manifest_sha256
        for number, place in enumerate((tmp_path / "parquet", "s3://sets/webdataset/one"))
    )
    assert here == there
    with pytest.raises(UserError, match=r"s3://nobodys/one.*: check the name, your rights there"):
        set_exports.export_set(whole, "s3://nobodys/one", "webdataset")
    unsigned_requests(s3, b"0")
    s3fs.S3FileSystem.clear_instance_cache()
    for attempt in (
        lambda: set_exports.export_set(whole, "s3://sets/two", "webdataset"),
        lambda: unpack_set("s3://sets/parquet/one", tmp_path / "nothing"),
        lambda: prepare_people("packed", "s3://sets/parquet/one", tmp_path / "nothing"),
    ):
        with pytest.raises(UserError) as refusal:
            attempt()
        assert "s3://sets/" in str(refusal.value)
        assert str(refusal.value).count("\n") == 0
        assert "check the name, your rights there" in str(refusal.value)
    assert not (tmp_path / "nothing").exists()


def test_two_processes_killed_with_their_parent_resume_to_the_same_tree(prepared, whole, tmp_path):
    assert int(fast.run_runner("kills", prepared, tmp_path / "out", 6, 2, 64, 3)) == 3
    assert tree_hash(tmp_path / "out") == tree_hash(whole)


def test_a_thousand_faults_are_found(whole, tmp_path):
    kinds, rng = fast.fault_kinds(), random.Random(0)
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    assert set_faults(folder) == []
    missed = []
    for number in range(1000):
        kind = rng.choice(sorted(kinds))
        kinds[kind](folder)
        if not set_faults(folder):
            missed.append(f"{number} {kind}")
        mend(folder, whole)
    assert missed == []


def mend(folder, whole):
    """Make the copy whole again, touching only what differs in size or time."""
    done = ["rsync", "-a", "--delete", "--checksum", f"{whole}/", f"{folder}/"]
    if shutil.which("rsync"):
        subprocess.run(done, check=True)
        return
    kept = {path.relative_to(whole) for path in whole.rglob("*")}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder) not in kept:
            path.unlink()
    for name in kept:
        source, target = whole / name, folder / name
        if source.is_file() and (not target.exists() or target.read_bytes() != source.read_bytes()):
            target.unlink(missing_ok=True)
            shutil.copy2(source, target)


def test_a_removal_killed_anywhere_is_finished_by_the_same_call(tmp_path):
    prepared = runner.prepare_drawn(tmp_path)
    runner.write(prepared, tmp_path / "set", 3, shard=8)
    kills = int(fast.run_runner("forget", tmp_path / "set", tmp_path / "out", 3))
    assert kills > 30
    trees = {tree_hash(tmp_path / "out" / f"{n}") for n in range(kills + 1)}
    assert len(trees) == 1
    assert set_faults(tmp_path / "out" / "0") == []


def test_a_full_disk_says_how_far_it_came_and_goes_on_with_more_room(prepared, whole, tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no unprivileged mounts here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=3m none {disk}\n"
        f"{sys.executable} {RUNNER} write {prepared} {disk}/out 6 1 64 2>&1 | tail -1\n"
        f"mount -o remount,size=60m {disk}\n"
        f"{sys.executable} {RUNNER} write {prepared} {disk}/out 6 1 64 >/dev/null\n"
        f"diff -r {disk}/out {whole} && echo equal\n"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    first, *_, last = done.stdout.strip().splitlines()
    assert "of 1,000 pictures: No space left on device: make room" in first, done.stdout + done.stderr
    assert last == "equal"
