"""What the package ships does its job on rendered people that it never saw: a seed of its own."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.annotation.parser import open_parser
from reposer.data.packed import PackedPeople
from reposer.data.pairs import ordered_pairs
from reposer.data.parsing import convert
from reposer.data.preparing.prepare import PACKED, prepare_market1501
from reposer.errors import UserError
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.metrics.similarity import label_confusion, mean_iou, merged_confusion
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.trained.networks import EMBEDDING, GENERATOR, PARSER, PREDICTOR, Kind, open_network
from reposer.workflows.verify import verify_folder

MOST_BYTES = 12_000_000  # of a weight file in the package
FOLDERS = tuple(name for kind in (GENERATOR, PREDICTOR, PARSER) for name in kind.shipped.values())


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> PackedPeople:
    folder = tmp_path_factory.mktemp("people")
    write_rendered_dataset(folder / "raw", identities=6, test_identities=2, images_per_identity=4, seed=77)
    prepare_market1501(folder / "raw", folder / "prepared")
    return PackedPeople.open(folder / "prepared" / PACKED)


@pytest.fixture(scope="module")
def pairs(people) -> np.ndarray:
    return ordered_pairs([np.flatnonzero(people.pids == pid) for pid in np.unique(people.pids)])[::2]


def error_inside(images: np.ndarray, people: PackedPeople, pairs: np.ndarray) -> float:
    """Mean over pairs of |generated - target| in [0, 1] inside the target's mask."""
    errors = []
    for image, row, inside in zip(images, pairs[:, 1], masks(people, pairs), strict=True):
        errors.append(np.abs(image[inside] / 255 - people.images[row][inside] / 255).mean())
    return float(np.mean(errors))


def masks(people: PackedPeople, pairs: np.ndarray) -> np.ndarray:
    return people.pair_batch(pairs[:, 0], pairs[:, 1]).target_mask.numpy()


@pytest.mark.parametrize(
    "name",
    [
        name if "transport" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in GENERATOR.shipped
    ],
)
def test_a_shipped_generator_is_nearer_to_the_target_than_the_source_is(name, people, pairs):
    model = PoseTransfer.from_pretrained(name, setup("cpu", threads=1))
    generated = model(people.pair_batch(pairs[:, 0], pairs[:, 1])).permute(0, 2, 3, 1).numpy()
    copied = error_inside(people.images[pairs[:, 0]], people, pairs)
    assert error_inside(generated, people, pairs) < 0.85 * copied


def test_the_shipped_predictor_knows_more_of_the_target_than_the_sources_map_does(people, pairs):
    predictor = MapPredictor.from_pretrained("shipped-predictor", setup("cpu", threads=1))
    parsing, mask = (x.numpy() for x in predictor(people.pair_batch(pairs[:, 0], pairs[:, 1])))
    truth, source = people.parsing[pairs[:, 1]], people.parsing[pairs[:, 0]]
    someone = (truth > 0) | (source > 0) | (parsing > 0)
    assert (parsing == truth)[someone].mean() > 1.5 * (source == truth)[someone].mean()
    person = masks(people, pairs)
    assert (mask & person).sum() / (mask | person).sum() > 0.8


@pytest.mark.parametrize(("guided", "least"), [(True, 0.7), (False, 0.38)], ids=["guided", "image alone"])
def test_the_shipped_parser_finds_the_parts_of_rendered_people(people, guided, least):
    images = torch.from_numpy(people.images.copy()).permute(0, 3, 1, 2)
    guides = (torch.from_numpy(people.keypoints), torch.from_numpy(people.mask.copy())) if guided else ()
    found = open_parser("rendered_parser")(images, *guides).numpy()
    parts = convert(np.arange(20, dtype=np.uint8)[None], "lip20", "parts8")[0]
    assert mean_iou(merged_confusion(label_confusion(people.parsing, found), parts)) > least


@pytest.mark.parametrize("name", FOLDERS)
def test_shipped_folders_are_small_have_a_card_and_say_who_they_were_trained_on(name):
    folder = files("reposer.assets") / name
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) <= MOST_BYTES
    assert "rendered people" in json.loads((folder / "config.json").read_text())["trained_on"]
    card = (folder / "README.md").read_text()
    assert "## Measured" in card
    assert "## How it was trained" in card


KINDS: dict[str, Kind] = {  # of each shipped folder, and of an embedding
    **{name: kind for kind in (GENERATOR, PREDICTOR, PARSER) for name in kind.shipped.values()},
    "embedding": EMBEDDING,
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """A copy of each shipped folder, and an exported embedding."""
    folder = tmp_path_factory.mktemp("exports")
    for name in FOLDERS:
        shutil.copytree(str(files("reposer.assets") / name), folder / name)
    info = EmbeddingInfo(embedding={"backbone": "small"})
    Embedding.from_info(info).save_pretrained(folder / "embedding")
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_an_export_of_any_kind_is_verified_as_what_it_is(exports, tmp_path, name):
    folder = Path(shutil.copytree(exports / name, tmp_path / name))
    word = "Re-ID network" if name == "embedding" else KINDS[name].word
    assert verify_folder(folder) == (f"exported {word}, hash, names and shapes", [])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    (fault,) = verify_folder(folder)[1]
    assert "sha256" in fault


@pytest.mark.parametrize("kind", [GENERATOR, PREDICTOR, PARSER, EMBEDDING], ids=lambda kind: kind.of_what)
@pytest.mark.parametrize("name", ["parser_rendered", "predictor_rendered", "san_rendered", "embedding"])
def test_an_export_in_the_place_of_another_kind_is_named(exports, name, kind):
    if kind is KINDS[name]:
        assert open_network(kind, exports / name).weights_hash
        return
    with pytest.raises(UserError) as told:
        open_network(kind, exports / name)
    assert told.value.problem == f"{exports / name}: is {KINDS[name].of_what}, not {kind.of_what}"
    assert told.value.advice.endswith(f"name {kind.of_what}")
