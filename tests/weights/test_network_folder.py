"""An embedding's folder: the same features back, and every damage refused."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.weights.network_folder import CONFIG, WEIGHTS

ARGUMENTS = {"backbone": "small", "backbone_args": {"widths": [8, 12, 16]}, "size": [32, 16], "stripes": 2}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    embedding = Embedding(**ARGUMENTS)
    embedding.info = embedding.info.changed(trained_on="x", step=7)
    embedding.save_pretrained(tmp_path / "e")
    return tmp_path / "e"


def test_the_same_embedding_comes_back(folder):
    torch.manual_seed(0)
    embedding = Embedding(**ARGUMENTS).eval()
    loaded = Embedding.from_pretrained(folder)
    assert not loaded.training
    assert (loaded.info.step, loaded.info.trained_on) == (7, "x")
    images = torch.randint(0, 256, (2, 3, 40, 20), dtype=torch.uint8)
    assert torch.equal(loaded(images), embedding(images))
    assert "32x16" in (folder / "README.md").read_text()


def test_damage_is_refused(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="differs from the sha256"):
        Embedding.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Embedding.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stripes": 3}, "neck.bias is"),
        ({"backbone_args": {"widths": [8, 12, 20_000]}}, "is "),  # 29 GB that are never asked for
        ({"backbone_args": {"widths": [8, 12, 10**9]}}, "widths is larger"),
        ({"giraffe": 1}, "giraffe"),
        ({"backbone": "resnet5000"}, "resnet5000"),
        ({"size": [32]}, "size=.*32.*: are no whole numbers"),
        ({"size": []}, "no whole numbers"),
        ({"size": [32, 16, 8]}, "no whole numbers"),
        ({"size": [32.5, 16]}, "no whole numbers"),
        ({"size": ["32", "16"]}, "no whole numbers"),
        ({"size": 32}, "no such embedding can be built"),
        ({"size": None}, "no such embedding can be built"),
        ({"size": {"a": 1}}, "no whole numbers"),
        ({"stripes": 2.5}, "no whole numbers"),
        ({"stripes": [2]}, "no whole numbers"),
        ({"window": "1"}, "no whole numbers"),
        ({"frozen": None}, "no whole numbers"),
        ({"backbone_args": {"widths": []}}, WEIGHTS),
        ({"backbone_args": {"widths": 3}}, WEIGHTS),
        ({"backbone_args": [1]}, WEIGHTS),
        ({"backbone": ["small"]}, WEIGHTS),
        ({"neck": {"a": 1}}, WEIGHTS),
    ],
)
def test_weights_of_another_network_are_refused(folder, change, message):
    config = json.loads((folder / CONFIG).read_text())
    config["embedding"] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        Embedding.from_pretrained(folder)


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    embedding = Embedding(**ARGUMENTS)
    with torch.no_grad():
        embedding.neck.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"neck\.weight"):
        embedding.save_pretrained(tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_every_constructor_argument_is_saved():
    """One that were not would come back as its default, in silence."""
    arguments = inspect.signature(Embedding).parameters
    assert Embedding(**ARGUMENTS).info.embedding.keys() == arguments.keys()
    embedding = Embedding(
        "small", size=(32, 16), neck="none", window=2, mirror=True, freeze_norm=True, frozen=1
    )
    again = Embedding(**json.loads(json.dumps(embedding.info.embedding)))
    assert again.info == embedding.info


def test_a_folder_that_is_not_here_is_named_and_no_hub_asked():
    with pytest.raises(UserError, match="some/other/place: no such folder: check the path"):
        Embedding.from_pretrained("some/other/place")


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_an_export_replaces_nothing_that_an_export_did_not_write(name, tmp_path):
    """A run's config.json, a repository's README.md, another program's weights; a second export is fine."""
    embedding = Embedding(**ARGUMENTS)
    (tmp_path / name).write_text('{"preset": "reid_small", "seed": 1}' if name == CONFIG else "# mine")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UserError, match=f"{name} is there already"):
        embedding.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before
    embedding.save_pretrained(tmp_path / "own")
    embedding.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "README.md").write_text("# mine")
    with pytest.raises(UserError, match="is there already"):
        embedding.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == "# mine"
