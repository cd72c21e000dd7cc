"""RSA-GAN and its critics as they are commonly written: the plain form that ours is compared with.

Keypoint maps are made and convolved as planes, regions as one convolution in groups over all their planes,
limbs as one large table of distances; up-sampling is a step of its own; norms and losses are PyTorch's. The
modules, their weights and the mathematics are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.losses import perceptual
from reposer.models import discriminators, layers, pose_maps, rsa_fusion, rsa_gan
from reposer.models import layers as instance_norm
from reposer.models import rsa_attention as rsa_correspondence
from reposer.models.pose_maps import PoseMaps, gaussian_maps
from reposer.models.rsa_fusion import LIMBS
from reposer.structures import NUM_JOINTS

Patch = tuple[Any, str, Callable[..., Any]]  # object, attribute, what stands there in the plain form


def pose_convolution(self: nn.Conv2d, maps: PoseMaps) -> Tensor:
    """For PoseConv2d: make the planes, convolve them."""
    return nn.Conv2d.forward(self, maps.dense())


def joint_convolution(self: rsa_fusion.JointConv, maps: PoseMaps) -> Tensor:
    """For JointConv: all planes of all regions, those of other regions' joints zeroed."""
    joints = self.own[:: self.out_channels // self.groups, :, 0, 0]  # (R, 18)
    return nn.Conv2d.forward(self, (maps.dense().unsqueeze(1) * joints[:, :, None, None]).flatten(1, 2))


def label_planes(self: rsa_fusion.LabelConv, parsing: Tensor, prior: Tensor) -> Tensor:
    """For LabelConv.planes: (B, R L, H, W), those of other regions' labels zeroed."""
    members = self.own[:: self.out_channels // self.groups, :, 0, 0]  # (R, L)
    return (parsing.unsqueeze(1) * members[:, :, None, None] * prior.unsqueeze(2)).flatten(1, 2)


def doubling_convolution(self: nn.Conv2d, x: Tensor) -> Tensor:
    """For DoublingConv2d: enlarge, then convolve."""
    return nn.Conv2d.forward(self, F.interpolate(x, scale_factor=2, mode="nearest"))


def judge_pose(self: discriminators.ResnetDiscriminator, image: Tensor, keypoints: Tensor) -> Tensor:
    """For the critic of the pose: image and planes side by side."""
    logits: Tensor = self.network(torch.cat((image, gaussian_maps(keypoints, *image.shape[2:])), 1))
    return logits


def limb_prior(
    keypoints: Tensor,
    limbs: tuple[tuple[tuple[int, int], ...], ...],
    height: int,
    width: int,
    sigma: float = 0.05,
) -> Tensor:
    """For rsa_gan.limb_prior: distances of all pixels to all limbs and joints, then the nearest by region."""
    joints = torch.tensor(
        [[any(j in limb for limb in region) for j in range(NUM_JOINTS)] for region in limbs]
    )
    pairs = torch.tensor([*LIMBS, *((j, j) for j in range(NUM_JOINTS))])
    ends = keypoints[:, pairs]  # (B, S, 2, 2)
    seen = ~ends.isnan().any(-1).any(-1)
    start, stop = ends.nan_to_num(0.0).unbind(2)
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    along, offset = (
        (stop - start).unsqueeze(2),
        torch.stack((x, y), -1).view(1, 1, -1, 2) - start.unsqueeze(2),
    )
    share = (offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)
    distance = (offset - share.clamp(0, 1).unsqueeze(-1) * along).square().sum(-1)  # (B, S, HW)
    usable = seen.unsqueeze(1) & joints[:, pairs].all(-1)  # (B, R, S)
    nearest = torch.where(usable.unsqueeze(-1), distance.unsqueeze(1), torch.inf).amin(2)
    prior = torch.where(usable.any(2).unsqueeze(-1), torch.exp(-0.5 * nearest / (sigma * height) ** 2), 1.0)
    return prior.view(len(keypoints), len(joints), height, width)


def normalize(*arguments: Tensor) -> Tensor:
    """For InstanceNorm.forward and the function."""
    return F.instance_norm(arguments[-1])


PATCHES: tuple[Patch, ...] = (
    (pose_maps.PoseConv2d, "forward", pose_convolution),
    (rsa_fusion.JointConv, "forward", joint_convolution),
    (rsa_fusion.LabelConv, "planes", label_planes),
    (rsa_fusion.LabelConv, "forward", nn.Conv2d.forward),
    (layers.DoublingConv2d, "forward", doubling_convolution),
    (discriminators.ResnetDiscriminator, "_judge_pose", judge_pose),
    (rsa_gan, "limb_prior", limb_prior),
    (instance_norm.InstanceNorm, "forward", normalize),
    (rsa_correspondence, "instance_norm", normalize),
    (perceptual, "mean_squared_error", F.mse_loss),
)


def install(put: Callable[[Any, str, Callable[..., Any]], None] = setattr) -> None:
    """Put the plain form in the place of ours in this process, by ``put`` (a test's monkeypatch.setattr)."""
    for place, name, plain in PATCHES:
        put(place, name, plain)
