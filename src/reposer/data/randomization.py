"""Domain randomization: rendered people with other colors, textures, scenes, lenses, and noisy annotations.

A network that has seen only rendered people reads real photographs better when nothing but shape can be
relied on (Tobin et al., IROS 2017). A sample is a function of its generator alone, so that it depends
neither on the batch nor on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import distance_transform_edt, gaussian_filter

from reposer.config import Config
from reposer.data.keypoints import FLIP_JOINTS, Pose
from reposer.data.parsing import FLIP_LABELS
from reposer.images import decode_bytes, encode_jpeg
from reposer.structures import MISSING_LABEL, NUM_JOINTS, NUM_LABELS

Pixels = NDArray[np.float32]  # (H, W, 3) RGB in [0, 255]
Labels = NDArray[np.uint8]  # (H, W) LIP-20

STREAM = 43  # of random numbers, by (seed, STREAM, step, position)
_FACE_JOINTS = (0, 14, 15, 16, 17)
_HAIR, _FACE, _SKIN, _SHOES = 2, 13, (13, 14, 15, 16, 17), (18, 19)
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


class RandomizeConfig(Config):
    """How strongly; 0 leaves a part out."""

    zoom: float = Field(default=0.2, ge=0, lt=1)  # logarithm of the size, at most
    stretch: float = Field(default=0.5, ge=0, lt=1)  # logarithm of width over height, at most
    turn: float = Field(default=4.0, ge=0)  # degrees, standard deviation
    shift: float = Field(default=0.07, ge=0, lt=0.5)  # share of the image's size, at most
    recolor: float = Field(default=0.7, ge=0, le=1)  # share of regions with another color
    texture: float = Field(default=0.5, ge=0, le=1)  # share of regions with another texture
    scene: float = Field(default=0.8, ge=0, le=1)  # share of images with another background
    company: float = Field(default=0.15, ge=0, le=1)  # share with another person at the side
    occluder: float = Field(default=0.25, ge=0, le=1)  # share with something in front
    blur: float = Field(default=1.4, ge=0)  # pixels at 128 of height, at most
    noise: float = Field(default=10.0, ge=0)  # gray levels, at most
    jpeg: float = Field(default=0.7, ge=0, le=1)  # share that is compressed again
    light: float = Field(default=0.35, ge=0, lt=1)  # brightness, contrast, casts, saturation
    no_mask: float = Field(default=0.3, ge=0, le=1)  # share without a mask
    mask_noise: float = Field(default=0.4, ge=0, le=1)  # how far its border wanders
    no_joints: float = Field(default=0.15, ge=0, le=1)  # share without joints
    missing_joints: float = Field(default=0.35, ge=0, le=1)  # share of joints that are missing, at most
    joint_noise: float = Field(default=2.5, ge=0)  # pixels at 128 of height, standard deviation at most
    swapped: float = Field(default=0.06, ge=0, le=1)  # share with left and right joints exchanged


@dataclass(frozen=True, slots=True)
class Person:
    """An image and its annotations."""

    image: NDArray[np.uint8]  # (H, W, 3)
    parsing: Labels
    keypoints: Pose  # (18, 2) pixels, NaN for a missing joint


@dataclass(frozen=True, slots=True)
class Guided:
    """What a guided parser learns from."""

    image: NDArray[np.uint8]  # (H, W, 3)
    parsing: Labels  # the truth; within the mask where there is one
    mask: NDArray[np.uint8]  # (H, W) 1, 0, or MISSING_LABEL everywhere; as an annotator might see it
    keypoints: Pose  # as an annotator might see them


def randomize(person: Person, companion: Person, config: RandomizeConfig, rng: np.random.Generator) -> Guided:
    """Another picture of the same shapes, its exact map, and a mask and joints with the usual faults.

    Args:
        person: of the picture; its map has no MISSING_LABEL.
        companion: another person of the same size, who may stand at the side or lend a scene.
    """
    pixels, labels, joints, seen = _moved(person, config, rng)
    pixels = _repainted(pixels, labels, config, rng)
    if rng.random() < config.scene:
        scene = _scene(labels.shape, companion, rng)
        scene = _with_companion(scene, companion, rng) if rng.random() < config.company else scene
    else:
        scene = np.where(seen[..., None], pixels, _clouds(labels.shape, rng))
    cover = _blurred((labels > 0).astype(np.float32), float(rng.uniform(0.3, 0.7)))[..., None]
    pixels = pixels * cover + scene * (1 - cover)
    if rng.random() < config.occluder:
        where = _thing(labels.shape, rng)
        pixels = np.where(where[..., None], _clouds(labels.shape, rng), pixels)
        labels = np.where(where, np.uint8(0), labels)
        if rng.random() < 0.7:
            joints = _hidden(joints, where)
    image, mask = _photographed(pixels, config, rng), _seen_mask(labels, config, rng)
    return Guided(image, _within(labels, mask), mask, _seen_joints(joints, labels.shape, config, rng))


# ---- Place, size, mirror.


def _moved(
    person: Person, config: RandomizeConfig, rng: np.random.Generator
) -> tuple[Pixels, Labels, Pose, NDArray[np.bool_]]:
    """Picture, map and joints elsewhere in the frame, perhaps mirrored; and where the picture reaches."""
    height, width = person.parsing.shape
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    wider = rng.uniform(-0.2, 1.0) * config.stretch  # crops of a fixed format show people widened
    size = np.exp(rng.uniform(-config.zoom, config.zoom) + np.array([wider, 0.0]))
    angle = np.radians(rng.normal(0, config.turn)) if config.turn else 0.0
    mirrored = bool(rng.random() < 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag(1 / size * ([-1, 1] if mirrored else [1, 1]))  # from the new frame to the old
    offset = center + rng.uniform(-config.shift, config.shift, 2) * (width, height)
    x, y = np.meshgrid(np.arange(width) - center[0], np.arange(height) - center[1])
    old_x = (matrix[0, 0] * x + matrix[0, 1] * y + offset[0]).astype(np.float32)
    old_y = (matrix[1, 0] * x + matrix[1, 1] * y + offset[1]).astype(np.float32)
    seen = (old_x > -0.5) & (old_x < width - 0.5) & (old_y > -0.5) & (old_y < height - 0.5)
    column, row = (np.rint(v).astype(np.intp) for v in (old_x.clip(0, width - 1), old_y.clip(0, height - 1)))
    labels = np.where(seen, person.parsing[row, column], np.uint8(0))
    joints = (person.keypoints - offset) @ np.linalg.inv(matrix).T + center
    if mirrored:
        labels, joints = FLIP_LABELS["lip20"][labels], joints[FLIP_JOINTS]
    return _bilinear(person.image, old_x, old_y), labels, joints.astype(np.float32), seen


def _bilinear(image: NDArray[np.uint8], x: NDArray[np.float32], y: NDArray[np.float32]) -> Pixels:
    """Colors at places of an image; its border reaches outwards."""
    height, width = image.shape[:2]
    places = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    source = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    found = F.grid_sample(
        source[None], torch.from_numpy(places)[None], padding_mode="border", align_corners=False
    )
    return np.ascontiguousarray(found[0].permute(1, 2, 0).numpy())


# ---- Colors and textures of garments, skin and hair.


def _repainted(pixels: Pixels, labels: Labels, config: RandomizeConfig, rng: np.random.Generator) -> Pixels:
    """The folds and shadows that were there, in other colors; cloth with other textures."""
    gray = pixels @ _GRAY
    flat = labels.ravel()
    count = np.bincount(flat, minlength=NUM_LABELS)
    mean = np.maximum(np.bincount(flat, gray.ravel(), NUM_LABELS) / np.maximum(count, 1), 8)
    depth = rng.uniform(0.4, 1.3, NUM_LABELS).astype(np.float32)
    shade = 1 + depth.take(labels) * (gray / mean.astype(np.float32).take(labels) - 1).clip(-0.8, 1.5)
    changed = rng.random(NUM_LABELS) < config.recolor
    changed[list(_SKIN)], changed[list(_SHOES)] = changed[_FACE], changed[_SHOES[0]]
    amount = (changed * rng.uniform(0.6, 1.0, NUM_LABELS)).astype(np.float32).take(labels)[..., None]
    pixels = pixels + amount * (_paints(rng).take(labels, 0) * shade[..., None] - pixels)
    height, width = labels.shape
    woven = (rng.random(NUM_LABELS) < config.texture) * rng.uniform(5, 45, NUM_LABELS)
    woven[list(_SKIN)] *= 0.25
    tint = rng.normal(0.6, 0.6, (NUM_LABELS, 3)) * woven[:, None]
    cells = int(rng.integers(4, 24))
    field = _smooth(rng, (height, width), (cells, max(2, cells // 2)))
    if rng.random() < 0.35:  # stripes
        angle, period = rng.choice([0.0, 0.5, rng.uniform(0, 1)]) * np.pi, rng.uniform(3, 12)
        across = np.arange(height)[:, None] * np.cos(angle) + np.arange(width) * np.sin(angle)
        field = np.sin(2 * np.pi * across / period) * (2 if rng.random() < 0.5 else 1)
    field = field.clip(-1.5, 1.5).astype(np.float32)
    return pixels + tint.astype(np.float32).take(labels, 0) * field[..., None]


def _paints(rng: np.random.Generator) -> NDArray[np.float32]:
    """(20, 3) a color for each label."""
    kind = rng.random((NUM_LABELS, 1))
    vivid = rng.uniform(0, 255, (NUM_LABELS, 3))
    dull = rng.uniform(0, 255, (NUM_LABELS, 1)) + rng.normal(0, 12, (NUM_LABELS, 3))
    dark = rng.uniform(5, 70, (NUM_LABELS, 1)) + rng.normal(0, 10, (NUM_LABELS, 3))
    paints = np.where(kind < 0.35, vivid, np.where(kind < 0.65, dull, dark))
    tone = rng.uniform(0, 1) ** 0.7
    skin = (1 - tone) * np.array([70, 45, 36]) + tone * np.array([238, 192, 166])
    skin = skin * rng.uniform(0.85, 1.15) + rng.normal(0, 7, 3)
    paints[list(_SKIN)] = skin * rng.uniform(0.85, 1.1, (5, 1))
    paints[_FACE] = skin
    if rng.random() < 0.8:
        blond = rng.uniform(0, 1) ** 3
        paints[_HAIR] = (1 - blond) * np.array([28, 22, 20]) + blond * np.array([190, 150, 95])
        paints[_HAIR] += rng.normal(0, 10, 3)
    paints[_SHOES[1]] = paints[_SHOES[0]]
    return paints.clip(0, 255).astype(np.float32)


# ---- What is behind and in front.


def _scene(shape: tuple[int, ...], companion: Person, rng: np.random.Generator) -> Pixels:
    """A background: clouds of color, ground and wall, plain things, or what is behind the companion."""
    height, width = shape
    if rng.random() < 0.25:  # the companion is covered by what is beside it
        whole = companion.image.astype(np.float32)
        shifted = np.roll(whole, width // 2, 1)
        away = _blurred((companion.parsing > 0).astype(np.float32), 2.0)[..., None] > 0.05
        return np.where(away, np.where(np.roll(away, width // 2, 1), whole.mean((0, 1)), shifted), whole)
    scene = _clouds(shape, rng)
    if rng.random() < 0.6:
        ground = _clouds(shape, rng)
        line = rng.uniform(0.1, 0.9) * height + rng.normal(0, 0.15) * np.arange(width)
        scene = np.where((np.arange(height)[:, None] > line)[..., None], ground, scene)
    for _ in range(int(rng.integers(0, 7))):
        where, color = _thing(shape, rng), rng.uniform(0, 255, 3).astype(np.float32)
        scene[where] += rng.uniform(0.3, 1) * (color - scene[where])
    return scene


def _with_companion(scene: Pixels, companion: Person, rng: np.random.Generator) -> Pixels:
    """Somebody else at the left or right border, who belongs to the background."""
    width = scene.shape[1]
    shift = int(rng.uniform(0.4, 0.8) * width) * (1 if rng.random() < 0.5 else -1)
    here = np.roll(companion.parsing > 0, shift, 1)
    here[:, slice(0, shift) if shift > 0 else slice(shift, None)] = False  # what came round the border
    return np.where(here[..., None], np.roll(companion.image, shift, 1), scene).astype(np.float32)


def _clouds(shape: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """A color that varies in patches of several sizes."""
    height, width = shape
    color = rng.uniform(20, 235, 3) if rng.random() < 0.4 else rng.uniform(20, 235) + rng.normal(0, 15, 3)
    picture = np.broadcast_to(color.astype(np.float32), (height, width, 3))
    for cells in (3, 8, 24):
        tint = (rng.normal(0, 1, 3) * 10 + rng.normal(0, 1) * 18).astype(np.float32)
        picture = picture + _smooth(rng, (height, width), (cells, max(2, cells // 2)))[..., None] * tint
    return picture


def _thing(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(H, W) a box, an ellipse or a bar somewhere."""
    height, width = shape
    y = (np.arange(height)[:, None] - rng.uniform(0, height)) / height
    x = (np.arange(width)[None] - rng.uniform(0, width)) / width
    tall, wide = np.exp(rng.uniform(-3.2, -1.2)), np.exp(rng.uniform(-3.0, -1.0))
    kind = rng.integers(4)
    if kind == 0:
        return np.asarray((y / tall) ** 2 + (x / wide) ** 2 < 1)
    if kind == 1:  # a post or a rail
        lean = rng.normal(0, 0.15)
        return np.abs(x + lean * y) < 0.04 if rng.random() < 0.5 else np.abs(y + lean * x) < 0.015
    return np.asarray((np.abs(y) < tall) & (np.abs(x) < wide))


