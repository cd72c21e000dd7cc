"""Six surveillance cameras: their place, light, colors, sharpness and crops, and what stands in the way."""

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
    ambient: float  # strength of the sky's light; the sun has the rest
    sun: float
    sun_azimuth: float  # degrees from the camera's axis, 90 is the image's right


CAMERAS: tuple[Camera, ...] = (
    Camera(
        camid=1,
        scene=0,
        pitch=12,
        gain=(1.02, 1.0, 0.97),
        exposure=1.05,
        contrast=1.02,
        saturation=1.0,
        blur=0.45,
        noise=2.0,
        fill=(0.84, 0.95),
        shift=0.01,
        occlusion=0.05,
        occluder="post",
        ambient=0.6,
        sun=0.65,
        sun_azimuth=35,
    ),
    Camera(
        camid=2,
        scene=1,
        pitch=16,
        gain=(0.93, 1.06, 0.92),
        exposure=0.92,
        contrast=1.05,
        saturation=1.08,
        blur=0.55,
        noise=2.5,
        fill=(0.82, 0.94),
        shift=0.014,
        occlusion=0.1,
        occluder="bush",
        ambient=0.66,
        sun=0.5,
        sun_azimuth=-60,
    ),
    Camera(
        camid=3,
        scene=2,
        pitch=9,
        gain=(0.95, 0.99, 1.09),
        exposure=0.8,
        contrast=0.95,
        saturation=0.84,
        blur=0.6,
        noise=3.0,
        fill=(0.84, 0.95),
        shift=0.014,
        occlusion=0.08,
        occluder="post",
        ambient=0.74,
        sun=0.34,
        sun_azimuth=100,
    ),
    Camera(
        camid=4,
        scene=3,
        pitch=20,
        gain=(1.09, 0.99, 0.86),
        exposure=1.0,
        contrast=1.08,
        saturation=1.05,
        blur=0.5,
        noise=2.5,
        fill=(0.82, 0.94),
        shift=0.012,
        occlusion=0.08,
        occluder="box",
        ambient=0.58,
        sun=0.6,
        sun_azimuth=10,
    ),
    Camera(
        camid=5,
        scene=4,
        pitch=14,
        gain=(1.0, 1.02, 1.02),
        exposure=1.22,
        contrast=0.88,
        saturation=0.78,
        blur=0.65,
        noise=3.0,
        fill=(0.8, 0.93),
        shift=0.016,
        occlusion=0.12,
        occluder="rail",
        ambient=0.72,
        sun=0.48,
        sun_azimuth=-25,
    ),
    Camera(
        camid=6,
        scene=5,
        pitch=24,
        gain=(1.1, 1.0, 0.8),
        exposure=0.76,
        contrast=1.0,
        saturation=0.92,
        blur=0.7,
        noise=3.5,
        fill=(0.82, 0.95),
        shift=0.016,
        occlusion=0.06,
        occluder="box",
        ambient=0.8,
        sun=0.3,
        sun_azimuth=70,
    ),
)


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
