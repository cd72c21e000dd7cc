"""LPIPS (Zhang et al., CVPR 2018) through the ``lpips`` package, with weights from files that we name and
check.

The package fetches its backbone from the network by itself, or leaves it random when told not to: here it is
built without values and every parameter is then read, strictly, from two files: the ImageNet backbone and the
linear heads.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Literal

import lpips
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import require_uint8, to_float
from reposer.weights.files import load_state_dict_file

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
