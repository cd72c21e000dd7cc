"""Workers as tasks of Ray: a cluster of two nodes on this machine, of which one is lost in the middle."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

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


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two nodes of two."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((HERE, *sys.path)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=2) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


@pytest.mark.slow
def test_a_lost_node_costs_its_unfinished_shards_and_nothing_else(cluster, tmp_path):
    made, nodes = cluster
    out, items = tmp_path / "out", 160
    do(tmp_path / "whole", items, 0.0)

    def lose_one():
        while len(list(out.glob("manifest/_*"))) < 5:
            time.sleep(0.05)
        made.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=lose_one)
    killer.start()
    step = Step(lease=2, engine=RayCluster(made.address, cpus=1))
    with_ray(partial(do, out, items, 0.05), step, 4)
    killer.join()
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
