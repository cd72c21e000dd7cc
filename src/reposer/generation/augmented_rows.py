"""The manifest's columns of an augmented set, and its summary: how many pictures, how many fell, and why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.data.generated.files import list_parts, read_part, seal_path
from reposer.files import sha256_bytes, sha256_file, write_atomic
from reposer.generation.real_list import REAL_ROWS

SUMMARY = "summary.json"
KIND = "augmentation"  # of the job, in job.json
SCORES = ("identity_distance", "pose_agreement", "sharpness")
COLUMNS = (
    ("source", pa.string()),
    ("source_sha256", pa.string()),  # of the original image file
    ("source_pid", pa.int64()),
    ("source_camid", pa.int64()),
    ("donor", pa.string()),
    ("donor_sha256", pa.string()),
    ("donor_pid", pa.int64()),
    ("donor_camid", pa.int64()),
    ("pid", pa.int64()),  # label: the source's, as in the file's name
    ("camid", pa.int64()),  # the source's too, whatever the background
    ("copy", pa.int64()),  # 1 to factor - 1, as in the file's name
    ("policy", pa.string()),  # that chose the donor
    ("background", pa.string()),
    ("checkpoint", pa.string()),  # PoseTransfer.weights_hash
    ("trained_on", pa.string()),  # hash of the generator's training people; empty: not recorded
    ("seed", pa.int64()),
    ("synthetic", pa.bool_()),  # always true: a row says it even without its file
    ("kept", pa.bool_()),  # false: a filter dropped it; it stays to be looked at, and is not trained on
    ("dropped_because", pa.string()),  # null when kept
    *((name, pa.float64()) for name in SCORES),  # null: not asked for, or not defined for this picture
)


def summarize(folder: Path) -> dict[str, Any]:
    """Counts and hashes of a finished set; reads one part of the manifest at a time.

    Raises:
        UserError: the set is unfinished or a part is damaged.
    """
    dropped: Counter[str] = Counter()
    seals, generated, people = [], 0, set()
    for path in list_parts(folder):
        rows = read_part(path)
        generated += rows.num_rows
        people.update(rows["pid"].unique().to_pylist())
        dropped.update(reason for reason in rows["dropped_because"].to_pylist() if reason is not None)
        seals.append(seal_path(path).read_text(encoding="ascii").split()[0])
    return {
        "real": read_part(folder / REAL_ROWS).num_rows,
        "people": len(people),  # with at least one generated picture
        "generated": generated,
        "kept": generated - sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "manifest_sha256": sha256_bytes("\n".join(seals).encode()),  # of the parts' hashes, one a line
        "real_sha256": sha256_file(folder / REAL_ROWS),
    }


def write_summary(folder: Path) -> dict[str, Any]:
    """Write summary.json; the same manifest gives the same bytes."""
    summary = summarize(folder)
    write_atomic(folder / SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode())
    return summary
