"""Features in batches: the order, the labels and the values of one image after the other."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reposer.reid.features import embed_images, extract_features
from reposer.reid.search import with_cameras


class _MeanColor(nn.Module):
    """The feature is the mean color, so that it can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.dtype == torch.uint8
        self.batches.append(len(images))
        return F.normalize(images.float().mean((2, 3)) * self.scale, dim=1)


@pytest.fixture
def people() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        images=rng.integers(0, 256, (7, 6, 4, 3), dtype=np.uint8),
        pids=np.arange(10, 17),
        camids=np.arange(7) % 3,
        clothes=np.array([-1, -1, 4, -1, 5, 6, 7]),
        names=tuple(f"{i}.jpg" for i in range(7)),
    )


def _by_hand(image: np.ndarray) -> np.ndarray:
    color = image.reshape(-1, 3).astype(np.float64).mean(0)
    return color / np.linalg.norm(color)


def test_every_image_gets_its_own_feature(people):
    network = _MeanColor().train()
    features = embed_images(network, people.images, batch_size=3)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [_by_hand(image) for image in people.images], atol=1e-6)
    assert network.batches == [3, 3, 1]
    assert network.training  # as it was before


def test_labels_stay_with_their_features(people):
    found = extract_features(_MeanColor(), people, np.array([5, 0, 5]), batch_size=2)
    np.testing.assert_allclose(found.features, [_by_hand(people.images[i]) for i in (5, 0, 5)], atol=1e-6)
    assert found.pids.tolist() == [15, 10, 15]
    assert found.camids.tolist() == [2, 0, 2]
    assert found.names == ("5.jpg", "0.jpg", "5.jpg")
    assert len(extract_features(_MeanColor(), people)) == 7


def test_no_images_no_features(people):
    found = extract_features(_MeanColor(), people, np.array([], np.int64))
    assert len(found) == 0
    assert found.names == ()


def test_a_memory_map_is_read(people, tmp_path):
    np.save(tmp_path / "images.npy", people.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = embed_images(_MeanColor(), people.images)
    assert np.array_equal(embed_images(_MeanColor(), mapped, batch_size=2), expected)


def test_cameras_are_those_of_the_folder_and_unknown_ones_every_image_its_own(people):
    people.camids[:] = 0
    found = extract_features(_MeanColor(), people, np.array([5, 0]))
    assert found.camids.tolist() == [0, 0]
    (query, gallery), note = with_cameras(found, found)
    assert note
    assert len({*query.camids.tolist(), *gallery.camids.tolist()}) == 2
