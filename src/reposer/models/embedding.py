"""Re-ID embeddings: a person image becomes a vector; near vectors, same person. The backbones by name.

Backbone -> global average (or averages of horizontal stripes) -> pooled feature -> optional BNNeck (a
BatchNorm without shift; Luo et al., arXiv 1903.07071: the triplet loss sees the feature before it,
the classifier and the user the feature after it). In use an embedding takes images of any size as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reposer.config import Config
from reposer.errors import UserError, with_plugins
from reposer.images import resize, to_float
from reposer.models.backbones import MobileNetV2, ResNet, Small
from reposer.models.layers import build, check_arguments, check_choice
from reposer.weights.files import find_weights, load_state_dict_file
from reposer.weights.network_folder import (
    FILES,
    WEIGHTS,
    build_with_weights,
    open_folder,
    read_network,
    save_network,
)

EMBEDDINGS: dict[str, Callable[..., nn.Module]] = with_plugins(
    "reposer.backbones",
    {
        "small": Small,
        "resnet18": partial(ResNet, "resnet18"),
        "resnet50": partial(ResNet, "resnet50"),
        "mobilenet_v2": partial(MobileNetV2, False),
        "mobilenet_v2_keras": partial(MobileNetV2, True),
    },
)
NECKS = ("none", "bn")


class Features(NamedTuple):
    """What an embedding says about B images."""

    pooled: Tensor  # (B, D) before the neck: what the triplet loss and the verification head see
    feature: Tensor  # (B, D) after it: what the classifier and the user see


class EmbeddingInfo(Config):
    """What an embedding is and where it comes from."""

    later: ClassVar[frozenset[str]] = frozenset({"budget", "budget_seed"})

    embedding: dict[str, Any] = Field(default_factory=dict)  # keywords of Embedding
    trained_on: str = ""  # the training data in words
    identity_hash: str = ""  # PackedPeople.identity_hash of the training people; empty: not recorded
    images_hash: str = ""  # PackedPeople.images_hash of the same; empty: not recorded
    budget: float = Field(
        default=1.0, gt=0, le=1
    )  # share of each person's images of these that it was trained on
    budget_seed: int = 0  # of the choice (data/samplers.py)
    splits: tuple[str, ...] = ("train",)  # of the prepared folder, that it was trained on
    step: int = 0  # optimizer steps
    weights_sha256: str = ""  # of model.safetensors; empty only while nothing is saved


class Embedding(nn.Module):
    """An embedding; ``forward`` is its use, ``features`` its training.

    ``save_pretrained`` and ``from_pretrained`` keep it in a folder of the hub's layout.

    Args:
        backbone: a key of EMBEDDINGS.
        backbone_args: keywords of the backbone.
        size: (H, W) that images are resized to in use.
        stripes: horizontal stripes averaged on their own; D = stripes x channels.
        neck: "bn" or "none".
        window: side of the square of map cells that are averaged in use; each average is L2-normalized and
            all of them are summed (Zheng et al. 2017 at 256x256, trained on crops). 0: one global average.
        mirror: in use, the feature of the mirrored image is added, and the sum normalized again.
        freeze_norm: the backbone's BatchNorms keep their stored statistics during training (IDE 2016).
        frozen: so many of the backbone's lowest ``parts`` keep their weights and statistics: pretrained edges
            and textures stay, and training is faster by their backward pass.

    Raises:
        UserError: no such backbone or argument, or an impossible value.
    """

    def __init__(
        self,
        backbone: str = "small",
        backbone_args: dict[str, Any] | None = None,
        size: tuple[int, int] = (128, 64),
        stripes: int = 1,
        neck: str = "bn",
        window: int = 0,
        mirror: bool = False,
        freeze_norm: bool = False,
        frozen: int = 0,
    ) -> None:
        super().__init__()
        check_choice("neck", neck, NECKS)
        check_arguments({"size": size, "stripes": stripes, "window": window})
        numbers = [*size, stripes, window, frozen]
        if len(size) != 2 or not all(isinstance(number, int) for number in numbers):
            problem = (
                f"size={size}, stripes={stripes}, window={window}, frozen={frozen}: are no whole numbers"
            )
            raise UserError(problem, "size is height and width, and the others are one number each")
        if min(size) < 1 or stripes < 1 or window < 0 or (window and (stripes > 1 or neck == "bn")):
            raise UserError(
                f"size={size}, stripes={stripes}, window={window}, neck={neck}: impossible together",
                "sizes and stripes are positive, and a window wants stripes=1 and neck=none",
            )
        arguments: dict[str, Any] = {
            "backbone": backbone,
            "backbone_args": backbone_args or {},
            "size": list(size),
        }
        arguments |= {"stripes": stripes, "neck": neck, "window": window, "mirror": mirror}
        arguments |= {"freeze_norm": freeze_norm, "frozen": frozen}
        self.info = EmbeddingInfo(embedding=arguments)
        self.backbone = build_backbone(backbone, **(backbone_args or {}))
        self.size = (size[0], size[1])
        self.stripes, self.window = stripes, window
        self.mirror, self.freeze_norm = mirror, freeze_norm
        parts = self.backbone.parts()  # type: ignore[operator]
        if not 0 <= frozen <= len(parts):
            raise UserError(f"frozen={frozen}: {backbone} has {len(parts)} parts that can be kept")
        self._frozen: tuple[nn.Module, ...] = tuple(parts[:frozen])  # a tuple: not registered a second time
        for part in self._frozen:
            part.requires_grad_(False)
        self.dimension = stripes * int(self.backbone.channels)  # type: ignore[arg-type]
        self.neck = nn.BatchNorm1d(self.dimension) if neck == "bn" else nn.Identity()
        if isinstance(self.neck, nn.BatchNorm1d):
            self.neck.bias.requires_grad_(False)

    def features(self, image: Tensor) -> Features:
        """(B, 3, H, W) uint8 or model float, at the size given -> both features, (B, D) each."""
        pooled = self._average(self.backbone(to_float(image)))
        return Features(pooled, self.neck(pooled))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or model float, any size -> (B, D) float32 of length 1, to compare by
        Euclidean distance.
        """
        image = resize(to_float(image), self.size)
        feature = self._described(image)
        return F.normalize(feature + self._described(image.flip(3)), dim=1) if self.mirror else feature

    def feature_and_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (B, D) after the neck and the backbone's last maps (B, C, h, w), for losses on them.

        Args:
            image: as of ``forward``; its mirror image is not looked at.
        """
        maps = self.backbone(resize(to_float(image), self.size))
        return self.neck(self._average(maps)), maps

    def train(self, mode: bool = True) -> Embedding:
        """As of any module; kept BatchNorms (``freeze_norm``, ``frozen``) stay in use."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        if self.freeze_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json, README.md and a seal.

        Raises:
            UserError: a weight is not finite, the folder holds something else, or the disk refuses.
        """
        save_network(folder, self, self.info, lambda info: _model_card(info, self.size, self.dimension))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """From a folder written by :meth:`save_pretrained`, or a hub id (hub:owner/name); in eval mode.

        Raises:
            UserError: a file is missing or damaged, the weights do not belong to the configuration, or the
                hub cannot be reached.
        """
        folder = open_folder(name, FILES)
        info, tensors = read_network(EmbeddingInfo, folder)
        return build_with_weights(lambda: cls.from_info(info), tensors, str(folder / WEIGHTS), "embedding")

    @classmethod
    def from_info(cls, info: EmbeddingInfo) -> Self:
        """What ``info`` describes, with new weights."""
        embedding = cls(**info.embedding)
        embedding.info = info
        return embedding

    def _described(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) model float -> (B, D) float32 of length 1."""
        if not self.window:
            return F.normalize(self.features(image).feature.float(), dim=1)
        maps = F.avg_pool2d(self.backbone(image), self.window, stride=1)  # (B, D, h, w)
        return F.normalize(F.normalize(maps.float(), dim=1).sum((2, 3)), dim=1)

    def _average(self, maps: Tensor) -> Tensor:
        if self.stripes == 1:
            return maps.mean((2, 3))
        return F.adaptive_avg_pool2d(maps, (self.stripes, 1)).flatten(1)  # (B, C, S, 1) -> (B, C S)


