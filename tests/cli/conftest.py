"""A few rendered people, and a tiny SAN that knows nothing."""

from __future__ import annotations

import pytest

from reposer.data.preparing.prepare import prepare_market1501
from reposer.generation.pose_transfer import PoseTransfer
from reposer.models.generators import build_generator
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.trained.networks import GeneratorConfig

SIZE = (64, 32)
SAN = {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "n_convs": 1, "deep_channels": [8]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_rendered_dataset(
        root / "raw",
        identities=4,
        test_identities=2,
        images_per_identity=3,
        size=SIZE,
        samples=1,
        workers=1,
    )
    prepare_market1501(root / "raw", root / "prepared", size=SIZE, holdout=1)
    return root / "prepared"


@pytest.fixture(scope="module")
def san(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "san"
    config = GeneratorConfig(generator="san", generator_args=SAN, size=SIZE)
    PoseTransfer(build_generator("san", **SAN), config, setup("cpu", "float32")).save_pretrained(folder)
    return folder
