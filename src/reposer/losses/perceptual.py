"""The perceptual loss of SAN (eq. 6): distance of two images in the feature maps of an ImageNet network.

Default: VGG-19, relu1_2, mean squared difference (Johnson et al. 2016; layer as in PATN's code). The weights
come from a file, never from chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.squeezenet import Fire

from reposer.errors import MissingWeightsError, UserError, known
from reposer.images import imagenet_normalize
from reposer.weights.files import find_weights, load_state_dict_file

# ---- The mean squared difference of large maps, in three passes over memory instead of PyTorch's seven.


def mean_squared_error(maps: Tensor, wanted: Tensor) -> Tensor:
    """``F.mse_loss`` of (B, C, H, W), to float tolerance; a scalar. Only ``maps`` receives a gradient."""
    loss: Tensor = _MeanSquaredError.apply(maps, wanted.detach())
    return loss


class _MeanSquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, wanted: Tensor) -> Tensor:
        difference = maps - wanted
        ctx.save_for_backward(difference)
        # one pass; a norm of all at once would add up millions of float32 one by one
        lengths: Tensor = torch.linalg.vector_norm(difference, dim=(1, 3))
        return lengths.square().sum() / difference.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (gradient * (2 / difference.numel())), None


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
_OFFICIAL = {"squeezenet": "squeezenet1_1"}  # name in reposer.weights.files, where it differs
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
            asked for), or its state dict; None looks for torchvision's file where reposer.weights.files keeps
            them.
        normalize: to ImageNet's mean and deviation; False: images stay in [-1, 1], as in GFLA's code.

    Raises:
        MissingWeightsError: there is no such file.
        UserError: unknown network or layer; weights missing, unknown or of another shape.
    """

    def __init__(
        self,
        net: str = "vgg19",
        layers: Sequence[str] = ("relu1_2",),
        weights: str | Path | Mapping[str, Tensor] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        known("perceptual network", net, NETWORKS)
        with torch.device("meta"):  # nothing random is ever made: the weights below take the places
            every = _squeezenet_layers() if net == "squeezenet" else _vgg_layers(net)
        names = [name for name, _ in every]
        for name in layers or [""]:
            known(f"layer of {net}", name, names)
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
        x = imagenet_normalize(image) if self.normalize else image
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


def layer_differences(maps: Sequence[Tensor], wanted: Sequence[Tensor], norm: str = "l2") -> list[Tensor]:
    """Mean square (l2) or mean absolute (l1) difference of each pair of maps, in float32; scalars."""
    known("norm", norm, NORMS)
    distance = mean_squared_error if norm == "l2" else F.l1_loss
    return [distance(a.float(), b.float()) for a, b in zip(maps, wanted, strict=True)]


# ---- Losses on the feature maps of a perceptual network: content, style (Gram matrices), nearest
# neighbors, contextual.
#
# Maps are (B, C, h, w); every loss is a scalar, computed in float32, with the gradient in its first argument.

MAX_SIDE = 64  # the contextual loss compares at most 64 x 64 places


def content_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the maps, mean over the layers (CASD)."""
    return torch.stack(layer_differences(maps, wanted, "l1")).mean()


def style_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the Gram matrices, mean over the layers (Gatys et al., CVPR 2016)."""
    pairs = zip(maps, wanted, strict=True)
    return torch.stack([F.l1_loss(gram_matrix(a), gram_matrix(b)) for a, b in pairs]).mean()


def gram_matrix(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, C) float32: F F^T / (C h w) with F of shape (C, h w)."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().flatten(2)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def nearest_neighbor_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor], window: int = 3) -> Tensor:
    """Every generated feature should be like a wanted one near its place; sum over the layers.

    Siarohin et al. (Def-GAN), CVPR 2018: mean over places of the smallest mean absolute difference to the
    wanted features in the window around the place; what lies outside the map is never chosen.

    Args:
        window: odd; places along each side.
    """
    terms = [_nearest_neighbor(a.float(), b.float(), window) for a, b in zip(maps, wanted, strict=True)]
    return torch.stack(terms).sum()


@torch.no_grad()
def _nearest(maps: Tensor, wanted: Tensor, window: int) -> Tensor:
    """(B, C, h, w): for each place the wanted feature of its window that is nearest."""
    height, width = maps.shape[2:]
    reach = window // 2
    padded = F.pad(wanted, (reach,) * 4, value=torch.inf)
    rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
    place = rows[:, None] * padded.shape[3] + columns  # of the window's first corner
    best = torch.full_like(maps[:, 0], torch.inf)
    chosen = (place + reach * (padded.shape[3] + 1)).expand(best.shape)
    for down, right in product(range(window), repeat=2):
        distance = (maps - padded[..., down : down + height, right : right + width]).abs().mean(1)
        better = distance < best
        best = torch.where(better, distance, best)
        chosen = torch.where(better, place + down * padded.shape[3] + right, chosen)
    index = chosen.flatten(1)[:, None].expand(-1, maps.shape[1], -1)
    return padded.flatten(2).gather(2, index).view(maps.shape)


def _nearest_neighbor(maps: Tensor, wanted: Tensor, window: int) -> Tensor:
    # the gradient of a minimum is that of what was chosen
    return F.l1_loss(maps, _nearest(maps.detach(), wanted, window))


def correctness_loss(flows: Sequence[Tensor], source: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Whether flows lead to features of the source that are like the wanted ones; sum over the scales.

    Ren et al. (GFLA), CVPR 2020: mean over places of exp(-c / C) - 1/e, with c the cosine of the wanted
    feature and the source's where the flow leads, C the largest cosine with any of the source's. The source
    is sampled by a 4x4 Gaussian: between neighbors alone the flow does not converge.

    Args:
        flows: (B, 2, h, w) each, x and y in pixels of their size, added to each place.
        source: (B, C, h, w) each, feature maps of the same sizes; without gradient.
        wanted: the same of the target.
    """
    scales = zip(flows, source, wanted, strict=True)
    return torch.stack([_correctness(*(x.float() for x in scale)) for scale in scales]).sum()


def _correctness(flow: Tensor, source: Tensor, wanted: Tensor) -> Tensor:
    with torch.autocast(flow.device.type, enabled=False):
        with torch.no_grad():
            pairs = zip(
                F.normalize(source.flatten(2), dim=1), F.normalize(wanted.flatten(2), dim=1), strict=True
            )
            best = torch.stack([(s.T @ t).amax(0) for s, t in pairs])  # (B, N): one picture's N x N at a time
        cosine = F.cosine_similarity(gaussian_sampled(source, flow), wanted, dim=1).flatten(1)
        return (-cosine / (best + 1e-8)).exp().mean() - math.exp(-1)


def gaussian_sampled(maps: Tensor, flow: Tensor) -> Tensor:
    """Maps (B, C, h, w) where a flow (B, 2, h, w) leads: 4 x 4 neighbors weighted by a Gaussian of 2 pixels.

    Neighbors outside are those of the border. The weights sum to 1 along each axis.
    """
    height, width = maps.shape[2:]
    lines = []
    for axis, side in enumerate((width, height)):
        own = torch.arange(side, device=maps.device)
        place = flow[:, axis] + (own if axis == 0 else own[:, None])  # (B, h, w)
        near = place.detach().floor()[:, None] + torch.arange(-1, 3, device=maps.device)[:, None, None]
        weight = torch.exp(-(place[:, None] - near).square() / 8)
        lines.append((near.clamp(0, side - 1).long(), weight / weight.sum(1, keepdim=True)))
    (x, along_x), (y, along_y) = lines
    flat, out = maps.flatten(2), torch.zeros_like(maps)
    for row, column in product(range(4), repeat=2):
        index = (y[:, row] * width + x[:, column]).flatten(1)[:, None].expand(-1, maps.shape[1], -1)
        found = flat.gather(2, index).view(maps.shape)
        out = out + found * (along_y[:, row] * along_x[:, column])[:, None]
    return out


def contextual_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor], bandwidth: float = 0.1) -> Tensor:
    """Every wanted feature should have a generated one like it, wherever; mean over the layers and the batch.

    Mechrez et al., ECCV 2018: features centered by the wanted ones' mean and made length 1; d = 1 - cosine;
    d' = d / (min over the wanted + 1e-5); w = exp((1 - d') / bandwidth); CX = w / (its sum over the wanted);
    -log of the mean over the wanted of the largest CX over the generated. Maps above 64 x 64 are pooled.
    """
    terms = [_contextual(a.float(), b.float(), bandwidth) for a, b in zip(maps, wanted, strict=True)]
    return torch.stack(terms).mean()


def _contextual(maps: Tensor, wanted: Tensor, bandwidth: float) -> Tensor:
    size = (min(maps.shape[2], MAX_SIDE), min(maps.shape[3], MAX_SIDE))
    if size != tuple(maps.shape[2:]):
        maps, wanted = F.adaptive_avg_pool2d(maps, size), F.adaptive_avg_pool2d(wanted, size)
    with torch.autocast(maps.device.type, enabled=False):
        center = wanted.mean((2, 3), keepdim=True)
        x, y = (F.normalize((m - center).flatten(2), dim=1) for m in (maps, wanted))  # (B, C, N)
        distance = (1 - x.transpose(1, 2) @ y).clamp_min(0)  # (B, N generated, N wanted)
        relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
        similarity = torch.softmax((1 - relative) / bandwidth, 2)
        return -similarity.amax(1).mean(1).clamp_min(1e-12).log().mean()
