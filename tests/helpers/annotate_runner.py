"""For test_annotate*.py: drawn folders, stub annotators that other processes can import, and kills.

``python helpers/annotate_runner.py WHOLE CUT KILLS PROCESSES``: annotate WHOLE in peace, and CUT, killed so
often, until it is done; says how many kills struck.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from kills import fork
from PIL import Image
from torch import Tensor

from reposer.annotation import journal
from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import Annotators
from reposer.annotation.interfaces import AnnotatorInfo, Poses
from reposer.annotation.person_mask import ParsingMasker
from reposer.errors import UserError
from reposer.jobs.shards import STAGING
from reposer.storage.lock import locked
from reposer.storage.manifest import write_part


class StubParser:
    """Labels from brightness; right and left, top and bottom differ."""

    info = AnnotatorInfo("stub", "ab" * 32)
    needs_keypoints = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        time.sleep(self.seconds * len(images))
        return (images.long().sum(1) * 20 // 766).to(torch.uint8)


class StubKeypoints:
    """Joints on a diagonal; the last one is missing."""

    info = AnnotatorInfo("stub joints")

    def __call__(self, images: Tensor) -> Poses:
        height, width = images.shape[2:]
        share = np.linspace(0, 0.9, 18, dtype=np.float32)
        share[0] = 1e-4  # a joint in the very corner would be a missing one
        pose = np.stack([share * width, share * height], 1)
        pose[17] = np.nan
        people = (images[:, 0, 0, 0].numpy() % 3).astype(np.int64)
        return Poses(pose[None].repeat(len(images), 0), np.ones((len(images), 18), np.float32), people)


def stubs() -> Annotators:
    return Annotators(StubParser(), ParsingMasker(), StubKeypoints())


def slow_stubs() -> Annotators:
    return Annotators(StubParser(0.01), ParsingMasker(), StubKeypoints())


def draw_folder(folder: Path, count: int, sizes=((40, 24),), people: int = 4) -> Path:
    """Noisy gradients as PERSON/NUMBER.png, of the given (H, W) in turn."""
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        place = folder / f"{i % people + 1:04d}" / f"{i:04d}_c{i % 2 + 1}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 40, width)[None, :, None]
        pixels = (ramp + rng.integers(0, 15, (height, width, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(place)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of everything below a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def flip(path: Path) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Take the end away."""
    path.write_bytes(path.read_bytes()[:-7])


def edit_rows(part: str, columns, change):
    """A part whose rows were changed, under a correct seal."""

    def inject(root: Path) -> None:
        rows = pq.read_table(root / part).to_pylist()
        changed = change(rows)
        write_part(root / part, rows if changed is None else changed, columns, synthetic=False)

    return inject


def attempt(folder: Path, processes: int) -> None:
    journal.SHARD_ITEMS = 8
    annotate(folder, None, slow_stubs, how=AnnotateOptions(batch_size=3, processes=processes))


def main(folder: Path, kills: int, processes: int) -> None:
    """Each kill strikes a random time after the first lasting change of a start."""
    rng, struck = random.Random(0), 0
    while True:
        before, child = state(folder), fork(partial(attempt, folder, processes))
        if struck < kills:
            deadline = time.monotonic() + 60
            while state(folder) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            struck += 1
            wait_for_orphans(folder / journal.BOOK)
        elif os.WEXITSTATUS(status):
            sys.exit("an attempt failed")
        else:
            break
    print(struck)


def wait_for_orphans(book: Path) -> None:
    """Processes of a killed parent notice at once, and end; on a busy machine that takes a while."""
    for _ in range(300):
        try:
            with locked(book):
                return
        except UserError:
            time.sleep(0.1)
    sys.exit("somebody still holds the folder")


def state(folder: Path) -> tuple[int, bool]:
    """Changes with the first steps of every start, and with every shard."""
    manifest = folder / journal.BOOK / "manifest"
    done = len(list(manifest.iterdir())) if manifest.is_dir() else 0
    return done, (folder / journal.BOOK / STAGING).exists()


if __name__ == "__main__":
    attempt(Path(sys.argv[1]), 1)
    main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
