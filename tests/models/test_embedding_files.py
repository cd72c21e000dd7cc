"""An embedding's folder: the same features back, and every damage refused."""

from __future__ import annotations

import json

import pytest
import torch

from reposer.errors import UserError
from reposer.models.embedding import Embedding
from reposer.models.embedding_files import CONFIG, WEIGHTS, EmbeddingInfo, load_embedding, save_embedding

ARGUMENTS = {"backbone": "small", "backbone_args": {"widths": [8, 12, 16]}, "size": [32, 16], "stripes": 2}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    embedding = Embedding(**ARGUMENTS)
    save_embedding(tmp_path / "e", embedding, EmbeddingInfo(embedding=ARGUMENTS, trained_on="x", step=7))
    return tmp_path / "e"


def test_the_same_embedding_comes_back(folder):
    torch.manual_seed(0)
    embedding = Embedding(**ARGUMENTS).eval()
    loaded, info = load_embedding(folder)
    assert not loaded.training
    assert (info.step, info.trained_on) == (7, "x")
    images = torch.randint(0, 256, (2, 3, 40, 20), dtype=torch.uint8)
    assert torch.equal(loaded(images), embedding(images))
    assert "32x16" in (folder / "README.md").read_text()


def test_damage_is_refused(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="differs from the sha256"):
        load_embedding(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_embedding(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stripes": 3}, "neck.bias is"),
        ({"backbone_args": {"widths": [8, 12, 20_000]}}, "is "),  # 29 GB that are never asked for
        ({"backbone_args": {"widths": [8, 12, 10**9]}}, "no such embedding"),
        ({"giraffe": 1}, "giraffe"),
        ({"backbone": "resnet5000"}, "resnet5000"),
    ],
)
def test_weights_of_another_network_are_refused(folder, change, message):
    config = json.loads((folder / CONFIG).read_text())
    config["embedding"] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_embedding(folder)


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    embedding = Embedding(**ARGUMENTS)
    with torch.no_grad():
        embedding.neck.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"neck\.weight"):
        save_embedding(tmp_path / "e", embedding, EmbeddingInfo(embedding=ARGUMENTS))
    assert not (tmp_path / "e").exists()
