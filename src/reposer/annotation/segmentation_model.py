"""Descriptions of segmentation models: what goes in, what comes out, and how its labels become LIP-20.

A model of your own needs such a description beside it: ``x.json`` beside ``x.onnx``, or ``parser.json`` in a
folder that transformers wrote. A minimal one: ``{"size": [512, 512], "labels": "atr18"}``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from reposer.config import Config, config_bytes
from reposer.data.parsing import LABEL_SETS, LIP_LABELS, convert
from reposer.errors import UserError, unknown
from reposer.images import IMAGENET_MEAN, IMAGENET_STD
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.structures import NUM_LABELS
from reposer.trained.networks import PARSER, open_network
from reposer.trained.onnx import export_module

# ---- How an image is fitted into a segmentation model's input, and its scores are carried back: two
# matrices.
#
# Every fit here moves rows and columns independently, so that "warp, then resample" is ``rows @ x @
# columns.T`` with two small matrices, exactly, for any number of interpolations in a row; nothing of the size
# of the intermediate pictures is made.
#
# * affine: SCHP's. The aspect is kept, the first and last pixel of the longer side land on 0 and on the
# model's
#   *size* (not size - 1), the rest is black; scores go back by way of the model's input size. OpenCV does the
#   same with positions rounded to 1/32 pixel.
# * resize: the aspect is not kept; pixel centers as Pillow and torchvision have them (antialiased when it
#   shrinks); scores go directly to the image's size.
# * pad: the aspect is kept, the image stands in the middle of black; pixel centers as in resize.

Fit = Literal["affine", "resize", "pad"]
Size: TypeAlias = tuple[int, int]  # (H, W)


def resample(x: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """(B, C, H, W) float -> (B, C, h, w) by rows (h, H) and columns (w, W); x itself if it fits."""
    rows, columns = matrices
    if not _is_identity(rows):
        x = torch.matmul(rows.to(x.device), x)
    return x if _is_identity(columns) else torch.matmul(x, columns.T.to(x.device))


@lru_cache(maxsize=256)
def into_model(fit: Fit, image: Size, model: Size) -> tuple[Tensor, Tensor]:
    """Matrices (h, H), (w, W) that bring an image of size ``image`` to the input size ``model``."""
    if fit == "resize":
        return _resize(image[0], model[0]), _resize(image[1], model[1])
    if fit == "pad":
        inner = _inner(image, model)
        return _padded(image[0], inner[0], model[0]), _padded(image[1], inner[1], model[1])
    scale = _affine_scale(image, model)
    places = (
        (torch.arange(m, dtype=torch.float64) - m / 2) / scale + (n - 1) / 2
        for n, m in zip(image, model, strict=True)
    )
    rows, columns = (_taps(place, n) for place, n in zip(places, image, strict=True))
    return rows.float(), columns.float()


@lru_cache(maxsize=256)
def onto_image(
    fit: Fit, scores: Size, model: Size, image: Size, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Matrices (H, h), (W, w) that bring scores of size ``scores`` back to the image's size."""
    if fit == "resize":
        rows, columns = (_upsample(s, n, align_corners) for s, n in zip(scores, image, strict=True))
        return rows.float(), columns.float()
    inner = _inner(image, model)
    both = []
    for axis in (0, 1):
        n, m = image[axis], model[axis]
        if fit == "affine":
            places = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * _affine_scale(image, model)
            back = _taps(places + m / 2, m)
        else:
            start = (m - inner[axis]) // 2
            back = torch.zeros(n, m, dtype=torch.float64)
            back[:, start : start + inner[axis]] = _upsample(inner[axis], n, False)
        both.append((back @ _upsample(scores[axis], m, align_corners)).float())
    return both[0], both[1]


def _is_identity(matrix: Tensor) -> bool:
    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix)))


def _affine_scale(image: Size, model: Size) -> float:
    """Model pixels for an image pixel; SCHP measures the image from its first to its last pixel's center."""
    height, width = max(image[0] - 1, 1), max(image[1] - 1, 1)
    return min(model[1] / width, model[0] / height)


def _inner(image: Size, model: Size) -> Size:
    """Size of the image inside a padded input."""
    scale = min(model[0] / image[0], model[1] / image[1])
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def _taps(places: Tensor, n: int) -> Tensor:
    """(M, n) linear interpolation at (M,) places on the grid 0 .. n - 1; everything around it is 0."""
    low = places.floor()
    share = places - low
    matrix = torch.zeros(len(places), n, dtype=torch.float64)
    row = torch.arange(len(places))
    for place, weight in ((low, 1 - share), (low + 1, share)):
        inside = (place >= 0) & (place < n)
        matrix[row[inside], place[inside].long()] += weight[inside]
    return matrix


