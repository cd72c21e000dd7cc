"""Eight rendered people, five of them to train on, prepared once for the tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from reposer.data.preparing.prepare import prepare_market1501
from reposer.rendered.dataset import write_rendered_dataset


@pytest.fixture(scope="session")
def small_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ``reposer prepare``."""
    folder = tmp_path_factory.mktemp("study")
    write_rendered_dataset(folder / "people", identities=5, test_identities=3, images_per_identity=4, seed=5)
    prepare_market1501(folder / "people", folder / "prepared")
    return folder / "prepared"
