"""Descriptions of segmentation models: what goes in, what comes out, and how its labels become LIP-20.

A model of your own needs such a description beside it: ``x.json`` beside ``x.onnx``, or ``parser.json`` in a
folder that transformers wrote. A minimal one: ``{"size": [512, 512], "labels": "atr18"}``.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from reposer.annotation.fitting import Fit
from reposer.config import Config
from reposer.data.parsing import LABEL_SETS, LIP_LABELS, convert
from reposer.images import IMAGENET_MEAN, IMAGENET_STD
from reposer.structures import NUM_LABELS

# A label of a model that knows no left and right, and the two labels of LIP-20 that it becomes.
SIDELESS: dict[str, tuple[str, str]] = {
    "arms": ("left-arm", "right-arm"),
    "legs": ("left-leg", "right-leg"),
    "shoes": ("left-shoe", "right-shoe"),
}
SIDELESS_CODES = {name: NUM_LABELS + i for i, name in enumerate(SIDELESS)}  # in maps, until sides are told

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


Sides = Literal["model", "keypoints"]  # who tells left from right


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
    licence: str = ""  # of the weights, in a few words
    non_commercial: bool = False  # whether the licence forbids commercial use

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not all(8 <= side <= 4096 for side in self.size):
            raise ValueError(f"size {list(self.size)}: each side must have 8 to 4096 pixels")
        if not all(value > 0 for value in self.std):
            raise ValueError("std must be positive")
        if isinstance(self.labels, str) and self.labels not in LABEL_NAMES:
            coarse = " (coarser than LIP-20)" if self.labels in LABEL_SETS else ""
            raise ValueError(
                f"labels {self.labels!r}{coarse}: use one of {', '.join(LABEL_NAMES)}, or a list"
            )
        unknown = [n for n in self.labels if n not in (*LIP_LABELS, *SIDELESS)] if not self.named else []
        if unknown or not 2 <= len(self.labels) <= 256:
            wrong = f"{unknown[0]!r} is no label" if unknown else "2 to 256 classes are wanted"
            raise ValueError(f"labels: {wrong}; LIP-20 has {', '.join((*LIP_LABELS, *SIDELESS))}")
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
        """Whether key-points tell left from right."""
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

# The known ones, by name; those with weights in reposer.weights.KNOWN can be downloaded.
MODELS: dict[str, SegmentationModel] = {
    "schp_lip": _SCHP,  # Li et al., Self-Correction for Human Parsing, TPAMI 2020
    "schp_atr": _SCHP.changed(size=(512, 512), labels="atr18"),
    "segformer_clothes": SegmentationModel(  # mattmdjaga/segformer_b2_clothes
        size=(512, 512),
        labels="atr18",
        licence="the card says MIT; the network it starts from is NVIDIA's SegFormer: not for commercial use",
        non_commercial=True,
    ),
    "fashn": SegmentationModel(  # fashn-ai/fashn-human-parser
        size=(576, 384),
        labels="fashn18",
        licence="NVIDIA's source code licence for SegFormer: not for commercial use",
        non_commercial=True,
    ),
}
