"""Workers as tasks of Ray: a cluster of two nodes on this machine, of which one is lost in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = str(Path(__file__).parents[1] / "helpers")
sys.path.insert(0, HERE)  # processes of Ray find the job by its module
from ray_job import do, note, refuse  # noqa: E402

from reposer.errors import UserError  # noqa: E402
from reposer.jobs.workers import RayCluster, Step, spread_copies, with_ray  # noqa: E402


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_without_ray_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed: pip install 'reposer\[ray\]'"):
        with_ray(partial(do, tmp_path / "out", 4, 0.0), Step(engine=RayCluster()), 2)


def test_a_ray_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def init(*args, **kwargs):
        raise Exception("The current node timed out during startup.\nSee the logs")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    for address, told in (
        (None, "Ray does not start on this machine"),
        ("auto", "no cluster of Ray answers"),
    ):
        with pytest.raises(UserError, match=rf"{told} \(The current node timed out during startup\.\): "):
            with_ray(partial(do, tmp_path / "out", 4, 0.0), Step(engine=RayCluster(address)), 2)


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two nodes of one: two processes that work, on however small a machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((HERE, *sys.path)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # its 15 gets no time at all on a busy machine
    small = {"object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    try:
        nodes = [made.add_node(num_cpus=1, **small) for _ in range(2)]
        made.wait_for_nodes(timeout=300)
        yield made, nodes
    finally:
        made.shutdown()


@pytest.mark.slow
def test_a_lost_node_costs_its_unfinished_shards_and_nothing_else(cluster, tmp_path):
    made, nodes = cluster
    out, items = tmp_path / "out", 80
    do(tmp_path / "whole", items, 0.0)

    workers, lost = set(), []

    def lose_one():
        """When both nodes work, and there is enough left for the other one."""
        while len(workers) < 2 and not (out / "seal.json").exists():
            workers.update(json.loads(p.read_bytes().split(b"\n")[0] or b"{}").get("pid") for p in claims())
            workers.discard(None)
            time.sleep(0.02)
        lost.append(len(list(out.glob("manifest/_*"))))
        made.remove_node(nodes[0], allow_graceful=False)

    def claims():
        return [path for path in out.glob(".claims/*/*") if path.suffix != ".seal"]

    killer = threading.Thread(target=lose_one, daemon=True)
    killer.start()
    step = Step(lease=2, engine=RayCluster(made.address, cpus=1))
    with_ray(partial(do, out, items, 0.25), step, 2)
    killer.join(60)
    assert len(workers) == 2
    assert lost[0] < items // 4, "the node was lost after the job's end"
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.slow
def test_errors_come_with_their_text_and_shares_with_fractions(cluster, tmp_path):
    made, _ = cluster
    engine = RayCluster(made.address, cpus=0.5)
    with pytest.raises(UserError, match="no picture: look again"):
        with_ray(refuse, Step(engine=engine), 2)
    spread_copies(partial(note, tmp_path), engine, 5)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "nonsense", "127.0.0.1:x"])
def test_an_address_where_nobody_answers_is_one_line_at_once(tmp_path, address):
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(UserError, match=f"--address {address}: no cluster of Ray answers there"):
        with_ray(partial(do, tmp_path / "out", 4, 0.0), Step(engine=RayCluster(address)), 1)
    assert time.monotonic() - started < 20
