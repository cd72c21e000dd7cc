"""`reposer prepare` on the real Market-1501 training folder: counts, pairs, validation list, memory."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reposer.data.layouts.market1501 import parse_name
from reposer.data.packed import PackedPeople
from reposer.data.records import read_manifest

MARKET = Path(__file__).parents[3] / "shared" / "data" / "market1501"

pytestmark = [pytest.mark.real, pytest.mark.skipif(not MARKET.is_dir(), reason="no real data here")]


def test_official_names_all_parse():
    counts = {}
    for split in ("train", "query", "test"):
        names = (MARKET / "lists" / f"official-{split}-names.txt").read_text().split()
        counts[split] = Counter(min(parse_name(name).pid, 1) for name in names)
    assert counts["train"] == {1: 12_936}
    assert counts["query"] == {1: 3_368}
    assert counts["test"] == {1: 13_115, 0: 2_798, -1: 3_819}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """(prepared folder, peak resident memory in MB, summary)."""
    out = tmp_path_factory.mktemp("market") / "out"
    code = """if True:
        import re, sys
        from reposer.data.preparing.prepare import prepare_market1501
        print(prepare_market1501(sys.argv[1], sys.argv[2], holdout=100).summary())
        # VmHWM is this program's own peak; ru_maxrss begins with that of the process which started it
        print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
    """
    run = subprocess.run(
        [sys.executable, "-c", code, MARKET, out], capture_output=True, text=True, check=True
    )
    summary, _, peak = run.stdout.strip().rpartition("\n")
    return out, int(peak), summary


def test_everything_is_used(prepared: tuple[Path, int, str]):
    out, peak, summary = prepared
    records = read_manifest(out / "manifest.parquet")
    assert Counter(record.split for record in records) == {"train": 11_509, "val": 1_427}
    assert len({record.pid for record in records if record.split == "train"}) == 651
    assert all(record.parsing and record.mask and record.keypoints is not None for record in records)
    assert sum(bool(np.isnan(r.keypoints).all()) for r in records if r.keypoints is not None) == 419
    assert Counter(record.camid for record in records) == {
        1: 2017,
        2: 1709,
        3: 2707,
        4: 920,
        5: 2338,
        6: 3245,
    }
    assert (out / "problems.csv").read_text().count("\n") == 1
    assert "training 12,936/12,936" in summary
    assert peak < 1500
    assert len(PackedPeople.open(out / "packed")) == 12_936


def test_pair_lists(prepared: tuple[Path, int, str]):
    out, _, _ = prepared
    train = (out / "pairs_train.csv").read_text().splitlines()
    held_out_pairs = 20_846
    assert len(train) - 1 + held_out_pairs == 263_632
    fixed = (MARKET / "lists" / "dev-pairs.csv").read_text().splitlines()
    assert (out / "pairs_val.csv").read_text().splitlines() == fixed
