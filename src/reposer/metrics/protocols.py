"""The image metrics by name: METRICS says what each name pins and how it is loaded. A number without its
protocol is no number: network and weights, image size and filter, mask and fill, reference set, counts.

A new metric is one file and one line in METRICS. A metric whose weights are not on this machine raises
MissingWeightsError when loaded; no other network ever takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.errors import MissingWeightsError, UserError, find
from reposer.metrics import similarity
from reposer.metrics.feature_networks import (
    GflaInception,
    KerasMobileNetV2,
    Lpips,
    Net,
    PtInception,
    PtInceptionLogits,
    packaged_heads,
)
from reposer.metrics.similarity import pckh, pose_mask
from reposer.storage.files import sha256_file
from reposer.structures import MISSING_LABEL, PairBatch
from reposer.weights.files import KNOWN, find_weights


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """B generated images with the truth about their targets; a metric takes the fields that it needs."""

    generated: Tensor  # (B, 3, H, W) uint8 RGB
    target: Tensor  # (B, 3, H, W) uint8 RGB, the true picture
    mask: Tensor | None = None  # (B, H, W) bool, the target's person
    parsing: Tensor | None = None  # (B, H, W) uint8 LIP-20 labels of the target
    keypoints: Tensor | None = None  # (B, J, 2) x, y of the target in pixels, NaN where missing
    generated_keypoints: Tensor | None = None  # (B, J, 2) found in the generated images by a detector
    pair: PairBatch | None = None  # what the images were generated from; ``needs`` may name its fields


Measure = Callable[[ImageBatch], NDArray[np.float64]]  # (B,) one value an image, NaN where undefined
WeightFiles = Mapping[str, Path]  # explicit files by name of the weights


@dataclass(frozen=True, slots=True)
class ImageMetric:
    """A metric with one value for each image."""

    better: Literal["lower", "higher"]
    protocol: str  # what the name pins, in words
    load: Callable[[WeightFiles, torch.device], Measure]
    needs: tuple[str, ...] = ()  # fields of ImageBatch besides generated and target, or of its ``pair``
    weights: tuple[str, ...] = ()  # names of the weights files


@dataclass(frozen=True, slots=True)
class SetMetric:
    """A metric of whole sets of images on one feature network."""

    protocol: str
    network: Callable[[Any], nn.Module]  # of a file; has .dimension; uint8 (B, 3, H, W) -> (B, D)
    weights: tuple[str]
    reference: Literal["training"] | None = (
        None  # the set it must be measured against; None: the caller's choice
    )
    whole_batches_of: int = 1  # only whole batches of this size count; the rest is dropped, on both sides
    statistic: Literal["frechet", "kernel", "inception_score"] = "frechet"  # the last needs no reference
    masked: bool = False  # generated images times the mask drawn from the target's keypoints

    @property
    def better(self) -> Literal["lower", "higher"]:
        """Distances are better when lower, the Inception Score when higher."""
        return "higher" if self.statistic == "inception_score" else "lower"

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of ImageBatch besides generated and target."""
        return ("keypoints",) if self.masked else ()

    def load(self, files: WeightFiles, device: torch.device, others: Iterable[nn.Module] = ()) -> nn.Module:
        """The feature network.

        Args:
            others: of other metrics; one with the same weights shares its passes.

        Raises:
            MissingWeightsError: its weights are not on this machine.
        """
        path = locate(self.weights[0], files)
        same = [n for n in others if isinstance(n, PtInception) and n.passes.weights == path]
        shares = same and isinstance(self.network, type) and issubclass(self.network, PtInception)
        return self.network(same[0] if shares else path).to(device)

    def shown(self, batch: ImageBatch) -> tuple[Tensor, NDArray[np.bool_]]:
        """What the network sees of a batch, (B, 3, H, W), and (B,) which of it counts: not an empty mask."""
        if not self.masked:
            return batch.generated, np.ones(len(batch.generated), bool)
        mask = _drawn_person(batch)
        images = batch.generated * mask[:, None].to(batch.generated)
        return images, mask.flatten(1).any(1).numpy()


def locate(name: str, files: WeightFiles) -> Path:
    """The weights file called ``name``: the one given in ``files``, or a known one in the weights folder.

    Raises:
        MissingWeightsError: it is nowhere; the message says where to put it.
    """
    if name in KNOWN:
        return find_weights(name, files.get(name))
    path = files.get(name)
    if path is None or not path.is_file():
        where = "no file was given" if path is None else f"{path} is not there"
        raise MissingWeightsError(
            f"weights {name} not found ({where})", f"name the folder that holds {name}.safetensors"
        )
    return path