def _upsample(n: int, m: int, align_corners: bool) -> Tensor:
    """(m, n) float64, what ``interpolate(mode="bilinear")`` does along one side, without antialiasing."""
    place = torch.arange(m, dtype=torch.float64)
    place = place * ((n - 1) / max(m - 1, 1)) if align_corners else (place + 0.5) * (n / m) - 0.5
    return _taps(place.clamp(0, n - 1), n)


def _resize(n: int, m: int) -> Tensor:
    """(m, n): bilinear, antialiased where it shrinks."""
    return F.interpolate(torch.eye(n)[None, None], (m, n), mode="bilinear", antialias=True)[0, 0]


def _padded(n: int, inner: int, m: int) -> Tensor:
    """(m, n): resized to ``inner`` in the middle of m."""
    matrix = torch.zeros(m, n)
    start = (m - inner) // 2
    matrix[start : start + inner] = _resize(n, inner)
    return matrix


# A label of a model that knows no left and right, and the two labels of LIP-20 that it becomes.
SIDELESS: dict[str, tuple[str, str]] = {
    "arms": ("left-arm", "right-arm"),
    "legs": ("left-leg", "right-leg"),
    "shoes": ("left-shoe", "right-shoe"),
}
SIDELESS_CODES = {name: NUM_LABELS + i for i, name in enumerate(SIDELESS)}  # in maps, until sides are known

# Label sets of models outside data/parsing.py, each label by the LIP-20 label that it becomes.
_OUTSIDE_SETS: dict[str, tuple[str, ...]] = {
    # background, face, hair, top, dress, skirt, pants, belt, bag, hat, scarf, glasses, arms, hands, legs,
    # feet, torso (bare skin), jewelry
    "fashn18": (
        *("background", "face", "hair", "upper-clothes", "dress", "skirt", "pants", "pants", "background"),
        *("hat", "scarf", "sunglasses", "arms", "arms", "legs", "shoes", "background", "background"),
    ),
    # background, apparel, face and neck, hair, left foot, left hand, left lower arm, left lower leg, left
    # shoe, left sock, left upper arm, left upper leg, lower clothing, the same eight of the right, torso,
    # upper clothing, lips, teeth, tongue
    "sapiens28": (
        *("background", "scarf", "face", "hair", "left-leg", "left-arm", "left-arm", "left-leg"),
        *("left-shoe", "socks", "left-arm", "left-leg", "pants", "right-leg", "right-arm", "right-arm"),
        *("right-leg", "right-shoe", "socks", "right-arm", "right-leg", "background", "upper-clothes"),
        *("face", "face", "face", "face", "face"),
    ),
}
_CONVERTIBLE = ("lip20", "cihp20", "atr18")  # the other sets of data/parsing.py are coarser than LIP-20
LABEL_NAMES = (*_CONVERTIBLE, *_OUTSIDE_SETS)


_LEAST_STD = 1e-3  # pixel values are in [0, 1]: a smaller one would only blow up noise
Sides = Literal["model", "keypoints"]  # who tells left from right
SIDES: tuple[Sides, ...] = ("model", "keypoints")


