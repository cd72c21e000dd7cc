"""Image metrics on real people: the trivial baselines, and the development networks fed as they must be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from reposer.data.keypoints import read_keypoints_csv
from reposer.data.packed import PackedPeople
from reposer.data.pairs import read_pairs_csv
from reposer.data.preparing.packing import pack
from reposer.evaluation.image_quality import COPY, NEAREST, evaluate_pairs
from reposer.evaluation.measurement import FLOOR
from reposer.images import imagenet_normalize, to_float
from reposer.metrics.feature_networks import KerasMobileNetV2
from reposer.metrics.protocols import weights_in
from reposer.storage.files import sha256_file
from reposer.structures import PersonRecord

SHARED = Path(__file__).parents[3] / "shared"
MARKET, WEIGHTS = SHARED / "data" / "market1501", SHARED / "weights"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (MARKET.is_dir() and WEIGHTS.is_dir()), reason="no development data here"),
]
TRAINING = 400  # images of training people in this test, of 11,509


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedPeople, np.ndarray]:
    """The people of the first 64 development pairs and the first training images; the pairs as positions."""
    pairs = read_pairs_csv(MARKET / "lists" / "dev-pairs.csv")[0][:64]
    poses, _ = read_keypoints_csv(MARKET / "lists" / "keypoints.csv")
    val = sorted({name for pair in pairs for name in pair})
    train = sorted(path.name for path in (MARKET / "bounding_box_train").iterdir())[:TRAINING]
    records = []
    for name in [*train, *val]:
        path = f"bounding_box_train/{name}"
        stem = Path(name).stem
        records.append(
            PersonRecord(
                name=name,
                path=path,
                pid=int(name[:4]),
                camid=int(name[6]),
                split="val" if name in val else "train",
                width=64,
                height=128,
                sha256=sha256_file(MARKET / path),
                parsing=f"parsing/{stem}.png",
                mask=f"mask/{stem}.png",
                keypoints=poses[name],
            )
        )
    folder = tmp_path_factory.mktemp("market") / "packed"
    pack(records, MARKET, folder, (128, 64))
    packed = PackedPeople.open(folder)
    return packed, np.array([[packed.index(source), packed.index(target)] for source, target in pairs])


def test_trivial_baselines_on_development_pairs(people: tuple[PackedPeople, np.ndarray]) -> None:
    packed, pairs = people
    names = ["ssim", "mask_ssim", "l1", "mask_l1", "lpips_like_squeeze", "mask_lpips_like_squeeze"]
    report = evaluate_pairs(
        {"truth": lambda batch: batch.target_image},
        *(packed, pairs, [*names, "frechet_mobilenetv2"]),
        training=np.flatnonzero(packed.splits == "train"),
        weights=weights_in(WEIGHTS),
    )
    copies, nearest = report.rows[COPY], report.rows[NEAREST]
    assert {cell.count for cell in copies.values()} == {64}
    differences = []
    for source, target in pairs:  # a literal loop
        a, b = (packed.images[i].astype(np.float64) / 255 for i in (source, target))
        mask = packed.mask[target]
        differences.append((np.abs(a - b).mean(), np.abs(a - b)[mask].mean()))
    expected = np.mean(differences, axis=0)
    assert (copies["l1"].value, copies["mask_l1"].value) == pytest.approx(expected, rel=1e-12)
    assert 0.17 < copies["l1"].value < 0.21  # 0.190 on all 2,000 pairs
    for name in ("l1", "mask_l1", "lpips_like_squeeze", "mask_lpips_like_squeeze"):
        assert 0 == report.rows["truth"][name].value < copies[name].value < nearest[name].value
    for name in ("ssim", "mask_ssim"):
        assert 1 == report.rows["truth"][name].value > copies[name].value > nearest[name].value
    floor = report.rows[FLOOR]["frechet_mobilenetv2"]
    assert floor.value == pytest.approx(report.rows["truth"]["frechet_mobilenetv2"].value, rel=0.05)
    assert "small sample" in floor.note


def _photographs() -> torch.Tensor:
    """(49, 3, 224, 224) crops of the photographs that come with scikit-learn and scikit-image."""
    folder = os.path.join(os.path.dirname(skimage.__file__), "data")
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    photographs = [*load_sample_images().images]
    photographs += [np.array(Image.open(os.path.join(folder, name)).convert("RGB")) for name in names]
    rng = np.random.default_rng(0)
    crops = []
    for photograph in photographs:
        for _ in range(7):
            side = int(rng.integers(224, min(photograph.shape[:2]) + 1))
            y, x = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
            crop = Image.fromarray(photograph[y : y + side, x : x + side])
            crops.append(np.array(crop.resize((224, 224), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def _mismatch(network: KerasMobileNetV2, shown: torch.Tensor) -> float:
    """Squared distance of the inputs' means from the stored ones, in variances; mean over 52 layers."""
    gaps: list[float] = []

    def compare(module: nn.BatchNorm2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        gap = (inputs[0].mean((0, 2, 3)) - module.running_mean) ** 2 / (module.running_var + 1e-3)
        gaps.append(gap.mean().item())

    hooks = [m.register_forward_hook(compare) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.inference_mode():
        network.features(shown)
    for hook in hooks:
        hook.remove()
    assert len(gaps) == 52
    return float(np.mean(gaps))


@pytest.mark.slow
def test_keras_mobilenet_is_fed_as_it_was_trained() -> None:
    """Photographs reproduce the stored statistics best with the three Keras rules, worse with one broken."""
    path = WEIGHTS / "mobilenet_v2_features_imagenet.safetensors"
    image = to_float(_photographs())
    right = _mismatch(KerasMobileNetV2(path), image)
    assert right < 0.05
    wrong = {
        "ImageNet-normalized": _mismatch(KerasMobileNetV2(path), imagenet_normalize(image)),
        "[0, 1]": _mismatch(KerasMobileNetV2(path), image / 2 + 0.5),
        "BGR": _mismatch(KerasMobileNetV2(path), image.flip(1)),
    }
    network = KerasMobileNetV2(path)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    wrong["eps 1e-5"] = _mismatch(network, image)
    network = KerasMobileNetV2(path)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.forward = _symmetric(module)  # type: ignore[method-assign]
    wrong["padded on both sides"] = _mismatch(network, image)
    assert min(wrong.values()) > 1.1 * right, (right, wrong)


def _symmetric(module: nn.Conv2d):
    return lambda x: F.conv2d(x, module.weight, module.bias, 2, 1, 1, module.groups)
