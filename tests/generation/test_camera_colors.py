"""Lines between cameras: planted ones come back, whoever changed clothes; too few people are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.errors import UserError
from reposer.generation.camera_colors import CameraColors, recolor

GAIN, OFFSET = np.array([0.8, 1.1, 1.0]), np.array([20.0, -10.0, 5.0])


@dataclass
class Planted:
    """People whose color in camera 2 is a line of that in camera 1."""

    images: np.ndarray
    mask: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    folder: Path = Path("planted")


def planted(people: int, changed: int = 0) -> Planted:
    rng = np.random.default_rng(0)
    images, pids, camids = [], [], []
    for pid in range(people):
        color = rng.uniform(40, 200, 3)
        for camera in (1, 2):
            seen = GAIN * color + OFFSET if camera == 2 else color
            if camera == 2 and pid < changed:
                seen = rng.uniform(0, 255, 3)  # somebody else's clothes
            image = np.full((8, 4, 3), 255, np.uint8)  # a background that must not count
            image[2:6, 1:3] = seen.clip(0, 255).round()
            images.append(image)
            pids.append(pid + 1)
            camids.append(camera)
    mask = np.zeros((len(images), 8, 4), np.bool_)
    mask[:, 2:6, 1:3] = True
    return Planted(np.stack(images), mask, np.array(pids), np.array(camids))


@pytest.mark.parametrize("changed", [0, 12])
def test_planted_lines_come_back(changed: int) -> None:
    people = planted(60, changed)
    found = CameraColors.fit(people, np.arange(len(people.pids)))  # type: ignore[arg-type]
    gain, offset = found.between([1, 2, 1, 1], [2, 1, 1, 9])
    np.testing.assert_allclose(gain[0].numpy(), GAIN, atol=0.03)
    np.testing.assert_allclose(offset[0].numpy(), OFFSET, atol=4)
    np.testing.assert_allclose(gain[1].numpy(), 1 / GAIN, atol=0.05)
    assert gain[2:].tolist() == [[1, 1, 1]] * 2  # within a camera, and to one that nobody was seen by
    assert offset[2:].tolist() == [[0, 0, 0]] * 2
    assert found.document() == CameraColors.fit(people, np.arange(120)).document()  # type: ignore[arg-type]


def test_images_that_are_not_named_take_no_part() -> None:
    people = planted(40, changed=20)
    kept = np.flatnonzero(people.pids > 20)
    gain, _ = CameraColors.fit(people, kept).between([1], [2])  # type: ignore[arg-type]
    np.testing.assert_allclose(gain[0].numpy(), GAIN, atol=0.01)


def test_too_few_common_people_are_refused() -> None:
    with pytest.raises(UserError, match="8 people in common"):
        CameraColors.fit(planted(5), np.arange(10))  # type: ignore[arg-type]


def test_recolor_by_hand() -> None:
    images = torch.tensor([10, 200, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 2, 2)
    gain, offset = torch.tensor([[2.0, 1.0, 1.0], [1, 1, 1]]), torch.tensor([[1.0, -250.0, 3.0], [0, 0, 0]])
    out = recolor(images, gain, offset)
    assert out[0, :, 0, 0].tolist() == [21, 0, 255]
    assert torch.equal(out[1], images[1])
