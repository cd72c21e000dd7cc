"""Augmented sets with predicted maps, by the shipped generator: the same bytes however they come about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reposer.data.preparing.prepare import prepare_market1501
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.lineage import set_faults
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.models.parsing_networks import ParsingPredictor
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.storage.files import sha256_file
from reposer.trained.networks import GeneratorConfig

OPTIONS = AugmentOptions(policy="other_camera", real="none", batch_size=2, shard_items=2)


def tree(folder: Path) -> dict[str, str]:
    """Every file and its hash."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_rendered_dataset(folder / "raw", identities=2, test_identities=1, images_per_identity=3, seed=5)
    prepare_market1501(folder / "raw", folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="module")
def model() -> PoseTransfer:
    """The shipped generator, its maps predicted by random weights."""
    runtime = setup("cpu", threads=1, seed=4)
    shipped = PoseTransfer.from_pretrained("shipped", runtime)
    config = GeneratorConfig(generator="parsing_predictor", generator_args={"width": 8}, size=shipped.size)
    network = ParsingPredictor(width=8)
    for module in network.modules():  # running statistics that differ from those of any batch
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return shipped.with_predictor(MapPredictor(network, config, runtime), "predicted")


@pytest.fixture(scope="module")
def whole(prepared, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "whole"
    assert augment(model, prepared, out, OPTIONS).written == 6
    return out


def test_the_set_says_who_predicted_its_maps(prepared, whole, model, tmp_path):
    settings = json.loads((whole / "job.json").read_text())["settings"]
    assert settings["maps"] == "predicted"
    assert model.predictor.weights_hash in json.dumps(settings)
    assert set_faults(whole) == []
    given = PoseTransfer(model.generator, model.config, model.runtime)
    augment(given, prepared, tmp_path / "given", OPTIONS)
    pictures = [
        {name: value for name, value in tree(folder).items() if name.startswith("images/")}
        for folder in (whole, tmp_path / "given")
    ]
    assert pictures[0].keys() == pictures[1].keys()
    assert not set(pictures[0].values()) & set(pictures[1].values())


def test_an_interrupted_set_is_finished_to_the_same_bytes(prepared, whole, model, tmp_path):
    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment(model, prepared, tmp_path / "out", OPTIONS, on_progress=stop)
    report = augment(model, prepared, tmp_path / "out", OPTIONS)
    assert report.kept > 0
    assert report.kept + report.written == 6
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.slow
def test_two_processes_write_the_same_tree_also_when_they_go_on(prepared, whole, model, tmp_path):
    augment(model, prepared, tmp_path / "two", OPTIONS, processes=2)
    assert tree(tmp_path / "two") == tree(whole)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment(model, prepared, tmp_path / "resumed", OPTIONS, processes=2, on_progress=stop)
    augment(model, prepared, tmp_path / "resumed", OPTIONS, processes=2)
    assert tree(tmp_path / "resumed") == tree(whole)
