"""``reposer slurm``: its script against an sbatch that runs each job at once, and against SLURM itself.

The slow half starts Debian's slurmctld, slurmd and munged on this machine: it needs root and the packages
slurm-wlm and munge.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from annotate_runner import draw_folder, tree
from augment_runner import prepare_drawn
from typer.testing import CliRunner

from reposer.annotation import journal
from reposer.cli.main import app
from reposer.data.keypoints import write_keypoints_csv
from reposer.errors import UserError

SBATCH = """#!{python}
import json, os, sys
log = os.environ["FAKE_LOG"]
jobs = [json.loads(line) for line in open(log)] if os.path.exists(log) else []
if "--fail" in sys.argv:
    sys.exit("sbatch: error: invalid partition specified: nowhere")
with open(log, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
print(f"{{101 + len(jobs)}};cluster")
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A command of this name; returns what it was called with so far."""
    place = tmp_path / "bin" / "sbatch"
    place.parent.mkdir()
    place.write_text(SBATCH.format(python=sys.executable))
    place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


@pytest.fixture
def people(tmp_path, monkeypatch):
    """Twelve images and a table of their keypoints: an annotation that needs no network."""
    monkeypatch.setattr(journal, "SHARD_ITEMS", 4)
    folder = draw_folder(tmp_path / "my people", 12)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    write_keypoints_csv(tmp_path / "table.csv", {name: np.full((18, 2), 7, np.float32) for name in names})
    return folder


def words(folder, tmp_path):
    return [
        "annotate",
        str(folder),
        *f"--parser none --mask none --keypoints colon:{tmp_path}/table.csv".split(),
    ]


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def run_wrapped(job, monkeypatch):
    """The command of a job, in this process, once for each task of its array."""
    wrapped = next(word.removeprefix("--wrap=") for word in job if word.startswith("--wrap="))
    line = shlex.split(wrapped)
    assert line[:3] == [sys.executable, "-m", "reposer"]
    array = next((word.removeprefix("--array=0-") for word in job if word.startswith("--array=")), None)
    with monkeypatch.context() as patch:
        for task in range(1 if array is None else int(array) + 1):
            if array is not None:
                patch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                patch.setenv("SLURM_ARRAY_TASK_COUNT", str(int(array) + 1))
            print(call(*line[3:]))


def test_the_jobs_of_the_script_write_what_one_command_does(people, sbatch, tmp_path, monkeypatch):
    whole = Path(shutil.copytree(people, tmp_path / "whole"))
    call(*words(whole, tmp_path))
    told = call("slurm", *words(people, tmp_path), "--array", 5, "--sbatch=--mem=8G", "--submit")
    assert told == "plan 101;cluster, array 102;cluster, finish 103;cluster\n"
    plan, work, finish = sbatch()
    assert all("--mem=8G" in job and "--parsable" in job for job in (plan, work, finish))
    assert "--array=0-4" in work
    assert "--requeue" in work
    assert "--dependency=afterok:101" in work
    assert "--dependency=afterany:102" in finish
    for job in (plan, work, finish):
        run_wrapped(job, monkeypatch)
    (people / "annotation" / "report.html").unlink()  # it names the folder
    (whole / "annotation" / "report.html").unlink()
    assert tree(people) == tree(whole)


def test_a_script_is_printed_and_a_study_is_an_array_alone(people, tmp_path):
    script = call("slurm", "study", "augmentation", "--data", "d", "--out", "o o", "--array", 3)
    assert script.count("sbatch") == 1
    assert "--array=0-2" in script
    assert shlex.quote("o o") in shlex.split(script.splitlines()[2])[-1]
    assert call("slurm", *words(people, tmp_path), "--array", 2).count("sbatch ") == 3
    assert call("slurm", *words(people, tmp_path), "--lease", 30, "--array", 2).count("--lease 30") == 3
    assert subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=False).returncode == 0


AUGMENT = ("augment", "m", "--data", "d", "--out", "o")
STUDY = ("study", "augmentation", "--data", "d", "--out", "o")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "san_demo", "--array", "2"], "command train: unknown"),
        ([*AUGMENT, "--array", "2", "--step", "work"], "--step: has no place"),
        (["annotate", "f", "--array", "2", "--processes", "3"], "--processes: has no place"),
        ([*AUGMENT, "--array", "2", "--engine", "ray"], "--engine: has no place"),
        (["annotate", "f", "--array", "2", "--engine", "ray"], "--engine: has no place"),
        (
            ["study", "augmentation", "--data", "d", "--out", "o", "--array", "2", "--engine", "ray"],
            "--engine: has no place",
        ),
        *(
            (
                [*words, "--array", "2", f"--{option}", value],
                f"--{option}: has no place .*: leave it out{more}",
            )
            for words in (AUGMENT, ("annotate", "f"), STUDY)
            for option, value, more in (
                ("address", "x:1", "$"),
                ("cpus", "8", ", and ask SLURM, as --sbatch=-c8"),
                ("gpus", "0.5", ", and ask SLURM, as --sbatch=--gpus=1"),
            )
        ),
        ([*STUDY, "--array", "2", "--workers", "4"], "--workers: has no place"),
        ([*AUGMENT, "--array", "2", "--shard", "0/2"], "--shard: has no place"),
        (
            [*AUGMENT, "--array", "1", "--sbatch=--fail", "--submit"],
            "SLURM refused: sbatch: error: invalid partition specified: nowhere",
        ),
    ],
)
def test_bad_words_are_told_before_anything_waits_in_a_queue(sbatch, line, said):
    with pytest.raises(UserError, match=said):
        call("slurm", *line)


def test_a_word_that_the_inner_command_does_not_know_is_a_usage_error(sbatch, tmp_path):
    result = CliRunner().invoke(app, ["slurm", "augment", "m", "--data", "d", "--oout", "o", "--array", "2"])
    assert result.exit_code == 2
    assert not (tmp_path / "log").exists()


# ---- SLURM itself

CONF = """ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/ctld.pid
SlurmdPidFile={place}/d.pid
SlurmctldLogFile={place}/ctld.log
SlurmdLogFile={place}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
JobRequeue=1
MinJobAge=300
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "mungekey")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of this machine alone; ends with the test."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if getpass.getuser() != "root":
        pytest.skip("needs root: slurmd starts jobs as other users")
    place = Path(tmp_path / "slurm")
    (place / "state").mkdir(parents=True)
    (place / "spool").mkdir()
    key, host = place / "munge.key", socket.gethostname().split(".")[0]
    subprocess.run(["mungekey", "-c", "-k", key], check=True)
    conf = CONF.format(host=host, place=place, ports=(free_port(), free_port()), cpus=os.cpu_count())
    (place / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(place / "slurm.conf"))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = [f"--{option}={place}/munge.{name}" for option, name in files.items()]
    daemons = [
        subprocess.Popen(["munged", "--foreground", "--force", *munged]),
        subprocess.Popen(["slurmctld", "-D", "-i", "-c"]),
        subprocess.Popen(["slurmd", "-D", "-N", host]),
    ]
    try:
        wait(
            lambda: "idle" in said("sinfo", "-h", "-o", "%t"),
            300,
            lambda: (place / "ctld.log").read_text()[-2000:],
        )
        yield place
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