def _model_card(info: EmbeddingInfo, size: tuple[int, int], dimension: int) -> str:
    height, width = size
    return f"""\
---
library_name: reposer
license: apache-2.0
pipeline_tag: image-feature-extraction
tags: [person-re-identification]
---

# {info.embedding.get("backbone", "small")}: person images to {dimension} numbers

{info.step:,} optimizer steps; input {height}x{width} RGB. Trained on: {info.trained_on or "not recorded"}.
Training people (hash of their ids): `{info.identity_hash or "not recorded"}`.

    from reposer.models.embedding import Embedding
    from reposer.reid.features import embed_images
    embedding = Embedding.from_pretrained("this folder")
    features = embed_images(embedding, images)  # (N, H, W, 3) uint8 -> (N, {dimension}), of length 1

Meant for research on person re-identification, and for checking whether a generated picture keeps a person's
looks. Not meant for surveillance or for decisions about people.
"""


def build_backbone(name: str, **args: Any) -> nn.Module:
    """The backbone of that name.

    Raises:
        UserError: no such backbone, no such argument (the nearest is named), or an impossible value.
    """
    return build("backbone", EMBEDDINGS, name, args)


def load_pretrained(embedding: Embedding, path: str | Path | None = None) -> Path:
    """Give the backbone ImageNet weights; returns the file they came from.

    Args:
        embedding: its backbone is changed.
        path: a .safetensors or .pth file of the backbone, taken as it is; None: the official file in the
            weights folders, verified by its hash.

    Raises:
        UserError: no weights for this backbone, or a file of another network.
        MissingWeightsError: the official file is not on this machine.
    """
    backbone = embedding.backbone
    name = getattr(backbone, "pretrained", None)
    if not hasattr(backbone, "load") or (path is None and name is None):
        raise UserError(
            f"{type(backbone).__name__}: no official ImageNet weights are known for it",
            "name a file of its weights, or start from random ones",
        )
    file = Path(path) if path is not None else find_weights(str(name))
    try:
        backbone.load(load_state_dict_file(file))  # type: ignore[operator]
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{file}: not the weights of this backbone ({reason})", "give another file"
        ) from error
    return file


