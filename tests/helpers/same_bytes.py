"""Does another checkout do the same, byte for byte? A script for changes that should change nothing.

    python tests/helpers/same_bytes.py make CHECKOUT WORK     # every kind of job, in the folder WORK
    python tests/helpers/same_bytes.py compare WORK OTHER     # names each file that differs
    python tests/helpers/same_bytes.py open CHECKOUT WORK     # opens and checks what WORK holds

Run ``make`` with the code before a change and after it, on one machine and in folders whose names are equally
long; a quarter of an hour each on one core. Left out of the comparison: clock times, speeds, process numbers,
hashes of files that hold these, seals and TensorBoard's files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

TINY = "--set output.log_every=5 --set output.validate_every=10 --set output.checkpoint_every=10"
SHOWN = f"{TINY} --set output.sample_every=10 --set data.pairs_per_epoch=100 --set batch_size=2"
RECIPE = '{"preset":"reid_demo","methods":["euclidean","kissme"],"settings":["batch_size=16"]}'
PAIRS = "--data prepared --pairs prepared/pairs_val.csv"
JOBS = f"""
render people --identities 12 --test-identities 4 --images 6
prepare market1501 people --out prepared --holdout 3
train san_demo --data prepared --out runs/san_demo {SHOWN}
train rsa_demo --data prepared --out runs/rsa_demo {SHOWN}
train predictor_demo --data prepared --out runs/predictor_demo {TINY} \
--set data.pairs_per_epoch=80 --set batch_size=4
train parser_small --data prepared --out runs/parser_small {TINY} --set initial=random --set batch_size=8 \
--set data.tuning_people=3
reid train reid_demo --data prepared --out runs/reid_demo {TINY} \
--set data.images_per_epoch=320 --set batch_size=16 --set schedule.epochs=1
export-parser runs/parser_small parser.onnx
annotate people/bounding_box_train --out annotated --parser parser.onnx --sample 12
generate shipped {PAIRS} --background donor --out generated
generate shipped-rsa {PAIRS} --out generated_rsa
augment shipped --data prepared --images people --out augmented --factor 2 --donors coverage
augment shipped --data prepared --images people --out augmented_filtered --factor 2 \
--predictor runs/predictor_demo --filter-identity runs/reid_demo \
--filter-sharpness --png --real copy --processes 2
export-set augmented --out exported --layout market
evaluate shipped --data prepared --out evaluation --metrics ssim,psnr,l1 --limit 20
reid evaluate runs/reid_demo --data prepared --out reid_evaluation --rerank --k1 5 --k2 2
reid export runs/reid_demo --out reid_exported
study augmentation --data prepared --out study --arms real,real_repeated,x2_any --set steps=20 \
--set seeds=[0] --set 'recipes=[{RECIPE}]'
"""
REOPEN = f"""
verify prepared
verify runs/san_demo
verify runs/rsa_demo
verify runs/predictor_demo
verify runs/parser_small
verify runs/reid_demo
verify annotated/annotation/sample
verify generated
verify generated_rsa
verify augmented
verify augmented_filtered
verify reid_exported
generate runs/san_demo {PAIRS} --out again
reid evaluate reid_exported --data prepared --out again_reid
annotate people/bounding_box_test --out again_annotated --parser parser.onnx --sample 4
report study
"""
CLOCK = re.compile(
    r"seconds|minutes|per_second|_s$|rate$|speed|time|elapsed|memory|peak|host|pid$|version|commit|environment|"
    r"started|finished|created|command|eta|busy|sha256"
)
LEFT_OUT = ("environment.json", ".reposer-outputs.json", "seal.json", "lock", ".log", ".sha256")


def run(checkout: Path, work: Path, jobs: str) -> int:
    """Run the jobs one after the other; the number that failed."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    failed = 0
    for line in jobs.strip().splitlines():
        began = time.monotonic()
        command = [sys.executable, "-m", "reposer", *shlex.split(line)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        failed += done.returncode != 0
        print(f"exit {done.returncode}, {time.monotonic() - began:.0f} s: {line[:80]}", flush=True)
        if done.returncode:
            print((done.stderr or done.stdout)[-600:], flush=True)
    return failed


def stable(value: object) -> object:
    """JSON without what the clock or the machine says."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if not CLOCK.search(key)}
    return [stable(item) for item in value] if isinstance(value, list) else value


def digest(path: Path, work: Path) -> str:
    """sha256 of a file's content, of JSON without the clock, with the place of ``work`` left out."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        data = json.dumps([stable(json.loads(line)) for line in lines], sort_keys=True).encode()
    return hashlib.sha256(data.replace(str(work).encode(), b"WORK")).hexdigest()


def files(work: Path) -> dict[str, Path]:
    """What is compared, by its place in ``work``."""
    found = [path for path in sorted(work.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {
        path.relative_to(work).as_posix(): path
        for path in found
        if not path.name.endswith(LEFT_OUT) and "events.out" not in path.name
    }


def compare(work: Path, other: Path) -> int:
    """Print what differs and how many files there are; the number that differ or lack a partner."""
    ours, theirs = files(work), files(other)
    wrong = [f"only in one: {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    both = sorted(ours.keys() & theirs.keys())
    wrong += [f"differs: {name}" for name in both if digest(ours[name], work) != digest(theirs[name], other)]
    print("\n".join([*wrong, f"{len(ours.keys() | theirs.keys())} files, {len(wrong)} differ"]))
    return len(wrong)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("make", "compare", "open"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    first, second = options.first.resolve(), options.second.resolve()
    if options.do == "compare":
        wrong = compare(first, second)
    else:
        wrong = run(first, second, JOBS if options.do == "make" else REOPEN)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
