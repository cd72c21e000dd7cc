"""Feature networks for metrics of sets of images: each takes uint8 images (B, 3, H, W) and gives float32
features (B, D).

A network, its weights file and its preprocessing belong together; ``protocols.py`` gives each set its name.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import lpips
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from reposer.errors import UserError
from reposer.images import IMAGENET_MEAN, IMAGENET_STD, require_uint8, to_float
from reposer.weights.files import load_state_dict_file

INCEPTION_SIZE = 299  # pixels


class _InceptionPasses(nn.Module):
    """The Inception of the original FID, with all that metrics take from it; what several of them show it
    goes through it once.

    The numbers do not depend on that: the same batch gives the same bits.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        # torch-fidelity unpickles whatever file it is given: hand it a copy of tensors that were read safely.
        copy = io.BytesIO()
        torch.save(load_state_dict_file(weights), copy)
        copy.seek(0)
        with torch.random.fork_rng(devices=[]), _named(weights):  # its constructor draws random numbers
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy
            )
        self.weights = weights
        self.users = 0  # metrics
        self._kept: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()  # by the batch, the oldest first
        self._rows = 0  # images in it

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> float32 (B, 2048) and (B, 1008)."""
        if self.users < 2:
            return tuple(self.network(images))
        pixels = images.contiguous().cpu().numpy()
        key = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self._kept[key] = found = tuple(self.network(images))
        self._rows += len(images)
        while self._rows > MOST_KEPT and len(self._kept) > 1:
            self._rows -= len(self._kept.popitem(last=False)[1][0])
        return found


MOST_KEPT = 20_000  # images whose outputs are kept for other metrics: 240 MB


class PtInception(nn.Module):
    """The Inception of the original FID (pt_inception-2015-12-05), as torch-fidelity rebuilds it; D = 2048.

    Images are resized to 299 by TensorFlow 1's bilinear rule, without anti-aliasing.

    Args:
        weights: the file; or another metric's network of that file, to share its passes.
    """

    dimension = 2048
    output = 0  # of the network's outputs

    def __init__(self, weights: Path | PtInception) -> None:
        super().__init__()
        known = weights.passes if isinstance(weights, PtInception) else _InceptionPasses(weights)
        self.passes: _InceptionPasses = known
        self.passes.users += 1

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, D)."""
        features: Tensor = self.passes(require_uint8(images))[self.output]
        return features


class PtInceptionLogits(PtInception):
    """The same network's class logits without their bias, as the Inception Score takes them; D = 1008."""

    dimension = 1008
    output = 1


class GflaInception(nn.Module):
    """torchvision's ImageNet Inception-v3, fed as GFLA's script feeds it (script/inception.py); D = 2048.

    Images in [0, 1] are resized bilinearly to 299; then each channel becomes x * (sigma / 0.5) + (mu - 0.5) /
    0.5 with ImageNet's mu and sigma. That transform is meant for normalized input and is wrong for [0, 1];
    the published figures contain it, so it is reproduced as it is.
    """

    dimension = 2048

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self.network = torchvision.models.inception_v3(
                weights=None, transform_input=False, init_weights=False
            )
        _load(self.network, load_state_dict_file(weights), weights)
        self.network.fc = nn.Identity()
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 2048)."""
        features: Tensor = self.network(gfla_input(images))
        return features


def gfla_input(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> what GFLA's script shows its Inception, float32 (B, 3, 299, 299)."""
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    resized = F.interpolate(
        require_uint8(images).float() / 255.0, size=size, mode="bilinear", align_corners=False
    )
    mean = resized.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = resized.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return resized * (std / 0.5) + (mean - 0.5) / 0.5


class KerasMobileNetV2(nn.Module):
    """MobileNetV2's features with Keras weights, at native size, averaged over the last map; D = 1280.

    Keras differs from torchvision in three ways: input x / 127.5 - 1, BatchNorm eps 1e-3, and stride-2
    convolutions that pad an even side by one pixel on the right or bottom only.
    """

    dimension = 1280

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            network = torchvision.models.mobilenet_v2(weights=None)
            for parent in list(network.features.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.BatchNorm2d):
                        child.eps = 1e-3
                    elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                        setattr(parent, name, _KerasStride2(child))
        _load(network.features, _without_prefix(load_state_dict_file(weights), "features."), weights)
        self.features = network.features
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 1280)."""
        maps: Tensor = self.features(to_float(require_uint8(images)))  # (B, 1280, H/32, W/32)
        return maps.mean((2, 3))


class _KerasStride2(nn.Conv2d):
    """A 3x3 convolution of stride 2 with Keras' padding: (0, 1) on an even side, (1, 1) on an odd one."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(
            like.in_channels, like.out_channels, 3, stride=2, groups=like.groups, bias=like.bias is not None
        )

    def forward(self, x: Tensor) -> Tensor:
        top, left = x.shape[2] % 2, x.shape[3] % 2
        return super().forward(F.pad(x, (left, 1, top, 1)))


