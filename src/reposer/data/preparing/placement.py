"""Brings pictures of any size to one size: squeeze, pad or crop; maps, masks and key-points go along.

resize   the whole picture is squeezed into the size; shapes change (GFLA's way, and SAN's at 256x256)
pad      scaled to fit, the shape kept, white around it (PISE's way)
crop     scaled to cover, the shape kept, the middle taken (PATN's way: 256x256 to 256x176)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reposer.data.keypoints import Pose, scale_keypoints
from reposer.errors import UserError

Fit = Literal["resize", "pad", "crop"]
FITS: tuple[Fit, ...] = ("resize", "pad", "crop")
WHITE = 255  # of padded pictures: In-shop photographs have a white background


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies on the canvas: its scaled size and the place of its corner, negative when cut."""

    original: tuple[int, int]  # (H, W) of the picture
    size: tuple[int, int]  # (H, W) of the canvas
    scaled: tuple[int, int]  # (H, W) of the scaled picture
    top: int
    left: int

    @classmethod
    def of(cls, original: tuple[int, int], size: tuple[int, int], fit: Fit = "resize") -> Self:
        """The placement of a picture of (H, W) ``original`` on a canvas of (H, W) ``size``."""
        if fit == "resize":
            return cls(original, size, size, 0, 0)
        ratios = [side / was for side, was in zip(size, original, strict=True)]
        ratio = min(ratios) if fit == "pad" else max(ratios)
        height, width = (max(1, round(side * ratio)) for side in original)
        # integer halves, so that 256x256 is cut to its columns 40 to 215 as PATN does
        return cls(original, size, (height, width), (size[0] - height) // 2, (size[1] - width) // 2)

    def picture(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) at the size, bilinear with antialiasing."""
        return self._placed(image, Image.Resampling.BILINEAR, WHITE)

    def labels(self, array: NDArray[np.uint8], outside: int = 0) -> NDArray[np.uint8]:
        """(H, W) labels at the size, by nearest neighbor; ``outside`` fills what is padded."""
        return self._placed(array, Image.Resampling.NEAREST, outside)

    def keypoints(self, pose: Pose) -> Pose:
        """(J, 2) in pixels of the canvas; a joint that is cut off is missing."""
        if self.scaled == self.original and self.scaled == self.size:
            return pose
        moved = scale_keypoints(pose, self.original, self.scaled)
        moved = moved + np.array([self.left, self.top], np.float32)
        if self.scaled == self.size:
            return np.asarray(moved, np.float32)
        limit = np.array([self.size[1], self.size[0]], np.float32) - 0.5
        outside = ((moved < -0.5) | (moved >= limit)).any(axis=-1, keepdims=True)  # NaN is never outside
        return np.where(outside, np.float32(np.nan), moved).astype(np.float32)

    def _placed(self, array: NDArray[np.uint8], how: Image.Resampling, outside: int) -> NDArray[np.uint8]:
        if array.shape[:2] != self.scaled:
            resized = Image.fromarray(array).resize((self.scaled[1], self.scaled[0]), how)
            array = np.asarray(resized)  # Pillow's bilinear antialiases
        if self.scaled == self.size:
            return array
        canvas = np.full((*self.size, *array.shape[2:]), outside, np.uint8)
        (to_y, from_y), (to_x, from_x) = (
            (slice(max(start, 0), min(start + length, side)), slice(max(-start, 0), max(-start, 0) + side))
            for start, length, side in zip((self.top, self.left), self.scaled, self.size, strict=True)
        )
        canvas[to_y, to_x] = array[from_y, from_x][: to_y.stop - to_y.start, : to_x.stop - to_x.start]
        return canvas


def known_fit(name: str) -> Fit:
    """The name itself.

    Raises:
        UserError: it is none of FITS.
    """
    for fit in FITS:
        if name == fit:
            return fit
    raise UserError(f"fit {name}: unknown", f"use one of {', '.join(FITS)}")
