"""A generator in use: batches, single people, runs, folders to share."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from reposer.config import stored_hash
from reposer.errors import UserError
from reposer.generation.pictures import load_person
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.stitching import stitch
from reposer.images import to_uint8
from reposer.models.generators import build_generator
from reposer.runtime import setup
from reposer.storage import checkpoint
from reposer.trained.networks import GeneratorConfig

TINY_SAN = {
    "ngf": 4,
    "enc_strides": [2, 2, 1],
    "blocks": 1,
    "n_convs": 2,
    "deep_channels": [8],
    "padding": "zeros",
}


def part(batch, rows):
    return type(batch)(**{name: column[rows] for name, column in batch.tensors().items()})


@pytest.fixture
def tiny_san():
    """A SAN of a few thousand weights whose BatchNorms have seen some batches."""
    torch.manual_seed(0)
    generator = build_generator("san", **TINY_SAN)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    config = GeneratorConfig(
        generator="san", generator_args=TINY_SAN, size=(64, 32), trained_on="noise", step=7
    )
    return PoseTransfer(generator, config, setup("cpu", "float32"))


@pytest.mark.parametrize("background", ["generated", "donor", "source"])
def test_a_picture_does_not_depend_on_its_batch(tiny_san, people, background):
    indices = np.arange(7)
    batch = people.pair_batch(indices, indices[::-1].copy())
    whole = tiny_san(batch, background).int()
    assert whole.shape == (7, 3, 64, 32)
    for size in (1, 3):
        parts = [tiny_san(part(batch, slice(i, i + size)), background) for i in range(0, 7, size)]
        assert (torch.cat(parts).int() - whole).abs().max() <= 1
    assert whole.float().std() > 1, "the pictures are not all alike"


def test_a_picture_is_the_networks_output_in_eval_mode(pose_transfer, people):
    batch = people.pair_batch(np.arange(4), np.arange(4, 8))
    with torch.inference_mode():
        expected = to_uint8(pose_transfer.generator(batch))
    assert torch.equal(pose_transfer(batch), expected)
    assert torch.equal(pose_transfer(batch, "donor"), stitch(expected, batch, "donor"))
    assert not pose_transfer.generator.training


def test_one_person_by_files_and_by_arrays(pose_transfer, people, people_folder):
    paths = sorted(people_folder.glob("*.png"))[:2]
    loaded = [
        load_person(
            path, people_folder / "parsing" / path.name, people_folder / "mask" / path.name, size=(64, 32)
        )
        for path in paths
    ]
    arrays = [load_person(people.images[i], people.parsing[i], people.mask[i], size=(64, 32)) for i in (0, 1)]
    expected = pose_transfer(people.pair_batch(np.array([0]), np.array([1])))[0].permute(1, 2, 0).numpy()
    for source, donor in (loaded, arrays):
        assert np.array_equal(pose_transfer.transfer(source, donor), expected)


def test_any_input_size_goes_in_and_comes_back(pose_transfer):
    rng = np.random.default_rng(0)
    people = []
    for size in ((100, 77), (64, 32)):
        labels = np.zeros(size, np.uint8)
        labels[size[0] // 4 : size[0] // 2] = 5
        people.append(load_person(rng.integers(0, 256, (*size, 3), dtype=np.uint8), labels, size=(64, 32)))
    source, donor = people
    assert pose_transfer.transfer(source, donor).shape == (64, 32, 3)
    assert pose_transfer.transfer(source, donor, original_size=True).shape == (100, 77, 3)
    assert np.array_equal(source.mask, source.parsing == 5)
    larger = PoseTransfer(pose_transfer.generator, GeneratorConfig(generator="tiny", size=(128, 64)))
    with pytest.raises(UserError, match="is 64x32, the model 128x64"):
        larger.transfer(source, donor)


def test_key_points_follow_the_image():
    points = np.zeros((18, 2), np.float32)
    points[0] = (63, 127)  # the center of the last pixel of 128x64
    person = load_person(
        np.zeros((128, 64, 3), np.uint8), np.zeros((128, 64), np.uint8), keypoints=points, size=(64, 32)
    )
    np.testing.assert_allclose(person.keypoints[0], (31.25, 63.25))
    assert person.mask.all(), "no label and no mask: the whole image"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parsing": None}, r"a\.png: has no parsing map.*give a LIP-20 label map"),
        (
            {"parsing": np.zeros((64, 31), np.uint8)},
            r"parsing of a\.png: is uint8 \(64, 31\), uint8 \(64, 32\)",
        ),
        ({"parsing": np.full((64, 32), 20, np.uint8)}, "label 20 is not in lip20"),
        ({"mask": np.ones((9, 9), bool)}, r"mask of a\.png"),
        ({"image": np.zeros((64, 32), np.uint8)}, r"a\.png: is uint8 \(64, 32\)"),
        ({"image": np.zeros((64, 32, 3), np.float32)}, "is float32"),
        ({"keypoints": np.zeros((17, 2), np.float32)}, r"keypoints are \(17, 2\)"),
    ],
)
def test_what_is_missing_or_wrong_is_named(wrong, message):
    good = {"image": np.zeros((64, 32, 3), np.uint8), "parsing": np.zeros((64, 32), np.uint8)}
    with pytest.raises(UserError, match=message):
        load_person(**(good | wrong), size=(64, 32), name="a.png")


def test_a_run_gives_its_averaged_generator(tmp_path, tiny_san, people):
    settings = {"generator": "san", "generator_args": TINY_SAN, "data": {"folder": "/data/market"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    meta = {"config_hash": stored_hash(tmp_path / "config.json"), "size": [64, 32], "identity_hash": "abc"}
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        PoseTransfer.from_pretrained(tmp_path)
    trained = {
        "ema": tiny_san.generator.state_dict(),
        "generator": build_generator("san", **TINY_SAN).state_dict(),
    }
    checkpoint.save(tmp_path / "checkpoints", 7, trained, meta)
    found = PoseTransfer.from_pretrained(tmp_path, tiny_san.runtime)
    batch = people.pair_batch(np.arange(3), np.arange(3, 6))
    assert torch.equal(found(batch), tiny_san(batch))
    assert found.weights_hash == tiny_san.weights_hash
    assert (found.size, found.config.step, found.config.identity_hash) == ((64, 32), 7, "abc")
    assert found.config.trained_on == "market"


def test_a_saved_folder_gives_the_same_generator_without_the_network(tmp_path, tiny_san, people, monkeypatch):
    tiny_san.save_pretrained(tmp_path / "full", trained_on="drawn people")
    tiny_san.save_pretrained(tmp_path / "half", half=True)

    def refuse(*arguments, **keywords):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    full, half = (
        PoseTransfer.from_pretrained(tmp_path / name, tiny_san.runtime) for name in ("full", "half")
    )
    batch = people.pair_batch(np.arange(3), np.arange(3, 6))
    assert torch.equal(full(batch), tiny_san(batch))
    assert full.weights_hash == tiny_san.weights_hash
    assert full.config.trained_on == "drawn people"
    assert (half(batch).int() - tiny_san(batch).int()).abs().max() <= 2
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    with pytest.raises(UserError, match="the hub does not give it"):
        PoseTransfer.from_pretrained("hub:nobody/nothing")


def test_a_saved_folder_is_readable_without_our_code(tmp_path, tiny_san):
    tiny_san.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    own = tiny_san.generator.state_dict()
    assert tensors.keys() == own.keys()
    assert all(np.array_equal(tensors[k], own[k].numpy()) for k in own)
    assert json.loads((tmp_path / "config.json").read_text())["generator_args"] == TINY_SAN
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: reposer\n")
    assert "Trained on: noise" in card


def test_damaged_and_foreign_folders_are_refused(tmp_path, tiny_san):
    with pytest.raises(UserError, match=r"nowhere/at/all: no such folder"):
        PoseTransfer.from_pretrained("nowhere/at/all")
    tiny_san.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def rewrite(**changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))

    rewrite(generator_args=TINY_SAN | {"ngf": 10**6})
    with pytest.raises(UserError, match="ngf is larger than any network here can use"):
        PoseTransfer.from_pretrained(tmp_path)
    rewrite(size=[10**5, 10**5])
    with pytest.raises(UserError, match="1 to 1,024 pixels"):
        PoseTransfer.from_pretrained(tmp_path)
    rewrite(generator_args=TINY_SAN | {"ngf": 8000})  # would be many gigabytes if it were allocated
    with pytest.raises(UserError, match="tensors do not belong to generator san"):
        PoseTransfer.from_pretrained(tmp_path)
    rewrite(generator_args=TINY_SAN | {"nfg": 4})
    with pytest.raises(UserError, match="argument nfg: unknown: did you mean ngf"):
        PoseTransfer.from_pretrained(tmp_path)
    rewrite()
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: differs from the sha256"):
        PoseTransfer.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        PoseTransfer.from_pretrained(tmp_path)


def test_broken_weights_are_not_saved(tmp_path, tiny_san):
    with torch.no_grad():
        next(tiny_san.generator.parameters())[0, 0, 0, 0] = 1e6
    tiny_san.save_pretrained(tmp_path / "full")
    with pytest.raises(UserError, match=r"as float16: .* holds NaN or infinity"):
        tiny_san.save_pretrained(tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()
