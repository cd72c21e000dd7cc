"""What `reposer annotate` costs beside its models: share of the model's speed, bookkeeping alone, memory.

* fraction_of_forward: images a second of the whole job (read, fit, network, scores back to the image, encode,
  write durably, manifest, page) over those of the bare network on ready tensors, alternated, medians. The
  network is ResNet-50 to stride 8 with dilation, the size of a usual parser, at 256x128, random weights,
  exported as ONNX like a user's own. The fraction of processor time says the same on a busy machine.
* bookkeeping_over_codec: 13,000 crops of 128x64 with a stub in place of the parser, over decoding as many
  JPEGs and writing as many PNG maps, each durably, one after another; processor time as well.
* memory_growth_mib: peak of the 13,000 crops above that of the first 1,300, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.interfaces import AnnotatorInfo
from reposer.annotation.networks import OnnxNetwork
from reposer.annotation.parser import SegmentationParser
from reposer.annotation.person_mask import ParsingMasker
from reposer.images import encode_jpeg, encode_png
from reposer.storage.files import write_atomic
from reposer.trained.onnx import export_module

SIZE, INPUT, BATCH = (128, 64), (256, 128), 16


class Scorer(nn.Module):
    """ResNet-50 features at stride 8 and a score for each label."""

    def __init__(self) -> None:
        super().__init__()
        body = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
        self.body = nn.Sequential(*list(body.children())[:-2])
        self.head = nn.Conv2d(2048, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


class Stub:
    """Labels from brightness, at no cost."""

    info = AnnotatorInfo("stub")
    needs_keypoints = False

    def __call__(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        return (images[:, 1] // 13).clamp_(max=19)


def stub_annotators() -> Annotators:
    """A parser that costs nothing, masks from its maps."""
    return Annotators(Stub(), ParsingMasker(), None)


def main() -> None:
    """Print the tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, repeats, many = (128, 3, 1300) if options.quick else (512, 3, 13_000)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures = compare(folder, count, repeats)
        figures |= bookkeeping(folder, many)
    print(json.dumps({**figures, "threads": options.threads, "torch": str(torch.__version__)}))


def compare(folder: Path, count: int, repeats: int) -> dict[str, float]:
    """The whole job beside the bare network."""
    model = export_scorer(folder / "scorer.onnx")
    images = draw(folder / "images", count)
    opened = AnnotatorChoice(str(model), "parsing", "none").open()
    assert isinstance(opened.parser, SegmentationParser)
    network = OnnxNetwork(model, opened.parser.description)
    batches = [torch.zeros(BATCH, 3, *INPUT) for _ in range(count // BATCH)]
    bare(network, batches[:1])  # warm up
    forward, whole = [], []
    for _ in range(repeats):
        forward.append(bare(network, batches))
        started = now()
        annotate(images, folder / "out", lambda: opened, how=AnnotateOptions(batch_size=BATCH))
        whole.append(since(started))
        shutil.rmtree(folder / "out")
    ratios = np.median(np.array(forward) / np.array(whole), axis=0)
    speeds = count / np.median([forward, whole], axis=1)[:, 0]
    print(f"{count} crops: network {speeds[0]:.1f} images/s, whole job {speeds[1]:.1f}: {ratios[0]:.3f}")
    print(f"of processor time: {ratios[1]:.3f}")
    return {
        "fraction_of_forward": round(float(ratios[0]), 3),
        "fraction_of_cpu_time": round(float(ratios[1]), 3),
        "images_per_second": round(float(speeds[1]), 1),
    }


def bookkeeping(folder: Path, many: int) -> dict[str, float]:
    """All but the models, and its memory."""
    few = measured(draw(folder / "few", many // 10))
    all_of_them = measured(draw(folder / "many", many))
    seconds, processor, peak = all_of_them
    print(f"{many:,} crops with a stub: {seconds:.1f} s, {processor:.1f} s of processor time, {peak:.0f} MiB")
    scale = 13_000 / many
    (folder / "maps").mkdir()
    codec = codec_seconds(folder / "many", many // 10)
    print(f"decode, encode and write alone: {codec[0] * 10:.1f} s, {codec[1] * 10:.1f} s of processor time")
    return {
        "bookkeeping_over_codec": round(seconds / (10 * codec[0]), 2),
        "bookkeeping_over_codec_cpu": round(processor / (10 * codec[1]), 2),
        "bookkeeping_13k_s": round(seconds * scale, 1),
        "bookkeeping_13k_cpu_s": round(processor * scale, 1),
        "peak_mib": round(peak),
        "memory_growth_mib": round(peak - few[2]),
    }


def measured(images: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak MiB of annotating a folder in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(partial(annotate_with_stub, images))


def codec_seconds(images: Path, count: int) -> tuple[float, float]:
    """Seconds and processor seconds of the plain loop: decode a crop, write a map of its size durably."""
    started = now()
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[:count]):
        with Image.open(path) as file:
            labels = np.asarray(file.convert("RGB"))[..., 1] // 13
        write_atomic(images.parent / "maps" / f"{number}.png", encode_png(labels))
    return since(started)


def annotate_with_stub(images: Path) -> tuple[float, float, float]:
    """In the process of its own."""
    torch.set_num_threads(1)
    started = now()
    annotate(images, None, stub_annotators)
    seconds, processor = since(started)
    status = Path("/proc/self/status").read_text()  # ru_maxrss of a spawned process holds its parent's peak
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, processor, peak / 1024


def draw(folder: Path, count: int) -> Path:
    """JPEG crops of noisy gradients, 20 in a sub-folder."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (16, *SIZE, 3))
    for i in range(count):
        ramp = np.linspace(rng.integers(30, 220, 3), rng.integers(30, 220, 3), SIZE[0])[:, None]
        place = folder / f"{i // 20:05d}" / f"{i:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_jpeg((ramp + noise[i % 16]).clip(0, 255).astype(np.uint8)))
    return folder


def export_scorer(path: Path) -> Path:
    """The network as an ONNX file with its description."""
    torch.manual_seed(0)
    export_module(Scorer().eval(), torch.zeros(2, 3, *INPUT), path, ("image", "scores"))
    path.with_suffix(".json").write_text(json.dumps({"size": INPUT, "labels": "lip20"}))
    return path


def bare(network: OnnxNetwork, batches: list[Tensor]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of the network alone."""
    started = now()
    for batch in batches:
        network(batch)
    return since(started)


def now() -> tuple[float, float]:
    """Two clocks: wall and processor."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """What both clocks counted."""
    wall, processor = now()
    return wall - started[0], processor - started[1]


if __name__ == "__main__":
    main()
