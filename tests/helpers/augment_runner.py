"""For the tests of augmented sets: a drawn data set, and augment with a stub in processes of its own.

    augment_runner.py write PREPARED OUT FACTOR PROCESSES SHARD    also under torchrun; or plan, work, finish
    augment_runner.py kills PREPARED OUT FACTOR PROCESSES SHARD KILLS    killed so often, then finished
    augment_runner.py forget SET OUT PID    OUT/<n>: SET copied, killed at the nth lasting change, finished

It imports torch once and forks a child for every attempt; the last line is the number of children killed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kills import die_at, fork, killed
from torch import nn

from reposer.data.preparing.prepare import prepare_market1501
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.forgetting import forget
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_jpeg, encode_png
from reposer.jobs.workers import STEPS, Step
from reposer.runtime import setup
from reposer.storage.lock import locked
from reposer.trained.networks import GeneratorConfig

SIZE = (32, 16)


class Stub(nn.Module):
    """The source image with the target's labels on it, slowly."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.05))
        self.seconds = seconds

    def forward(self, batch):
        time.sleep(self.seconds)
        return batch.source_image.float() / 127.5 - 1 + self.strength * batch.target_parsing[:, None]


def stub_model(identity_hash: str = "", seconds: float = 0.0, alone: bool = False) -> PoseTransfer:
    """The stub in use, on one thread."""
    config = GeneratorConfig(generator="stub", size=SIZE, identity_hash=identity_hash)
    return PoseTransfer(Stub(seconds), config, setup("cpu", "float32", threads=1, alone=alone))


def draw_data_set(root: Path, people: int, images: int, *, parsing: bool = True) -> Path:
    """Noise with a person's map, in Market-1501's layout: training people, then two test people."""
    rng = np.random.default_rng(0)
    places = [("bounding_box_train", pid) for pid in range(2, people + 2)]
    places += [("query", people + 2), ("bounding_box_test", people + 2), ("bounding_box_test", people + 3)]
    for folder in ("bounding_box_train", "query", "bounding_box_test", "parsing"):
        (root / folder).mkdir(parents=True)
    for folder, pid in places:
        for number in range(images):
            camera = number % 3 + 1 + 3 * (folder == "query")
            stem = f"{pid:04d}_c{camera}s1_{number:06d}_00"
            image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            (root / folder / f"{stem}.jpg").write_bytes(encode_jpeg(image, 90))
            labels = np.zeros(SIZE, np.uint8)
            labels[4 + number % 8 : 28, 4:12] = rng.integers(1, 20, (24 - number % 8, 8))
            if parsing:
                (root / "parsing" / f"{stem}.png").write_bytes(encode_png(labels))
    return root


def prepare_drawn(folder: Path, people: int = 6, images: int = 3, *, holdout: int = 1) -> Path:
    """The drawn data set in ``folder/raw``, prepared in ``folder/prepared``."""
    draw_data_set(folder / "raw", people, images)
    prepare_market1501(folder / "raw", folder / "prepared", holdout=holdout, size=SIZE)
    return folder / "prepared"


def augmented(model, prepared, out, options, **how):
    """``augment`` with the drawn data set named, as a user would."""
    return augment(model, prepared, out, options, **{"images": Path(prepared).parent / "raw"} | how)


def write(prepared, out, factor, processes=1, shard=16, seconds=0.0, step="all"):
    """One attempt, at all of it or at a step."""
    batch = min(shard, 64)
    options = AugmentOptions(factor=factor, background="donor", batch_size=batch, shard_items=shard)
    model = stub_model("", seconds, alone=step != "all")
    return augmented(model, prepared, out, options, processes=processes, step=Step(step, lease=2))


def kills(prepared, out, factor, processes, shard, wanted):
    """Kill the writer at random moments, each later than the last run came, then let it finish.

    Each run may end one shard and make two more at most, however fast the machine is.
    """
    moments, done = random.Random(0), 0

    def sealed():
        return len(list((out / "manifest").glob("_*")))

    while done < wanted:
        before = sealed()
        child = fork(partial(write, prepared, out, factor, processes, shard, 0.005))
        while sealed() <= before:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit(f"finished after {done} kills: give more items")
            time.sleep(0.005)
        end = time.monotonic() + moments.uniform(0.0, 0.2)
        while time.monotonic() < end and sealed() <= before + 1:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        time.sleep(0.5 if processes > 1 else 0)  # orphans notice at once, and end
    assert not killed(fork(partial(write, prepared, out, factor, processes, shard)))
    return done


def forget_killed_at(call, folder, pid):
    """Forget a person with such a call ahead."""
    die_at(call, ("replace", "rename", "fsync", "unlink"))
    forget(folder, pid)


def forget_killed(source, out, pid):
    """A removal killed at every lasting change of the disk, each time finished by a second call."""
    call = 0
    while True:
        copy = out / f"{call}"
        shutil.copytree(source, copy)
        child = fork(partial(forget_killed_at, call, copy, pid))
        if not killed(child):
            return call
        if (copy / "forgetting.json").exists() or not (copy / "removed.json").exists():
            forget(copy, pid)
        with locked(copy):  # whoever comes next takes the lock that a dead process left, and it goes
            pass
        call += 1


def main():
    mode, first, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    numbers = [int(n) for n in sys.argv[4:]]
    if mode in ("write", *STEPS):
        step = "all" if mode == "write" else mode
        print(write(first, out, *numbers, seconds=0.02 * (step == "work"), step=step))
    elif mode == "kills":
        print(kills(first, out, *numbers))
    else:
        print(forget_killed(first, out, *numbers))


if __name__ == "__main__":
    main()
