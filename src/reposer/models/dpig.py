"""DPIG: a person as a code of body parts and background, drawn in a wanted pose.

Ma, Sun, Georgoulis, Van Gool, Schiele, Fritz: "Disentangled Person Image Generation", CVPR 2018: its stage 1,
image reconstruction, with sizes as in the authors' public code. It is trained to give back the target from
the target's own parts and pose, and used with the source's parts and the target's pose. ``DEVIATIONS``
says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import resize, to_float
from reposer.models.layers import check_choice
from reposer.models.pg2 import CodeUNet, Levels, PlainResidual, ReluConv, checked_size, glorot, pose_planes
from reposer.models.pose_maps import limb_mask, moved
from reposer.structures import NUM_JOINTS, PairBatch

DEVIATIONS = (
    "DPIG (Ma et al., CVPR 2018), built anew in its conditional form: code of the source, pose of the target;"
    " all parameters of the authors' two networks for it are there. It differs: no pose auto-encoder and no"
    " sampled codes; the pose mask has discs of radius 7 (the name of the authors' data says 6); weights are"
    " averaged; the result is clipped in use, and pictures of another size are resized."
)
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_256": {"size": (256, 256), "background": False, "crop": 64, "part_levels": 7},
    "small": {"width": 24},
}
_PARTS: tuple[tuple[int, ...], ...] = (
    (0, 1, 2, 5, 14, 15, 16, 17),  # head
    (2, 3, 4, 5, 6, 7, 8, 11),  # upper body
    (8, 9, 10, 11, 12, 13),  # lower body
    (5, 6, 7),  # left arm
    (2, 3, 4),  # right arm
    (11, 12, 13),  # left leg
    (8, 9, 10),  # right leg
)


def dpig_size(name: str) -> dict[str, Any]:
    """Arguments of ``DPIG``: "paper" for Market-1501, "paper_256" for DeepFashion, "small" for CPUs.

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class DPIG(nn.Module):
    """The generator of DPIG. Reads a picture with its keypoints, and the keypoints of another."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = DEVIATIONS

    def __init__(
        self,
        size: Sequence[int] = (128, 64),  # (H, W) it works at; pictures of another size are resized
        width: int = 128,  # channels at full size; level l of an encoder has l times as many
        levels: int = 5,  # of the background's encoder and of the decoding U-Net
        background: bool = True,  # person and background have codes of their own
        crop: int = 48,  # pixels, sides of the parts
        part_levels: int = 5,  # of the parts' encoder
        part_code: int = 32,  # numbers of a part's code
        background_code: int = 128,
        code: int = 64,  # numbers of the U-Net's bottleneck
        radius: float = 4.0,  # pixels, of the joints' discs
        mask_radius: float = 7.0,  # pixels, of the pose mask, which cuts out the person
    ) -> None:
        super().__init__()
        self.size = checked_size(size, levels)
        checked_size((crop, crop), part_levels)
        if min(width, part_code, background_code) < 1 or min(radius, mask_radius) <= 0:
            raise UserError(
                f"width={width}, part_code={part_code}, background_code={background_code}, radius={radius},"
                f" mask_radius={mask_radius}: impossible",
                "all are above 0",
            )
        self.crop, self.radius, self.mask_radius = crop, radius, mask_radius
        self.first = nn.Sequential(ReluConv(3, width), PlainResidual(width))
        self.part_levels = Levels(width, part_levels)
        area = (crop >> (part_levels - 1)) ** 2
        self.part_code = nn.Linear(self.part_levels.widths[-1] * area, part_code)
        self.background_levels = Levels(width, levels) if background else None
        area = (self.size[0] >> (levels - 1)) * (self.size[1] >> (levels - 1))
        self.background_code = nn.Linear(width * levels * area, background_code) if background else None
        codes = len(_PARTS) * part_code + (background_code if background else 0)
        self.draw = CodeUNet(codes + NUM_JOINTS, self.size, width, levels, code)
        self.apply(glorot)

    def forward(self, batch: PairBatch) -> Tensor:
        """The generated images (B, 3, H, W).

        In eval mode in [-1, 1], the source in the target's pose. In train mode the target by its own code,
        not clipped. A part without a joint has a code of zeros, a missing joint a plane of -1.
        """
        image, keypoints = batch.source_image, batch.source_keypoints
        frame = (int(image.shape[-2]), int(image.shape[-1]))
        if self.training:
            image, keypoints = batch.target_image, batch.target_keypoints
        code = self.encode(resize(to_float(image), self.size), moved(keypoints, frame, self.size))
        pose = pose_planes(batch.target_keypoints, frame, self.size, self.radius)
        planes = code[:, :, None, None].expand(-1, -1, *self.size)
        made = resize(self.draw(torch.cat([planes, pose], 1)).float(), frame)
        return made if self.training else made.clamp(-1, 1)

    def encode(self, image: Tensor, keypoints: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the network's size and their keypoints -> codes (B, C)."""
        features = self.first(image)
        person = features
        if self.background_levels is not None:
            mask = limb_mask(keypoints, *self.size, self.mask_radius)
            person = features * mask
        boxes, known = part_boxes(keypoints, *self.size)
        crops = cut(person, boxes, self.crop)  # (B P, C, crop, crop)
        parts = torch.unflatten(self.part_code(self.part_levels(crops)[-1].flatten(1)), 0, (len(image), -1))
        code: Tensor = (parts * known[..., None]).flatten(1)
        if self.background_levels is None or self.background_code is None:
            return code
        behind = self.background_levels(features * (1 - mask))[-1]
        return torch.cat([code, self.background_code(behind.flatten(1))], 1)


