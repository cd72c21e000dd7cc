"""Embeddings with the development weights, and the real training folder's labels in P x K batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.data.layouts.market1501 import parse_name
from reposer.data.samplers import ClassGroups, draw_people
from reposer.metrics.feature_networks import KerasMobileNetV2
from reposer.models.embedding import Embedding, load_pretrained

pytestmark = pytest.mark.real
SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_features_imagenet.safetensors"
NAMES = SHARED / "data" / "market1501" / "lists" / "official-train-names.txt"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs the development weights")
def test_keras_mobilenet_agrees_with_the_one_of_the_metrics():
    embedding = Embedding("mobilenet_v2_keras", neck="none").eval()
    assert load_pretrained(embedding, WEIGHTS) == WEIGHTS
    images = torch.randint(0, 256, (2, 3, 128, 64), dtype=torch.uint8)
    expected = KerasMobileNetV2(WEIGHTS)(images)
    with torch.inference_mode():
        torch.testing.assert_close(embedding.features(images).pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not NAMES.exists(), reason="needs the official lists")
def test_an_epoch_of_p_by_k_shows_all_751_people():
    pids = np.array([parse_name(name).pid for name in NAMES.read_text().split()])
    people, labels = np.unique(pids, return_inverse=True)
    groups = ClassGroups.of(labels)
    assert groups.classes == len(people) == 751
    rows = [draw_people(groups, 16, 4, seed=0, step=step) for step in range(47)]  # 752 people
    drawn = labels[np.concatenate(rows)[::4]]
    assert len(set(drawn.tolist())) == 751