def weights_in(folder: Path) -> dict[str, Path]:
    """The .safetensors files of a folder by name, for ``files``: ``squeezenet1_1_imagenet`` and the like."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder of weights files", "name a folder with .safetensors files")
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def weight_hashes(metric: ImageMetric | SetMetric, files: WeightFiles) -> dict[str, str]:
    """sha256 of each weights file that the metric uses, by name."""
    return {name: sha256_file(locate(name, files)) for name in metric.weights}


def known_hashes(metric: str, files: WeightFiles | None = None) -> dict[str, str] | None:
    """:func:`weight_hashes` of the metric called so; None where a file is not on this machine."""
    try:
        return weight_hashes(find_metric(metric), files or {})
    except MissingWeightsError:
        return None


def find_metric(name: str) -> ImageMetric | SetMetric:
    """The metric called ``name``.

    Raises:
        UserError: there is none, with the nearest name.
    """
    return find("metric", name, METRICS)


def _pixels(
    better: Literal["lower", "higher"],
    function: Callable[..., NDArray[np.float64]],
    protocol: str,
    *needs: str,
) -> ImageMetric:
    """A metric of pixels: no weights; ``function(generated, target, *needed fields)``."""

    def measure(batch: ImageBatch) -> NDArray[np.float64]:
        return function(batch.generated, batch.target, *(getattr(batch, field) for field in needs))

    return ImageMetric(better, protocol, lambda files, device: measure, needs)


def _person(batch: ImageBatch) -> Tensor | None:
    return batch.mask


def _parsed_person(batch: ImageBatch) -> Tensor:
    assert batch.parsing is not None  # the metric's ``needs``
    return (batch.parsing > 0) & (batch.parsing != MISSING_LABEL)


def _drawn_person(batch: ImageBatch) -> Tensor:
    assert batch.keypoints is not None
    height, width = batch.target.shape[2:]
    return torch.from_numpy(np.stack([pose_mask(k, height, width) for k in batch.keypoints.cpu().numpy()]))


_MASKS: dict[str, tuple[str, Callable[[ImageBatch], Tensor | None], str]] = {
    "person": ("mask", _person, "the target's binary person mask"),
    "parsing": ("parsing", _parsed_person, "the target's parsing map, every label but background"),
    "keypoints": (
        "keypoints",
        _drawn_person,
        "a mask drawn from the target's keypoints (limb rectangles of half-width 4, discs of radius 4, "
        "closing 5x5)",
    ),
}


def _lpips(
    net: Net, version: Literal["0.1", "0.0"], backbone: str, mask: str | None = None, heads: str | None = None
) -> ImageMetric:
    """LPIPS on one backbone, of whole or masked images; ``heads`` None takes those of the lpips package."""
    field, choose, mask_text = _MASKS[mask] if mask else ("", None, "")

    def load(files: WeightFiles, device: torch.device) -> Measure:
        head_file = locate(heads, files) if heads else packaged_heads(net, version)
        network = Lpips(net, version, locate(backbone, files), head_file).to(device)

        def measure(batch: ImageBatch) -> NDArray[np.float64]:
            values: NDArray[np.float64] = network(
                batch.generated, batch.target, choose(batch) if choose else None
            )
            return values

        return measure

    protocol = f"LPIPS, linear heads v{version} ({net}), backbone {backbone}; images in [-1, 1], native size"
    if mask:
        protocol += f"; both images times {mask_text}, background 0 = mid-gray, mean over the whole frame"
    return ImageMetric(
        "lower", protocol, load, (field,) if mask else (), (backbone, heads) if heads else (backbone,)
    )


def _load_pckh(files: WeightFiles, device: torch.device) -> Measure:
    def measure(batch: ImageBatch) -> NDArray[np.float64]:
        assert batch.generated_keypoints is not None  # the metric's ``needs``
        assert batch.keypoints is not None
        return pckh(batch.generated_keypoints.cpu().numpy(), batch.keypoints.cpu().numpy())

    return measure


_SSIM = "Gaussian window 11, sigma 1.5, data range 1, native size, no padding"
_IS = (
    "Inception Score: pt_inception-2015-12-05, resized to 299 as for fid, softmax of the logits without "
    "bias; exp of the mean KL divergence in each of 10 parts (by a hash of the pixels), mean over parts"
)
_NOT_FID = "Frechet distance on a network of its own, not an FID; compare it only with itself"

METRICS: dict[str, ImageMetric | SetMetric] = {
    "ssim": _pixels("higher", similarity.ssim, f"SSIM: {_SSIM}"),
    "ssim_patn": _pixels(
        "higher",
        similarity.ssim_patn,
        "PATN's SSIM: Gaussian window 11, sigma 1.5, data range = max - min of the generated image; 256x176 "
        "images padded to 256x256 with white",
    ),
    "ssim_gfla": _pixels(
        "higher",
        similarity.ssim_gfla,
        "GFLA's SSIM (script/metrics.py): uniform window 51, sample covariance, data range 1, native size, "
        "no padding",
    ),
    "mask_ssim": _pixels(
        "higher", similarity.mask_ssim, f"SSIM of both images times the target's person mask: {_SSIM}", "mask"
    ),
    "psnr": _pixels(
        "higher", similarity.psnr, "10 log10(1 / MSE) on [0, 1], mean over pixels and channels, in dB"
    ),
    "l1": _pixels("lower", similarity.l1, "mean |a - b| on [0, 1] over pixels and channels"),
    "mae_gfla": _pixels(
        "lower",
        similarity.mae_gfla,
        "GFLA's MAE (script/metrics.py): sum |a - b| / sum (a + b) over pixels and channels",
    ),
    "mask_l1": _pixels(
        "lower", similarity.mask_l1, "sum |a - b| M / (3 sum M) on [0, 1], M the target's person mask", "mask"
    ),
    "lpips_alex": _lpips("alex", "0.1", "alexnet"),
    "lpips_vgg": _lpips("vgg", "0.1", "vgg16"),
    "lpips_squeeze": _lpips("squeeze", "0.1", "squeezenet1_1"),
    "lpips_alex_v0.0": _lpips("alex", "0.0", "alexnet"),
    "mask_lpips": _lpips("alex", "0.0", "alexnet", mask="keypoints"),
    "mask_lpips_v0.1": _lpips("alex", "0.1", "alexnet", mask="keypoints"),
    "mask_lpips_person": _lpips("alex", "0.0", "alexnet", mask="person"),
    "mask_lpips_parsing": _lpips("alex", "0.0", "alexnet", mask="parsing"),
    "lpips_like_squeeze": _lpips(
        "squeeze", "0.1", "squeezenet1_1_imagenet", heads="lpips_heads_squeeze_v0.1"
    ),
    "mask_lpips_like_squeeze": _lpips(
        "squeeze", "0.1", "squeezenet1_1_imagenet", mask="person", heads="lpips_heads_squeeze_v0.1"
    ),
    "pckh": ImageMetric(
        "higher",
        "PCKh: keypoints that a detector (see the settings) finds in the generated image within 0.5 head "
        "sizes of the target's; head: larger side of the box of nose, neck, eyes and ears (PATN)",
        _load_pckh,
        ("keypoints", "generated_keypoints"),
    ),
    "fid": SetMetric(
        "FID: pt_inception-2015-12-05, resized to 299 bilinearly, no anti-aliasing, as torch-fidelity does",
        PtInception,
        ("pt_inception-2015-12-05",),
    ),
    "fid_gfla": SetMetric(
        "GFLA's script: torchvision's ImageNet Inception-v3, [0, 1] resized to 299 bilinearly, then "
        "x (sigma / 0.5) + (mu - 0.5) / 0.5; reference = the whole training set; the last incomplete batch "
        "of 64 dropped on both sides, the batch no larger than the smaller set",
        GflaInception,
        ("inception_v3",),
        reference="training",
        whole_batches_of=64,
    ),
    "kid": SetMetric(
        "KID: pt_inception-2015-12-05, features and size as for fid; kernel (x.y / 2048 + 1)^3, unbiased, "
        "over all pairs (published tools: mean over random subsets of 1,000)",
        PtInception,
        ("pt_inception-2015-12-05",),
        statistic="kernel",
    ),
    "is": SetMetric(_IS, PtInceptionLogits, ("pt_inception-2015-12-05",), statistic="inception_score"),
    "mask_is": SetMetric(
        f"{_IS}; generated images times {_MASKS['keypoints'][2]}, background 0 = black (PATN)",
        PtInceptionLogits,
        ("pt_inception-2015-12-05",),
        statistic="inception_score",
        masked=True,
    ),
    "frechet_mobilenetv2": SetMetric(
        f"{_NOT_FID}: ImageNet MobileNetV2 (Keras weights), input x / 127.5 - 1, native size, mean last map",
        KerasMobileNetV2,
        ("mobilenet_v2_features_imagenet",),
    ),
}


def load_metrics(
    names: Sequence[str], files: WeightFiles, device: torch.device
) -> tuple[dict[str, Measure], dict[str, nn.Module], dict[str, str]]:
    """Measures of the image metrics, networks of the set metrics, and why each other name is missing."""
    measures: dict[str, Measure] = {}
    networks: dict[str, nn.Module] = {}
    missing: dict[str, str] = {}
    for name in names:
        metric = find_metric(name)
        try:
            if isinstance(metric, SetMetric):
                networks[name] = metric.load(files, device, networks.values())
            else:
                measures[name] = metric.load(files, device)
        except MissingWeightsError as error:
            missing[name] = str(error)
    return measures, networks, missing
