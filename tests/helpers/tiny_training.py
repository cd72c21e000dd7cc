"""A tiny prepared folder and a tiny configuration, so that whole trainings take a second."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from reposer.data.pairs import write_pairs_csv
from reposer.data.preparing.packing import pack
from reposer.storage import checkpoint
from reposer.structures import PersonRecord
from reposer.training.gan.config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    GanOutputConfig,
    LossWeights,
    ScheduleConfig,
)

HEIGHT, WIDTH = 32, 16
TRAIN = (  # for a process of its own: arguments are the configuration file and the run folder
    "import sys; from reposer.config import load_config; from reposer.training.loop import train; "
    "from reposer.training.gan.config import GanConfig; "
    "train(load_config(GanConfig, sys.argv[1]), sys.argv[2], device='cpu')"
)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY_SAN = {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "n_convs": 1, "deep_channels": [8]}
TINY_SAN |= {"padding": "zeros", "dropout": 0.1}  # dropout: the generators of random numbers matter too
TINY_D = {"ndf": 4, "blocks": 1, "padding": "zeros"}


def write_prepared(folder: Path) -> Path:
    """Eight people of four images each: a moving colored rectangle; the last two people are held out."""
    rng = np.random.default_rng(0)
    root = folder / "original"
    root.mkdir(parents=True)
    records = []
    for pid in range(1, 9):
        color = rng.integers(0, 256, 3)
        for shot in range(4):
            name = f"{pid:04d}_c{shot + 1}s1_{shot:06d}_01"
            top, left = 4 + 2 * shot, 2 + shot
            parsing = np.zeros((HEIGHT, WIDTH), np.uint8)
            parsing[top : top + 12, left : left + 6] = 5
            image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            image[parsing == 5] = color
            Image.fromarray(image).save(root / f"{name}.png")
            Image.fromarray(parsing).save(root / f"{name}_parsing.png")
            keypoints = rng.uniform(2, 12, (18, 2)).astype(np.float32)
            keypoints[shot] = np.nan  # a missing joint
            records.append(
                PersonRecord(
                    name=f"{name}.png",
                    path=f"{name}.png",
                    pid=pid,
                    camid=shot + 1,
                    split="train" if pid <= 6 else "val",
                    width=WIDTH,
                    height=HEIGHT,
                    sha256=hashlib.sha256((root / f"{name}.png").read_bytes()).hexdigest(),
                    parsing=f"{name}_parsing.png",
                    keypoints=keypoints,
                )
            )
    pack(records, root, folder / "packed", (HEIGHT, WIDTH))
    for split, list_name in (("train", "pairs_train.csv"), ("val", "pairs_val.csv")):
        chosen = [
            (a.name, b.name)
            for a in records
            for b in records
            if a.pid == b.pid and a is not b and a.split == split
        ]
        write_pairs_csv(folder / list_name, chosen)
    return folder


def tiny_config(folder: Path, **changes) -> GanConfig:
    """16 steps of 4 pairs, a pool that fills after two steps, a checkpoint every 5 steps."""
    values = {
        "data": DataConfig(folder=folder, pairs_per_epoch=32),
        "generator_args": TINY_SAN,
        "discriminator_args": TINY_D,
        "weights": LossWeights(adversarial=1.0, l1=10.0, perceptual=0.0),
        "gan": AdversarialConfig(pool=8),
        "schedule": ScheduleConfig(epochs_const=1, epochs_decay=1),
        "output": GanOutputConfig(log_every=3, sample_every=8, validate_every=8, checkpoint_every=5),
        "batch_size": 4,
        "threads": 1,
        "ema_decay": 0.9,
    }
    return GanConfig(**{**values, **changes})


def final_hashes(run: Path) -> dict[str, str]:
    """sha256 of every file of tensors of a run's last checkpoint."""
    _, path = checkpoint.steps(run / "checkpoints")[0]
    files = json.loads((path / "meta.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items()}
