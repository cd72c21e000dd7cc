"""Six surveillance cameras: where they hang, what they do to colors and sharpness, how they crop, what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.scenes import panorama

Picture = NDArray[np.float32]  # (H, W, 3) linear light in [0, 1]


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera; lengths in fractions of the image height, so that a larger image shows the same."""

    camid: int  # 1..6, as in a Market-1501 file name
    scene: int  # index into scenes.SCENES
    pitch: float  # degrees it looks down
    gain: tuple[float, float, float]  # color cast, linear R, G, B
    exposure: float  # mean of the brightness factor
    contrast: float  # 1 neutral; around mid-gray, after the square root
    saturation: float  # 1 neutral
    blur: float  # standard deviation, 1/128 of the image height
    noise: float  # standard deviation of sensor noise, in gray levels
    fill: tuple[float, float]  # least and largest height of the person
    shift: float  # standard deviation of the crop's displacement
    occlusion: float  # share of images with something in front of the person
    occluder: str  # "post", "rail", "bush", "box"
    ambient: float = 0.62  # strength of the sky's light; the sun has the rest
    sun: float = 0.55
    sun_azimuth: float = 40.0  # degrees from the camera's axis, 90 is the image's right


CAMERAS: tuple[Camera, ...] = (
    Camera(1, 0, 12, (1.02, 1.00, 0.97), 1.05, 1.02, 1.00, 0.45, 2.0, (0.84, 0.95), 0.010, 0.05, "post", 0.60, 0.65, 35),
    Camera(2, 1, 16, (0.93, 1.06, 0.92), 0.92, 1.05, 1.08, 0.55, 2.5, (0.82, 0.94), 0.014, 0.10, "bush", 0.66, 0.50, -60),
    Camera(3, 2, 9, (0.95, 0.99, 1.09), 0.80, 0.95, 0.84, 0.60, 3.0, (0.84, 0.95), 0.014, 0.08, "post", 0.74, 0.34, 100),
    Camera(4, 3, 20, (1.09, 0.99, 0.86), 1.00, 1.08, 1.05, 0.50, 2.5, (0.82, 0.94), 0.012, 0.08, "box", 0.58, 0.60, 10),
    Camera(5, 4, 14, (1.00, 1.02, 1.02), 1.22, 0.88, 0.78, 0.65, 3.0, (0.80, 0.93), 0.016, 0.12, "rail", 0.72, 0.48, -25),
    Camera(6, 5, 24, (1.10, 1.00, 0.80), 0.76, 1.00, 0.92, 0.70, 3.5, (0.82, 0.95), 0.016, 0.06, "box", 0.80, 0.30, 70),
)  # fmt: skip


def background(camera: Camera, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """A window of the camera's panorama, (H, W, 3) linear light, a fresh array."""
    height, width = size
    full = panorama(camera.scene, height)
    left = int(rng.integers(0, max(1, full.shape[1] - width)))
    top = int(rng.integers(0, max(1, full.shape[0] - height)))
    window = full[top : top + height, left : left + width]
    return window * np.float32(rng.uniform(0.8, 1.2))


def occluder(
    camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Picture] | None:
    """What stands before the person: where (H, W) and its color (3,), or None in most images."""
    height, width = size
    drawn = rng.random(6)
    if drawn[0] >= camera.occlusion:
        return None
    v, u = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / height
    wide = width / height
    if camera.occluder == "post":
        center = drawn[1] * wide
        where = (np.abs(u - center) < 0.018 + 0.02 * drawn[2]) & (v > -1)
        color = (0.16, 0.17, 0.18)
    elif camera.occluder == "rail":
        level = 0.62 + 0.2 * drawn[1]
        where = (
            (np.abs(v - level) < 0.014)
            | (np.abs(v - level - 0.12) < 0.012)
            | ((np.mod(u + drawn[2], 0.30) < 0.025) & (v > level))
        )
        color = (0.30, 0.31, 0.30)
    elif camera.occluder == "bush":
        edge = 0.80 - 0.10 * drawn[1] + 0.03 * np.sin(u * 23 + 7 * drawn[2]) + 0.02 * np.sin(u * 61)
        where = (v > edge) & (
            u * (1 if drawn[3] < 0.5 else -1)
            > (drawn[4] * 0.5 - 0.2 if drawn[3] < 0.5 else -wide * (0.4 + drawn[4]))
        )
        color = (0.05, 0.12, 0.04)
    else:
        where = (v > 0.70 + 0.16 * drawn[1]) & (np.abs(u - drawn[2] * wide) < 0.10 + 0.12 * drawn[3])
        color = (0.28, 0.20, 0.13)
    texture = 1.0 + 0.12 * np.sin(v * 90 + u * 40)
    return where, (texture[..., None] * np.array(color)).astype(np.float32)


def expose(camera: Camera, picture: Picture, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the camera records of linear light: (H, W, 3) uint8."""
    height = picture.shape[0]
    exposure = camera.exposure * rng.uniform(0.88, 1.13)
    cast = np.array(camera.gain) * rng.uniform(0.97, 1.03, 3) * exposure
    blurred = _blur(picture, camera.blur * rng.uniform(0.8, 1.25) * height / 128)
    gray = ((blurred[..., 0] + blurred[..., 1] + blurred[..., 2]) * np.float32(1 / 3))[..., None]
    light = gray + (blurred - gray) * np.float32(camera.saturation)
    light *= cast.astype(np.float32)
    shown = np.sqrt(np.maximum(light, 0.0))  # gamma 2
    shown -= np.float32(0.5)
    shown *= np.float32(255.0 * camera.contrast)
    shown += np.float32(127.5)
    grain = rng.integers(0, 256, (2, *picture.shape), dtype=np.uint8).astype(
        np.float32
    )  # two uniforms: a triangle
    shown += (grain[0] - grain[1]) * np.float32(camera.noise / 104.5)  # the difference has deviation 104.5
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def _blur(picture: Picture, sigma: float) -> Picture:
    """Separable Gaussian, edges repeated."""
    radius = max(1, int(np.ceil(2.5 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-3)) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        length = picture.shape[axis]
        repeated = np.clip(np.arange(-radius, length + radius), 0, length - 1)
        padded = picture.take(repeated, axis)
        picture = (
            padded[radius:-radius] * weights[radius]
            if axis == 0
            else padded[:, radius:-radius] * weights[radius]
        )
        for tap in range(radius):  # the kernel is symmetric
            near, far = slice(tap, tap + length), slice(2 * radius - tap, 2 * radius - tap + length)
            pair = padded[near] + padded[far] if axis == 0 else padded[:, near] + padded[:, far]
            pair *= weights[tap]
            picture += pair
    return picture
