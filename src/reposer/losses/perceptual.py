"""The perceptual loss of SAN (eq. 6): distance of two images in the feature maps of an ImageNet network.

Default: VGG-19, relu1_2, mean squared difference (Johnson et al. 2016; layer as in PATN's code). The weights
come from a file, never from chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from reposer.errors import MissingWeightsError, UserError
from reposer.images import imagenet_normalize
from reposer.losses.squared_error import mean_squared_error
from reposer.weights import find_weights, load_state_dict_file

_VGG_CONVS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # convolutions per block
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_FIRE_WIDTHS = {  # SqueezeNet 1.1: in, squeeze, expand 1x1, expand 3x3
    "fire2": (64, 16, 64, 64),
    "fire3": (128, 16, 64, 64),
    "fire4": (128, 32, 128, 128),
    "fire5": (256, 32, 128, 128),
    "fire6": (256, 48, 192, 192),
    "fire7": (384, 48, 192, 192),
    "fire8": (384, 64, 256, 256),
    "fire9": (512, 64, 256, 256),
}
NETWORKS = (*_VGG_CONVS, "squeezenet")
_OFFICIAL = {"squeezenet": "squeezenet1_1"}  # name in reposer.weights, where it differs
NORMS = ("l2", "l1")

Layers = list[tuple[str, nn.Module]]


def _vgg_layers(net: str) -> Layers:
    """conv1_1, relu1_1, conv1_2, ..., pool5 in torchvision's order: the place in the list is its index."""
    layers: Layers = []
    channels = 3
    for block, (convs, width) in enumerate(zip(_VGG_CONVS[net], _VGG_WIDTHS, strict=True), start=1):
        for i in range(1, convs + 1):
            layers.append((f"conv{block}_{i}", nn.Conv2d(channels, width, 3, padding=1)))
            layers.append((f"relu{block}_{i}", nn.ReLU()))
            channels = width
        layers.append((f"pool{block}", nn.MaxPool2d(2)))
    return layers


def _squeezenet_layers() -> Layers:
    """SqueezeNet 1.1: conv1, relu1, pool1, fire2, fire3, pool3, fire4, fire5, pool5, fire6 ... fire9."""
    layers: Layers = [("conv1", nn.Conv2d(3, 64, 3, stride=2)), ("relu1", nn.ReLU())]
    layers.append(("pool1", nn.MaxPool2d(3, stride=2, ceil_mode=True)))
    for name, widths in _FIRE_WIDTHS.items():
        layers.append((name, Fire(*widths)))
        if name in ("fire3", "fire5"):
            layers.append((f"pool{name[-1]}", nn.MaxPool2d(3, stride=2, ceil_mode=True)))
    return layers


class PerceptualNetwork(nn.Module):
    """The first layers of a frozen ImageNet network, up to the deepest that is asked for.

    Args:
        net: vgg19, vgg16 or squeezenet (1.1).
        layers: names, such as relu1_2, conv3_1, pool2 (VGG) or relu1, fire5 (SqueezeNet).
        weights: a file in torchvision's layout (.pth or .safetensors; it may end behind the deepest layer
            asked for), or its state dict; None looks for torchvision's file where reposer.weights keeps them.

    Raises:
        MissingWeightsError: there is no such file.
        UserError: unknown network or layer; weights missing, unknown or of another shape.
    """

    def __init__(
        self,
        net: str = "vgg19",
        layers: Sequence[str] = ("relu1_2",),
        weights: str | Path | Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if net not in NETWORKS:
            raise UserError(f"net={net!r} is not known", f"use one of {', '.join(NETWORKS)}")
        with torch.device("meta"):  # nothing random is ever made: the weights below take the places
            every = _squeezenet_layers() if net == "squeezenet" else _vgg_layers(net)
        names = [name for name, _ in every]
        unknown = [name for name in layers if name not in names]
        if unknown or not layers:
            raise UserError(
                f"{net} has no layer {', '.join(unknown) or 'without a name'}", f"use {', '.join(names)}"
            )
        self.net = net
        self.layers = tuple(layers)
        depth = 1 + max(names.index(name) for name in layers)
        self.names = tuple(names[:depth])
        whole = nn.Sequential(*(layer for _, layer in every))
        self.features = whole[:depth]
        for name, layer in zip(self.names, self.features, strict=True):
            if isinstance(layer, nn.ReLU):  # in place, unless the convolution's own output was asked for
                layer.inplace = name.replace("relu", "conv") not in self.layers
        self._load(_read_weights(net, weights), set(whole.state_dict()))
        self.requires_grad_(False).eval()

    def _load(self, weights: Mapping[str, Tensor], known: Iterable[str]) -> None:
        """Strictly: every weight of our layers, and none that the whole network does not have."""
        found = {re.sub(r"^features\.", "", key): value for key, value in weights.items()}
        wanted = self.features.state_dict()
        missing = sorted(key for key in wanted if key not in found)
        strange = sorted(key for key in found if key not in set(known) and not key.startswith("classifier."))
        shapes = sorted(key for key in wanted if key in found and found[key].shape != wanted[key].shape)
        for problem, keys in (
            ("lack", missing),
            ("have an unknown", strange),
            ("have the wrong shape for", shapes),
        ):
            if keys:
                first = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
                raise UserError(
                    f"the weights {problem} {first} of {self.net}", f"give torchvision's file for {self.net}"
                )
        ours = {key: found[key].detach().to(torch.float32).clone() for key in wanted}
        self.features.load_state_dict(ours, strict=True, assign=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Model-float images (B, 3, H, W) in [-1, 1] -> the map of each layer, in the order of ``layers``."""
        x = imagenet_normalize(image)
        maps = {}
        for name, layer in zip(self.names, self.features, strict=True):
            x = layer(x)
            if name in self.layers:
                maps[name] = x
        return [maps[name] for name in self.layers]


def _read_weights(net: str, weights: str | Path | Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The tensors themselves, those of the file, or those of torchvision's own file."""
    if isinstance(weights, Mapping):
        return weights
    if weights is not None and not Path(weights).is_file():
        raise MissingWeightsError(f"{weights}: no such file", f"give the file with the weights of {net}")
    return load_state_dict_file(find_weights(_OFFICIAL.get(net, net)) if weights is None else weights)


def perceptual_loss(
    network: PerceptualNetwork, generated: Tensor, target: Tensor, norm: str = "l2"
) -> Tensor:
    """Mean difference of the feature maps, summed over the layers; a scalar.

    Args:
        network: the frozen network.
        generated: (B, 3, H, W) model float; receives the gradient.
        target: (B, 3, H, W) model float.
        norm: l2, the mean square (eq. 6), or l1, the mean absolute difference (PATN's default).
    """
    with torch.no_grad():
        wanted = network(target)
    return torch.stack(layer_differences(network(generated), wanted, norm)).sum()


def layer_differences(maps: Sequence[Tensor], wanted: Sequence[Tensor], norm: str = "l2") -> list[Tensor]:
    """Mean square (l2) or mean absolute (l1) difference of each pair of maps, in float32; scalars."""
    if norm not in NORMS:
        raise UserError(f"norm={norm!r} is not known", f"use one of {', '.join(NORMS)}")
    distance = mean_squared_error if norm == "l2" else F.l1_loss
    return [distance(a.float(), b.float()) for a, b in zip(maps, wanted, strict=True)]