def part_boxes(keypoints: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(B, J, 2) -> boxes (B, 7, 4) as left, top, right, bottom in pixels, and which have a joint (B, 7).

    A box reaches 6 pixels beyond its joints, 10 where there is one alone, and ends with the picture; a part
    without a joint has the box of the first pixel.
    """
    there = keypoints.isfinite().all(-1)
    boxes, known = [], []
    for joints in _PARTS:
        points, seen = keypoints[:, joints], there[:, joints]
        low = torch.where(seen[..., None], points, torch.inf).amin(1)  # (B, 2)
        high = torch.where(seen[..., None], points, -torch.inf).amax(1)
        margin = torch.where(seen.sum(1, keepdim=True) == 1, 10.0, 6.0)
        last = low.new_tensor([width - 1.0, height - 1.0])
        box = torch.cat([(low - margin).clamp_min(0), high + margin], 1)
        box = torch.minimum(box.clamp_min(0), last.repeat(2))
        any_seen = seen.any(1)
        boxes.append(torch.where(any_seen[:, None], box, box.new_tensor([0.0, 0.0, 1.0, 1.0])))
        known.append(any_seen)
    return torch.stack(boxes, 1), torch.stack(known, 1)


def cut(maps: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(B, C, H, W) and (B, P, 4) -> (B P, C, side, side), bilinear.

    As TensorFlow's crop_and_resize of boxes over H and W: row i is y1 (H - 1) / H + i (y2 - y1) (H - 1) / (H
    (side - 1)), and columns the same.
    """
    height, width = maps.shape[-2:]
    share = torch.linspace(0, 1, side, device=maps.device)
    left, top, right, bottom = boxes[..., None].unbind(2)  # (B, P, 1)
    x = 2 * (left + (right - left) * share) / width - 1  # (B, P, side); (W - 1) cancels
    y = 2 * (top + (bottom - top) * share) / height - 1
    x, y = x[:, :, None, :].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)
    grid = torch.stack([x, y], -1)  # (B, P, side, side, 2)
    crops = F.grid_sample(maps.float(), grid.flatten(1, 2).float(), align_corners=True)
    return torch.unflatten(crops, 2, (-1, side)).transpose(1, 2).flatten(0, 1)
