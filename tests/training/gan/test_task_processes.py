"""Two processes under torchrun train the network that one process trains with the same global batch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import staged_generator
import torch
from tiny_training import ONE_THREAD, TRAIN, final_hashes, tiny_config

from reposer.config import save_config
from reposer.models.generators import GENERATORS
from reposer.storage import checkpoint
from reposer.training.gan.config import (
    AdversarialConfig,
    GanConfig,
    GanOutputConfig,
    LossWeights,
    ScheduleConfig,
    StageConfig,
)

pytestmark = pytest.mark.slow


DOUBLE = """
import torch
import torch.nn.functional as F

def in_double(function):
    return lambda image, weight, *rest: function(image.to(weight.dtype), weight, *rest)

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
F.conv2d, F.conv_transpose2d = in_double(F.conv2d), in_double(F.conv_transpose2d)
"""


def _torchrun(
    config: GanConfig, run: Path, folder: Path, before: str = "", processes: int = 2
) -> subprocess.CompletedProcess:
    save_config(config, folder / "config.json")
    script = folder / "script.py"
    script.write_text(before + TRAIN)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *launcher, str(script), str(folder / "config.json"), str(run)]
    return subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=900)


def _config(prepared: Path, **changes) -> GanConfig:
    """Instance norm: BatchNorm on CPUs sees only its own process's part."""
    base = tiny_config(prepared)
    return tiny_config(
        prepared,
        data=base.data.changed(pairs_per_epoch=40, flip=True),
        generator_args={**base.generator_args, "norm": "instance", "dropout": 0.0},
        discriminator_args={**base.discriminator_args, "norm": "instance"},
        **{"gan": AdversarialConfig(pool=0), **changes},
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(prepared, tmp_path, accumulate):
    """In float64. In float32, where they add in another order, a value on a kink of LeakyReLU or of the
    absolute error in one lies beside it in the other, sooner or later: 6e-8 for 13 steps, then 1e-4.
    """
    config = _config(prepared, accumulate=accumulate)
    runs = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        done = _torchrun(config, run, tmp_path, DOUBLE, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(checkpoint.latest(run / "checkpoints"))
    one, two = runs
    assert (one.step, two.step, two.meta["world_size"]) == (20, 20, 2)
    for group in ("generator", "discriminator", "ema"):
        names = sorted(one.groups[group])
        a, b = (torch.cat([run.groups[group][name].flatten() for name in names]) for run in (one, two))
        assert a.dtype == torch.float64
        assert (a - b).norm() / a.norm() < 1e-13, group


def test_two_processes_resume_bit_for_bit(prepared, tmp_path):
    """With a pool in each process; stopped by a signal that only the second one gets."""
    config = _config(
        prepared,
        gan=AdversarialConfig(pool=4),
        output=GanOutputConfig(log_every=3, sample_every=8, validate_every=8, checkpoint_every=100),
    )
    stop = (
        "import os\nfrom reposer.training.gan import task as gan\nreal, calls = gan.generator_loss, []\n"
        "def signalling(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 7 and os.environ['RANK'] == '1': os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "    return real(*args)\n"
        "gan.generator_loss = signalling\n"
    )
    whole = _torchrun(config, tmp_path / "whole", tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    stopped = _torchrun(config, tmp_path / "stopped", tmp_path, before=stop)
    assert stopped.returncode != 0
    assert checkpoint.latest(tmp_path / "stopped" / "checkpoints").step == 7
    again = _torchrun(config, tmp_path / "stopped", tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert final_hashes(tmp_path / "stopped") == final_hashes(tmp_path / "whole")


def test_two_processes_train_in_stages_and_resume_bit_for_bit(prepared, tmp_path, monkeypatch):
    """What a stage leaves out has no gradient, and is waited for by nobody."""
    helpers = str(Path(staged_generator.__file__).parent)
    toy = (
        f"import sys; sys.path.insert(0, {helpers!r}); from staged_generator import Coarse\n"
        "from reposer.models.generators import GENERATORS; GENERATORS['coarse'] = Coarse\n"
    )
    stages = (
        StageConfig(name="first", share=1, discriminator=False),
        StageConfig(name="all", share=15),
    )
    monkeypatch.setitem(GENERATORS, "coarse", staged_generator.Coarse)
    config = tiny_config(
        prepared,
        generator="coarse",
        generator_args={},
        schedule=ScheduleConfig(epochs_const=1, epochs_decay=1, stages=stages),
    )
    stopped = toy + TRAIN.replace("device='cpu'", "device='cpu', max_minutes=0") + "\n"  # at the boundary
    for before in (toy, stopped):
        run = tmp_path / str(len(before))
        done = _torchrun(config, run, tmp_path, before=before)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (tmp_path / str(len(before)) for before in (toy, stopped))
    assert final_hashes(one) == final_hashes(two)


def test_what_follows_from_data_before_the_first_step_is_the_same_in_all_processes(prepared, tmp_path):
    """VU-Net's start: each process has noise of its own."""
    config = tiny_config(
        prepared,
        generator="vunet",
        generator_args={"size": (32, 16), "width": 4, "cap": 8, "scales": 4},
        weights=LossWeights(adversarial=0, l1=1, perceptual=0, kl=0.1),
        gan=AdversarialConfig(discriminator=False),
        schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0),
    )
    tell = (
        "import hashlib, os\nfrom reposer.training.gan.task import GanTask\nreal = GanTask.step\n"
        "def step(self, batch):\n"
        "    real(self, batch)\n"
        "    told = hashlib.sha256()\n"
        "    for tensor in self.state.generator.state_dict().values():\n"
        "        told.update(tensor.numpy().tobytes())\n"
        f"    place = {str(tmp_path)!r} + '/rank' + os.environ['RANK']\n"
        "    open(place, 'w').write(told.hexdigest())\n"
        "GanTask.step = step\n"
    )
    done = _torchrun(config, tmp_path / "run", tmp_path, before=tell)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()


def test_a_dead_process_ends_the_other(prepared, tmp_path):
    die = (
        "import os\nfrom reposer.training.gan import task as gan\nreal, calls = gan.generator_loss, []\n"
        "def dying(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 3 and os.environ['RANK'] == '1': os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return real(*args)\n"
        "gan.generator_loss = dying\n"
    )
    done = _torchrun(_config(prepared), tmp_path / "run", tmp_path, before=die)
    assert done.returncode != 0
    config = str(tmp_path / "config.json").encode()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        if int(process.parent.name) != os.getpid() and process.exists():
            assert config not in process.read_bytes()


# In a training of a node: says from which step it went on; and, where it is told to, waits in its sixth step.
HOLD = """
import os, time
from pathlib import Path
from reposer.training.gan.task import GanTask
from reposer.training.run_writer import RunWriter
resume, step, begun = RunWriter._resume, GanTask.step, []
def telling(self):
    found = resume(self)
    print(f'went on from {found}.', flush=True)
    return found
def holding(self, batch):
    begun.append(1)
    if len(begun) == 6 and 'HOLD' in os.environ:
        Path(os.environ['HOLD']).touch()
        time.sleep(3600)
    step(self, batch)
RunWriter._resume, GanTask.step = telling, holding
"""
_PATIENCE = (
    "join_timeout=1200,read_timeout=600,heartbeat_timeout=60,keep_alive_max_attempt=6"  # seconds; of 5 s
)


def test_a_node_that_is_killed_and_comes_back_costs_the_steps_since_the_last_checkpoint(prepared, tmp_path):
    """Two nodes of one process, as ``torchrun --nnodes 2`` starts them; all of the second is killed."""
    every = GanOutputConfig(log_every=3, sample_every=8, validate_every=8, checkpoint_every=4)
    base = _config(prepared, output=every)
    config = base.changed(data=base.data.changed(pairs_per_epoch=16))  # eight steps
    whole = _torchrun(config, tmp_path / "whole", tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    run, script, held = tmp_path / "nodes", tmp_path / "nodes.py", tmp_path / "held"
    script.write_text(HOLD + TRAIN)
    # else an agent that stays never tells a new one where they meet (torch's dynamic_rendezvous.py)
    environment = {**ONE_THREAD, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def node(number: int, **more: str) -> subprocess.Popen:
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "a"]
        launcher += ["--rdzv-conf", f"is_host={int(number == 0)},{_PATIENCE}", "--max-restarts", "5"]
        command = [sys.executable, *launcher, str(script), str(tmp_path / "config.json"), str(run)]
        with (tmp_path / f"{number}.log").open("ab") as log:
            return subprocess.Popen(command, env={**environment, **more}, stdout=log, stderr=log)

    nodes = [node(0), node(1, HOLD=str(held))]
    try:
        _wait(held.exists, nodes)
        assert [number for number, _ in checkpoint.steps(run / "checkpoints")] == [4]
        _kill(nodes[1])
        nodes[1] = node(1)
        assert [one.wait(1200) for one in nodes] == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    finally:
        for one in nodes:
            _kill(one)
    for number in range(2):
        log = (tmp_path / f"{number}.log").read_text()
        assert set(re.findall(r"went on from (-?\d+)\.", log)) == {"-1", "4"}
    assert final_hashes(run) == final_hashes(tmp_path / "whole")


def _kill(node: subprocess.Popen) -> None:
    """With all that it started, as where its machine is lost."""
    with suppress(psutil.NoSuchProcess):
        agent = psutil.Process(node.pid)
        for process in (*agent.children(recursive=True), agent):
            process.kill()
    node.wait()


def _wait(true: Callable[[], object], nodes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 1200
    while not true():
        assert time.monotonic() < end
        assert all(one.poll() is None for one in nodes), "a node ended early"
        time.sleep(0.05)
