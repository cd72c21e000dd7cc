"""Six surveillance cameras: their place, light, colors, sharpness and crops, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# ---- What stands behind the people: a painted panorama for each camera, of which every image takes a window.

Picture = NDArray[np.float32]  # (H, W, 3) linear light

WIDTH, HEIGHT = 7.0, 1.3  # of a panorama, in image heights


class _Canvas:
    """A picture being painted, with coordinates in image heights: u to the right, v downwards."""

    def __init__(self, seed: int, height: int) -> None:
        self.rng = np.random.default_rng([seed, 77])
        rows, columns = round(HEIGHT * height), round(WIDTH * height)
        self.v, self.u = np.meshgrid(
            (np.arange(rows) + 0.5) / height, (np.arange(columns) + 0.5) / height, indexing="ij"
        )
        self.picture = np.zeros((rows, columns, 3))

    def noise(self, cell_u: float, cell_v: float) -> NDArray[np.float64]:
        """Smooth noise in [-1, 1] with features of the given size."""
        grid = self.rng.uniform(-1, 1, (int(HEIGHT / cell_v) + 3, int(WIDTH / cell_u) + 3))
        y, x = self.v / cell_v, self.u / cell_u
        row, column = y.astype(int), x.astype(int)
        fy, fx = y - row, x - column
        fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
        top = grid[row, column] * (1 - fx) + grid[row, column + 1] * fx
        bottom = grid[row + 1, column] * (1 - fx) + grid[row + 1, column + 1] * fx
        blend: NDArray[np.float64] = top * (1 - fy) + bottom * fy
        return blend

    def fill(
        self,
        where: NDArray[np.bool_],
        color: tuple[float, float, float],
        texture: NDArray[np.float64] | float = 0.0,
    ) -> None:
        """Paint a region; ``texture`` brightens or darkens it relatively."""
        paint = np.asarray(color) * (1.0 + np.broadcast_to(texture, where.shape)[where])[:, None]
        self.picture[where] = paint

    def box(self, u0: float, v0: float, u1: float, v1: float, color: tuple[float, float, float]) -> None:
        self.fill((self.u >= u0) & (self.u < u1) & (self.v >= v0) & (self.v < v1), color)

    def ring(
        self, u: float, v: float, radius: float, thick: float, color: tuple[float, float, float]
    ) -> None:
        far = np.hypot(self.u - u, self.v - v)
        self.fill(np.abs(far - radius) < thick, color)

    def tiles(self, horizon: float, size: float, color: tuple[float, float, float], seam: float) -> None:
        """Paved ground below the horizon, in perspective."""
        below = self.v > horizon
        depth = 1.0 / np.maximum(self.v - horizon + 0.12, 0.02)
        line = (np.mod(depth * 0.9 / size, 1.0) < 0.07) | (
            np.mod((self.u - WIDTH / 2) * depth / size * 0.5, 1.0) < 0.05
        )
        grain = 0.10 * self.noise(0.3, 0.2) + 0.06 * self.noise(0.03, 0.03)
        self.fill(below, color, grain - seam * line)


def _plaza(c: _Canvas) -> None:
    c.fill(c.v < 9, (0.42, 0.43, 0.45), 0.08 * c.noise(0.5, 0.4))
    for i in range(26):  # windows of a far building
        c.box(0.02 + i * 0.27, 0.04, 0.18 + i * 0.27, 0.24, (0.10, 0.14, 0.20))
    c.box(0, 0.30, WIDTH, 0.335, (0.16, 0.16, 0.17))
    c.tiles(0.33, 0.9, (0.50, 0.48, 0.44), 0.30)


def _lawn(c: _Canvas) -> None:
    c.fill(c.v < 9, (0.13, 0.22, 0.07), 0.35 * c.noise(0.05, 0.03) + 0.25 * c.noise(0.4, 0.2))
    c.fill(c.v < 0.26 + 0.06 * c.noise(0.25, 2.0), (0.05, 0.11, 0.04), 0.5 * c.noise(0.06, 0.06))
    for _ in range(12):
        u = c.rng.uniform(0, WIDTH)
        c.box(u, -1, u + c.rng.uniform(0.05, 0.10), c.rng.uniform(0.30, 0.42), (0.09, 0.06, 0.04))
    path = np.abs(c.v - 0.95 - 0.06 * np.sin(c.u * 1.7)) < 0.20
    c.fill(path, (0.40, 0.36, 0.29), 0.12 * c.noise(0.04, 0.03))


def _street(c: _Canvas) -> None:
    c.fill(c.v < 9, (0.30, 0.24, 0.20), 0.15 * c.noise(0.3, 0.3))
    c.fill((c.v < 0.42) & (np.mod(c.v * 22, 1.0) < 0.12), (0.36, 0.32, 0.28))
    colors = (
        (0.45, 0.05, 0.04),
        (0.55, 0.56, 0.58),
        (0.03, 0.03, 0.04),
        (0.05, 0.10, 0.30),
        (0.60, 0.60, 0.55),
        (0.18, 0.20, 0.20),
    )
    for i in range(7):  # parked cars
        u, color = i * 1.02 + c.rng.uniform(0, 0.2), colors[int(c.rng.integers(len(colors)))]
        c.box(u + 0.16, 0.20, u + 0.62, 0.33, (0.08, 0.10, 0.12))
        c.box(u, 0.30, u + 0.80, 0.45, color)
        for wheel in (0.15, 0.64):
            c.fill(np.hypot(c.u - u - wheel, c.v - 0.45) < 0.065, (0.02, 0.02, 0.02))
    c.fill(c.v > 0.50, (0.12, 0.12, 0.125), 0.18 * c.noise(0.02, 0.02) + 0.12 * c.noise(0.5, 0.15))
    c.box(0, 0.50, WIDTH, 0.535, (0.34, 0.33, 0.31))
    c.fill((np.abs(c.v - 0.80) < 0.022) & (np.mod(c.u, 0.9) < 0.5), (0.62, 0.61, 0.56))


def _shops(c: _Canvas) -> None:
    bricks = (np.mod(c.v, 0.045) < 0.008) | (np.mod(c.u + 0.05 * np.floor(c.v / 0.045), 0.11) < 0.010)
    c.fill(c.v < 9, (0.34, 0.15, 0.10), 0.12 * c.noise(0.1, 0.045) + 0.45 * bricks)
    for i in range(8):  # glass doors with something bright inside
        u = 0.12 + i * 0.88
        c.box(u - 0.02, 0.02, u + 0.56, 0.56, (0.10, 0.10, 0.10))
        c.box(u, 0.04, u + 0.26, 0.55, (0.20, 0.27, 0.30))
        c.box(u + 0.28, 0.04, u + 0.54, 0.55, (0.26, 0.33, 0.34))
        c.box(u + 0.05, 0.14, u + 0.20, 0.34, tuple(c.rng.uniform(0.1, 0.6, 3)))
    c.tiles(0.56, 0.5, (0.36, 0.34, 0.33), 0.22)


def _bicycles(c: _Canvas) -> None:
    c.fill(c.v < 9, (0.46, 0.45, 0.40), 0.12 * c.noise(0.4, 0.3))
    c.fill((c.v < 0.44) & (np.mod(c.u, 0.075) < 0.014), (0.20, 0.21, 0.20))
    c.box(0, 0.05, WIDTH, 0.075, (0.20, 0.21, 0.20))
    c.fill(c.v > 0.44, (0.31, 0.28, 0.24), 0.16 * c.noise(0.03, 0.02) + 0.10 * c.noise(0.6, 0.2))
    for i in range(13):
        u, v = i * 0.55 + c.rng.uniform(0, 0.15), 0.47 + c.rng.uniform(-0.03, 0.05)
        frame = tuple(c.rng.uniform(0.02, 0.45, 3))
        for wheel in (0.0, 0.30):
            c.ring(u + wheel, v, 0.105, 0.010, (0.03, 0.03, 0.03))
        c.box(u, v - 0.13, u + 0.26, v - 0.112, frame)
        c.box(u + 0.24, v - 0.19, u + 0.26, v, frame)


def _station(c: _Canvas) -> None:
    c.fill(c.v < 9, (0.52, 0.47, 0.36), 0.06 * c.noise(0.6, 0.5))
    c.fill((c.v > 0.10) & (c.v < 0.46) & (np.mod(c.v, 0.06) < 0.024), (0.30, 0.26, 0.20))  # steps
    for i in range(6):
        u = 0.3 + i * 1.2
        c.fill((c.u > u) & (c.u < u + 0.20) & (c.v < 0.62), (0.60, 0.58, 0.52), -2.2 * np.abs(c.u - u - 0.10))
        c.box(u + 0.45, 0.12, u + 0.78, 0.40, tuple(c.rng.uniform(0.05, 0.7, 3)))
    c.tiles(0.46, 0.7, (0.44, 0.38, 0.28), 0.16)


SCENES: tuple[Callable[[_Canvas], None], ...] = (_plaza, _lawn, _street, _shops, _bicycles, _station)


@lru_cache(maxsize=32)
def panorama(scene: int, height: int) -> Picture:
    """Panorama of images ``height`` pixels high: (1.3 height, 7 height, 3) linear light, read only."""
    canvas = _Canvas(scene, height)
    SCENES[scene](canvas)
    picture = np.clip(canvas.picture, 0.0, 1.0).astype(np.float32)
    picture.setflags(write=False)
    return picture


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera; lengths in fractions of the image height, so that a larger image shows the same."""

    camid: int  # 1..6, as in a Market-1501 file name
    scene: int  # index into SCENES
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
    # two uniforms: a triangle
    grain = rng.integers(0, 256, (2, *picture.shape), dtype=np.uint8).astype(np.float32)
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
