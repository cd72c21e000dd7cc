"""Backbones of Re-ID embeddings: convolutional networks from model-float images to feature maps.

Each takes (B, 3, H, W) float in [-1, 1], does its own normalization, and gives (B, ``channels``, h, w);
``parts`` are its pieces from the image upwards, so that the lowest can be kept as they are.
``pretrained`` names what ``reposer.weights.files`` knows it by; None where no outside weights fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import imagenet_normalize
from reposer.models.layers import check_choice

_RESNET_CHANNELS = {"resnet18": 512, "resnet50": 2048}


class Small(nn.Module):
    """A small residual network for rendered people and for CPUs: 0.5 M parameters, 38 MMAC at 128x64."""

    pretrained: str | None = None

    def __init__(
        self,
        widths: Sequence[int] = (24, 32, 64, 128),  # channels after the stem and after each stage
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise UserError(f"widths={list(widths)}: two or more positive numbers are wanted")
        self.channels = widths[-1]
        self.stem = _conv_bn(3, widths[0])  # 1/2
        self.stages = nn.Sequential(
            *(nn.Sequential(_conv_bn(a, b), _Residual(b)) for a, b in pairwise(widths))
        )

    def parts(self) -> list[nn.Module]:
        """The stem and the stages."""
        return [self.stem, *self.stages]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/16, W/16) with three stages."""
        maps: Tensor = self.stages(self.stem(image))
        return maps


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier."""

    def __init__(
        self,
        depth: str = "resnet50",  # resnet18 | resnet50
        last_stride: int = 2,  # 1 (Bag of Tricks): twice the resolution in the last stage
    ) -> None:
        super().__init__()
        check_choice("depth", depth, _RESNET_CHANNELS)
        check_choice("last_stride", last_stride, (1, 2))
        self.pretrained = depth
        self.channels = _RESNET_CHANNELS[depth]
        from torchvision import models  # here: it takes time and memory, and few need it

        network = getattr(models, depth)(weights=None)
        network.fc = nn.Identity()
        if last_stride == 1:
            for module in network.layer4[0].modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        self.network = network

    def load(self, values: Mapping[str, Tensor]) -> None:
        """torchvision's state dict of the whole classifier; strict but for the classifier itself."""
        kept = {name: value for name, value in values.items() if not name.startswith("fc.")}
        self.network.load_state_dict(kept, strict=True)

    def parts(self) -> list[nn.Module]:
        """The stem and the four stages."""
        net = self.network
        return [nn.ModuleList([net.conv1, net.bn1]), net.layer1, net.layer2, net.layer3, net.layer4]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/32, W/32), or H/16, W/16 with last_stride 1."""
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(imagenet_normalize(image)))))
        maps: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return maps


class MobileNetV2(nn.Module):
    """MobileNetV2's features, in torchvision's or in Keras' form; weights of one do not fit the other.

    Keras differs in three ways: its input is model float as it is (x / 127.5 - 1), BatchNorm eps is 1e-3, and
    stride-2 convolutions pad an even side by one pixel on the right or bottom only.
    """

    channels = 1280

    def __init__(
        self,
        keras: bool = False,  # Keras' form
        last_stride: int = 2,  # 1: the last halving is left out
    ) -> None:
        super().__init__()
        check_choice("last_stride", last_stride, (1, 2))
        self.keras = keras
        self.pretrained = None if keras else "mobilenet_v2"
        from torchvision.models import mobilenet_v2

        self.features = mobilenet_v2(weights=None).features
        halving = [m for m in self.features.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        if last_stride == 1:
            halving.pop().stride = (1, 1)
        if keras:
            for module in self.features.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 1e-3
            for convolution in halving:
                convolution.padding = (0, 0)
                convolution.register_forward_pre_hook(_pad_as_keras)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """A state dict whose "features." part is this network's; strict but for the classifier."""
        prefix = "features."
        kept = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
        self.features.load_state_dict(kept, strict=True)

    def parts(self) -> list[nn.Module]:
        """The stem, 17 inverted residual blocks (the first 7 parts end at 1/8), and the last convolution."""
        return list(self.features)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1280, H/32, W/32), or H/16, W/16 with last_stride 1."""
        return self.blocks(image, 0, len(self.features))

    def blocks(self, x: Tensor, start: int, end: int) -> Tensor:
        """Parts ``start`` to ``end`` alone; start 0 takes the image, any other the maps before it."""
        x = imagenet_normalize(x) if start == 0 and not self.keras else x
        maps: Tensor = self.features[start:end](x)
        return maps


def _pad_as_keras(convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """(0, 1) on an even side, (1, 1) on an odd one: the 3x3 windows end at the last pixel."""
    (x,) = inputs
    return (F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1)),)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _conv_bn(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