def said(*line):
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout


def wait(true, seconds, why=str):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


@pytest.mark.slow
def test_an_array_larger_than_the_shards_with_a_task_killed_and_queued_again(slurm, tmp_path):
    """Nine tasks for five shards of pictures; the first that works is killed, and SLURM starts it again."""
    prepared = prepare_drawn(tmp_path, people=6, images=4)
    runner = Path(__file__).parents[1] / "helpers" / "augment_runner.py"

    def line(mode, out):
        return [sys.executable, str(runner), mode, str(prepared), str(out), "5", "1", "16"]

    subprocess.run(line("write", tmp_path / "whole"), check=True, capture_output=True)
    from reposer.jobs.workers import slurm_script

    out, environment = tmp_path / "out", {**os.environ, "OMP_NUM_THREADS": "1"}
    shim = tmp_path / "shim.sh"  # the command with --step NAME at its end is the runner with NAME
    words = " ".join(map(shlex.quote, line("$MODE", out))).replace("'$MODE'", '"$2"')
    shim.write_text(f"#!/bin/sh\nexec {words}\n")
    shim.chmod(0o755)
    options = ["--ntasks=1", f"--output={tmp_path}/%A_%a.log", "--open-mode=append"]
    script = slurm_script([str(shim)], "augment", 9, options)
    done = subprocess.run(
        ["/bin/sh"], input=script, text=True, capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    array = done.stdout.split("array ")[1].split(",")[0]
    wait(lambda: list(out.glob(".claims/*/*.0")), 600, lambda: said("squeue"))
    victim = json.loads(next(iter(out.glob(".claims/*/*.0"))).read_bytes().partition(b"\n")[0])["pid"]
    os.kill(victim, signal.SIGKILL)
    first = said("squeue", "-h", "-r", "-j", array, "-t", "R", "-o", "%i").split()
    if first:
        subprocess.run(["scontrol", "requeue", first[0]], check=False, capture_output=True)
    wait(lambda: not said("squeue", "-h").strip(), 900, lambda: said("squeue"))
    assert not (out / ".claims").exists(), [path.read_text() for path in tmp_path.glob("*.log")]
    assert hashes(out) == hashes(tmp_path / "whole")


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