def _smooth(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) random values of deviation 1 at the corners of cells, straight between them."""
    values = rng.standard_normal((cells[0] + 1, cells[1] + 1), np.float32)
    return np.asarray(_between(size[0], cells[0]) @ values @ _between(size[1], cells[1]).T)


@lru_cache(maxsize=256)
def _between(n: int, cells: int) -> NDArray[np.float32]:
    """(n, cells + 1) weights of linear interpolation."""
    place = np.linspace(0, cells, n)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells + 1)))
    return np.asarray(weights, np.float32)


# ---- The camera.


def _photographed(pixels: Pixels, config: RandomizeConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light, color cast, blur, grain and compression."""
    height, width = pixels.shape[:2]
    light = config.light
    gray = (pixels @ _GRAY)[..., None]
    vivid = rng.uniform(max(0.0, 1 - 1.8 * light), 1 + light)
    pixels = np.asarray(gray + (pixels - gray) * vivid, np.float32)
    middle = float(gray.mean())
    tint = rng.uniform(1 - light, 1 + light) * rng.uniform(1 - light / 3, 1 + light / 3, 3)
    gain = tint.astype(np.float32)
    pixels = (pixels - middle) * (gain * np.float32(rng.uniform(1 - light, 1 + light))) + gain * middle
    pixels *= 1 + np.float32(light * rng.normal(0, 0.5)) * _smooth(rng, (height, width), (2, 2))[..., None]
    sigma = rng.uniform(0, config.blur) * height / 128
    if sigma > 0.2:
        pixels = _blurred(pixels, (sigma, sigma * rng.uniform(0.6, 1.4), 0))
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, config.noise))
    curve = 255 * (np.arange(256) / 255) ** np.exp(rng.normal(0, light))
    image: NDArray[np.uint8] = np.rint(curve).astype(np.uint8).take(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < config.jpeg:
        image = decode_bytes(encode_jpeg(image, quality=int(rng.integers(25, 95))), "randomized.jpg")
    return image


def _blurred(plane: NDArray[np.float32], sigma: float | tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(gaussian_filter(plane, sigma, truncate=2.5), np.float32)


# ---- Masks and joints as annotators see them.


def _seen_mask(labels: Labels, config: RandomizeConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The person with a border that wanders, too large or too small; with a thing or without a part."""
    if rng.random() < config.no_mask:
        return np.full(labels.shape, MISSING_LABEL, np.uint8)
    height, width = labels.shape
    person = labels > 0
    chance = rng.random(2) if config.mask_noise else np.ones(2)
    if chance[0] < 0.15:
        person = person | (_thing(labels.shape, rng) & (_blurred(person.astype(np.float32), 4.0) > 0.05))
    if chance[1] < 0.1:
        person = person & ~_thing(labels.shape, rng)
    soft = _blurred(person.astype(np.float32), rng.uniform(0.5, 0.5 + 10 * config.mask_noise) * height / 128)
    cells = int(rng.integers(4, 20))
    wander = _smooth(rng, (height, width), (cells, max(2, cells // 2)))
    level = 0.5 + config.mask_noise * (
        rng.uniform(-1.1, 0.5) + rng.uniform(0, 0.6) * wander
    )  # mostly too large
    return np.asarray(soft > level.clip(0.04, 0.96), np.uint8)


def _within(labels: Labels, mask: NDArray[np.uint8]) -> Labels:
    """The map of a person who is what the mask says: beside it background, inside it the nearest label."""
    if mask[0, 0] == MISSING_LABEL or not labels.any():
        return labels
    row, column = distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(mask == 1, labels[row, column], np.uint8(0))


def _seen_joints(
    joints: Pose, shape: tuple[int, ...], config: RandomizeConfig, rng: np.random.Generator
) -> Pose:
    """Displaced, sometimes exchanged, some or all of them missing."""
    height, width = shape
    noise = rng.standard_normal(joints.shape, np.float32)
    joints = joints + noise * np.float32(rng.uniform(0, config.joint_noise) * height / 128)
    if rng.random() < config.swapped:
        joints = joints[FLIP_JOINTS]
    missing = rng.random(NUM_JOINTS) < rng.uniform(0, config.missing_joints)
    if rng.random() < 0.15:
        missing[list(_FACE_JOINTS)] = True
    if rng.random() < config.no_joints:
        missing[:] = True
    outside = ((joints < 0) | (joints > np.array([width - 1, height - 1]))).any(1)
    joints[missing | outside] = np.nan
    return joints


def _hidden(joints: Pose, where: NDArray[np.bool_]) -> Pose:
    """Joints without those behind a thing."""
    height, width = where.shape
    known = np.isfinite(joints[:, 0])
    column, row = (np.rint(np.where(known[:, None], joints, 0)).astype(np.intp)).T
    hidden = joints.copy()
    hidden[known & where[row.clip(0, height - 1), column.clip(0, width - 1)]] = np.nan
    return hidden
