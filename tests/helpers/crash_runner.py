"""For test_shards_crashes.py: generates with a stub, killed by kill -9 again and again until it may finish.

    crash_runner.py OUT random KILLS     OUT/killed: killed so often at random moments
    crash_runner.py OUT points           OUT/<n>: killed at the nth call that changes the disk for good

Both make OUT/whole, never killed. It imports torch once and forks a child for every attempt; its last line is
the number of children killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kills import die_at, fork, killed
from torch import nn

from reposer.generation.batch import GenerateOptions, generate
from reposer.generation.pictures import Person, people_batch
from reposer.generation.pose_transfer import PoseTransfer
from reposer.runtime import setup
from reposer.trained.networks import GeneratorConfig

SIZE, PAIRS, FEW = (32, 16), 96, 8
NAMES = tuple((f"{i:04d}_c1s1_000000_00.jpg", f"{i + 1:04d}_c2s1_000000_00.jpg") for i in range(PAIRS))


class DrawnPairs:
    """Noise in which every pair is different; a PairSource."""

    size = SIZE
    problems = ()
    several = False

    def __init__(self, count):
        self.names = NAMES[:count]

    def rows(self, items):
        sides = (("source", 0), ("donor", 1))
        return [
            {
                key: value
                for side, k in sides
                for key, value in (
                    (side, self.names[i][k]),
                    (f"{side}_sha256", f"{i + k:064x}"),
                    (f"{side}_pid", i + k),
                    (f"{side}_camid", k + 1),
                )
            }
            for i in items
        ]

    def read(self, items):
        return people_batch([self._person(i) for i in items], [self._person(i + 1) for i in items])

    def fingerprint(self):
        return "drawn"

    def _person(self, number):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        labels = rng.integers(0, 20, SIZE, dtype=np.uint8)
        return Person("", image, labels, labels > 5, np.full((18, 2), np.nan, np.float32), SIZE, "")


class Stub(nn.Module):
    """The source image with the target's labels on it, slowly."""

    def __init__(self, seconds):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.05))
        self.seconds = seconds

    def forward(self, batch):
        time.sleep(self.seconds)
        return batch.source_image.float() / 127.5 - 1 + self.strength * batch.target_parsing[:, None]


def attempt(out, count=PAIRS, seconds=0.0):
    """Generate ``count`` pairs in batches of 4 and shards of 16, or a few in batches of 2 and shards of 4."""
    runtime = setup("cpu", "float32", threads=1)
    pose_transfer = PoseTransfer(Stub(seconds), GeneratorConfig(generator="stub", size=SIZE), runtime)
    batch = 4 if count == PAIRS else 2
    options = GenerateOptions("donor", batch_size=batch, shard_items=batch * batch)
    generate(pose_transfer, DrawnPairs(count), out, options)


def attempt_killed_at(call, out):
    """Generate a few pairs with such a call ahead."""
    die_at(call, ("replace", "rename", "fsync", "mkdir", "rmdir"))
    attempt(out, FEW)


def main():
    out, mode = Path(sys.argv[1]), sys.argv[2]
    count = PAIRS if mode == "random" else FEW
    assert not killed(fork(lambda: attempt(out / "whole", count)))
    kills = 0
    if mode == "random":
        moments = random.Random(0)
        while kills < int(sys.argv[3]):
            child = fork(lambda: attempt(out / "killed", seconds=0.02))
            time.sleep(moments.uniform(0.05, 0.4))
            os.kill(child, signal.SIGKILL)
            kills += killed(child)
        assert not killed(fork(lambda: attempt(out / "killed")))
    else:
        while killed(fork(partial(attempt_killed_at, kills, out / f"{kills}"))):
            assert not killed(fork(partial(attempt, out / f"{kills}", FEW)))
            kills += 1
    print(kills)


if __name__ == "__main__":
    main()
