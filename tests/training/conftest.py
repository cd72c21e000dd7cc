"""A tiny prepared folder for the tests of trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import write_prepared


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared"))