class SegmentationModel(Config):
    """What a parser must know about a network; pixel values are divided by 255 before mean and std."""

    size: tuple[int, int]  # (H, W) of its input
    labels: str | tuple[str, ...]  # a name of LABEL_NAMES, or a LIP-20 label (or arms, legs, shoes) a class
    fit: Fit = "resize"
    color: Literal["rgb", "bgr"] = "rgb"  # order of the input's channels
    mean: tuple[float, float, float] = IMAGENET_MEAN  # in the order of the channels fed
    std: tuple[float, float, float] = IMAGENET_STD
    output: int = Field(default=0, ge=0)  # number of the output to use
    layout: Literal["nchw", "nhwc", "labels"] = "nchw"  # scores, scores, or (B, h, w) class indices
    align_corners: bool = False  # of the interpolation of its scores
    sides: Sides = "model"  # "keypoints": they decide where they know both limbs, the model elsewhere
    # of the weights, in a few words
    license: str = Field(default="", validation_alias=AliasChoices("license", "licence"))
    non_commercial: bool = False  # whether the license forbids commercial use

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not all(8 <= side <= 4096 for side in self.size):
            raise ValueError(f"size {list(self.size)}: each side must have 8 to 4096 pixels")
        if not all(value >= _LEAST_STD for value in self.std):
            raise ValueError(f"std must be positive, at least {_LEAST_STD}")
        if len(self.license) > 1000 or not self.license.isprintable():
            raise ValueError("license: a line of at most 1000 characters is wanted")
        if isinstance(self.labels, str) and self.labels not in LABEL_NAMES:
            coarse = " (coarser than LIP-20)" if self.labels in LABEL_SETS else ""
            raise ValueError(unknown("labels", f"{self.labels}{coarse}", [*LABEL_NAMES, "a list of names"]))
        names = (*LIP_LABELS, *SIDELESS)
        for label in () if self.named else self.labels:
            if label not in names:
                raise ValueError(unknown("labels: label", label, names))
        if not 2 <= len(self.labels) <= 256:
            raise ValueError(f"labels: 2 to 256 classes are wanted; LIP-20 has {', '.join(names)}")
        return self

    @property
    def named(self) -> bool:
        """Whether ``labels`` is the name of a set."""
        return isinstance(self.labels, str)

    def lookup(self) -> NDArray[np.uint8]:
        """(L,) LIP-20 label of each class; SIDELESS_CODES where the side is not known."""
        if isinstance(self.labels, str) and self.labels in _CONVERTIBLE:
            classes = np.arange(len(LABEL_SETS[self.labels]), dtype=np.uint8)
            return np.asarray(convert(classes[None], self.labels, "lip20")[0])
        names = _OUTSIDE_SETS[self.labels] if isinstance(self.labels, str) else self.labels
        codes = {**{name: i for i, name in enumerate(LIP_LABELS)}, **SIDELESS_CODES}
        return np.array([codes[name] for name in names], dtype=np.uint8)

    @property
    def needs_keypoints(self) -> bool:
        """Whether keypoints tell left from right."""
        return self.sides == "keypoints" or self.is_sideless

    @property
    def is_sideless(self) -> bool:
        """Whether some label has no side."""
        return bool((self.lookup() >= NUM_LABELS).any())


_BGR_MEAN, _BGR_STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)  # ImageNet's constants for swapped colors
_SCHP = SegmentationModel(
    size=(473, 473),
    labels="lip20",
    fit="affine",
    color="bgr",
    mean=_BGR_MEAN,
    std=_BGR_STD,
    output=1,  # parsing, fused parsing, edge
    align_corners=True,
)

# The known ones, by name; those with weights in reposer.weights.files.KNOWN can be downloaded.
MODELS: dict[str, SegmentationModel] = {
    "schp_lip": _SCHP,  # Li et al., Self-Correction for Human Parsing, TPAMI 2020
    "schp_atr": _SCHP.changed(size=(512, 512), labels="atr18"),
    "segformer_clothes": SegmentationModel(  # mattmdjaga/segformer_b2_clothes
        size=(512, 512),
        labels="atr18",
        license="the card says MIT; the network it starts from is NVIDIA's SegFormer: not for commercial use",
        non_commercial=True,
    ),
    "fashn": SegmentationModel(  # fashn-ai/fashn-human-parser
        size=(576, 384),
        labels="fashn18",
        license="NVIDIA's source code licence for SegFormer: not for commercial use",
        non_commercial=True,
    ),
}


# ---- A trained parser as an ONNX file with its description beside it: what ``--parser my.onnx`` takes.

PARSER_INPUT, PARSER_OUTPUT = "image", "scores"


def export_parser(run_dir: str | Path, path: str | Path) -> Path:
    """Write ``x.onnx`` and ``x.json`` from the newest checkpoint of a run of ``reposer train parser_small``.

    Args:
        run_dir: the run, or an export of it.
        path: x.onnx; each file appears complete or not at all, the description last.

    Raises:
        UserError: no such run, a guided parser, another suffix, a missing package, or the disk refuses.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path}: not an .onnx file", "give a name that ends with .onnx")
    claim_outputs(path.parent, [path.name, path.with_suffix(".json").name], older=_is_older(path))
    trained = open_network(PARSER, run_dir)
    if trained.info.generator != "parsing_network":
        problem = f"{run_dir}: a parser that sees masks and joints too, which no .onnx description can say"
        raise UserError(problem, "give the run folder itself, or its export, as --parser")
    height, width = trained.info.size
    half = (0.5, 0.5, 0.5)  # model float: [-1, 1]
    # it mixes up legs (docs/results), so keypoints decide where there are any
    description = SegmentationModel(
        size=(height, width), labels="lip20", mean=half, std=half, sides="keypoints"
    )
    export_module(trained.network, torch.zeros(2, 3, height, width), path, (PARSER_INPUT, PARSER_OUTPUT))
    write_output(path.with_suffix(".json"), config_bytes(description))
    return path


def _is_older(path: Path) -> bool:
    """Whether a description of this program's form lies beside the file, from before outputs were listed."""
    return is_older(path.with_suffix(".json"), holds_keys("size", "labels", "mean", "std", "sides"))