# ---- The network of a Re-ID training: an embedding with the heads that only training needs.

COMPARISONS = ("square", "product", "abs")


class ReidOutput(NamedTuple):
    """What the losses compare."""

    pooled: Tensor  # (B, D) feature before the neck
    logits: Tensor  # (B, K) of the classes
    pair_logits: Tensor | None  # (B / 2, 2) different or same, of rows p and p + B / 2


class ReidNetwork(nn.Module):
    """An embedding, a classifier on its feature, and where asked for a verification head on pairs.

    Args:
        embedding: what remains after training.
        classes: K, number of training people.
        dropout: before both heads.
        bias: of the classifier.
        verification: what the verification head looks at: "square" (a - b)^2, the Square layer of Zheng et
            al. (arXiv 1611.05666); "product" a b, its author's later code; "abs" |a - b|; None: no such head.
            Features are those before the neck, not normalized.
        centers: keep a center (D,) of each class's features before the neck, from N(0, 1) on, for a center
            loss; a buffer, since it moves by a rule of its own and not by the optimizer.
    """

    def __init__(
        self,
        embedding: Embedding,
        classes: int,
        dropout: float = 0.0,
        bias: bool = True,
        verification: str | None = None,
        centers: bool = False,
    ) -> None:
        super().__init__()
        check_choice("verification", verification, (*COMPARISONS, None))
        self.embedding = embedding
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding.dimension, classes, bias=bias)
        nn.init.normal_(self.classifier.weight, std=0.001)  # as IDE and Bag of Tricks
        if bias:
            nn.init.zeros_(self.classifier.bias)
        self.verification = verification
        self.verifier = nn.Linear(embedding.dimension, 2) if verification else None
        self.centers: Tensor | None  # (K, D)
        self.register_buffer("centers", torch.randn(classes, embedding.dimension) if centers else None)

    def forward(self, image: Tensor) -> ReidOutput:
        """(B, 3, H, W) uint8 or model float, used at its size; with a verification head two halves, pairs."""
        pooled, feature = self.embedding.features(image)
        logits = self.classifier(self.dropout(feature))
        if self.verifier is None:
            return ReidOutput(pooled, logits, None)
        first, second = pooled.chunk(2)
        compared = compare_pairs(first, second, str(self.verification))
        return ReidOutput(pooled, logits, self.verifier(self.dropout(compared)))


def compare_pairs(first: Tensor, second: Tensor, how: str) -> Tensor:
    """(P, D) and (P, D) -> (P, D), by one of COMPARISONS."""
    if how == "product":
        return first * second
    difference = first - second
    return difference.square() if how == "square" else difference.abs()