def _without_prefix(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _load(network: nn.Module, values: Mapping[str, Tensor], file: Path) -> None:
    """Strict load of a network that was built without values."""
    with _named(file):
        network.load_state_dict(values, strict=True, assign=True)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turns a mismatch of a weights file into a UserError that names the file."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{file}: not the weights of this network ({reason})", "give another weights file"
        ) from error


# ---- LPIPS (Zhang et al., CVPR 2018) through the ``lpips`` package, with weights from files that we name and
# check.
#
# The package fetches its backbone from the network by itself, or leaves it random when asked not to: here it
# is built without values and every parameter is then read, strictly, from two files: the ImageNet backbone
# and the linear heads.

Net = Literal["alex", "vgg", "squeeze"]


class Lpips(nn.Module):
    """LPIPS at native size on model floats [-1, 1]; smaller is closer.

    Args:
        net: backbone: AlexNet, VGG-16 or SqueezeNet 1.1.
        version: of the linear heads; "0.0" also feeds the backbone without the package's scaling layer (the
            bug of the first release, which published figures match, see docs/reference/metrics.md).
        backbone: weights with torchvision's names (``features.0.weight``, ...); a classifier in it is
            ignored.
        heads: the linear heads (``lin0.model.1.weight``, ...); by default those inside the lpips package.

    Raises:
        UserError: a file lacks a parameter, or has one of another shape.
    """

    def __init__(
        self, net: Net, version: Literal["0.1", "0.0"], backbone: Path, heads: Path | None = None
    ) -> None:
        super().__init__()
        heads = heads or packaged_heads(net, version)
        with (
            warnings.catch_warnings(),
            torch.device("meta"),
        ):  # meta: no values, no random numbers drawn, no download
            # torchvision's deprecation of the argument that lpips uses
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(
                pretrained=False, pnet_rand=True, net=net, version=version, verbose=False
            )
        self.network.scaling_layer = lpips.ScalingLayer()
        _fill(self.network, backbone, heads)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, generated: Tensor, target: Tensor, mask: Tensor | None = None) -> NDArray[np.float64]:
        """(B,) distances of uint8 images (B, 3, H, W); with a mask (B, H, W) both images are multiplied by
            it.

        Multiplied on [-1, 1], so the background becomes mid-gray, and averaged over the whole frame (GFLA).
            NaN where
        the mask is empty.
        """
        device = next(self.network.parameters()).device
        if generated.shape != target.shape:
            raise ValueError(f"images of shapes {tuple(generated.shape)} and {tuple(target.shape)}")
        a, b = (to_float(require_uint8(images).to(device)) for images in (generated, target))
        if mask is not None:
            weights = mask.to(device=device, dtype=a.dtype)[:, None]
            a, b = a * weights, b * weights
        values = self.network(a, b).flatten(1).mean(1).double().cpu().numpy()  # (B, 1, 1, 1) -> (B,)
        if mask is not None:
            values[~mask.flatten(1).any(1).cpu().numpy()] = np.nan
        return np.asarray(values, np.float64)


def packaged_heads(net: Net, version: str) -> Path:
    """The linear heads that come with the lpips package."""
    return Path(lpips.__file__).parent / "weights" / f"v{version}" / f"{net}.pth"


def _fill(network: nn.Module, backbone: Path, heads: Path) -> None:
    backbone_values, head_values = load_state_dict_file(backbone), load_state_dict_file(heads)
    state: dict[str, Tensor] = {}
    for name, expected in network.state_dict().items():
        if name.startswith("scaling_layer."):
            state[name] = expected
            continue
        if name.startswith("net."):  # net.slice2.3.squeeze.weight <- features.3.squeeze.weight
            file, values = backbone, backbone_values
            key = "features." + re.sub(r"^net\.slice\d+\.", "", name)
        else:  # the package registers each head twice: lin0 is also lins.0
            file, values, key = heads, head_values, name.replace("lins.", "lin")
        if key not in values or values[key].shape != expected.shape:
            found = f"has shape {tuple(values[key].shape)}" if key in values else "is missing"
            raise UserError(
                f"{file}: {key} {found}, expected {tuple(expected.shape)}", "give another weights file"
            )
        state[name] = values[key].float()
    network.load_state_dict(state, assign=True)
