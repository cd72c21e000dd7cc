"""A small parser learns real maps: after a few steps it already finds people in images of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.data.preparing.prepare import prepare_market1501
from reposer.metrics.similarity import label_confusion
from reposer.trained.networks import PARSER, of_run
from reposer.training.loop import train
from reposer.training.parsing.task import ParsingData
from reposer.workflows.train import parser_small

SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_features_imagenet.safetensors"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="no real data here")
def test_people_are_found_after_sixty_steps(tmp_path):
    prepare_market1501(SHARED / "data" / "market1501", tmp_path / "prepared", holdout=100)
    recipe = parser_small()
    config = recipe.changed(
        data=recipe.data.changed(folder=tmp_path / "prepared"),
        parser=recipe.parser.changed(keras=True),
        initial_path=WEIGHTS,
        optimizer=recipe.optimizer.changed(epochs=0.18, warmup_steps=10),
        threads=1,
    )
    data = ParsingData(config)
    assert len(data.pids) == 600
    assert (
        data.pids.max()
        < data.people.pids[data.tuning].min()
        < data.people.pids[data.people.splits == "val"].min()
    )
    train(config, tmp_path / "run", device="cpu")
    network = of_run(PARSER, tmp_path / "run").network
    rows = np.flatnonzero(data.people.splits == "val")[::20]
    images, maps = data.read(rows)
    with torch.inference_mode():
        predicted = network(images).argmax(1).numpy().astype(np.uint8)
    truth = maps.numpy()
    both, either = ((truth > 0) & (predicted > 0)).sum(), ((truth > 0) | (predicted > 0)).sum()
    assert both / either > 0.7
    confusion = label_confusion(truth, predicted)
    assert np.trace(confusion) / confusion.sum() > 0.6
