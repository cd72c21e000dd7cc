"""What looks at sets, packs and prepares them does without torch, which alone takes 500 MB."""

from __future__ import annotations

import subprocess
import sys

import augment_runner as runner
import pytest

CODE = """
import sys
from reposer.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(f"torch {'torch' in sys.modules}")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drawn people, and a set made from them."""
    folder = tmp_path_factory.mktemp("data")
    runner.write(runner.prepare_drawn(folder), folder / "set", 2, shard=8)
    return folder


def test_sets_are_verified_packed_prepared_and_shrunk_without_torch(folders, tmp_path):
    whole, packed, person = str(folders / "set"), str(tmp_path / "packed"), "2"
    for command in (
        ["verify", whole],
        ["export-set", whole, "--layout", "webdataset", "--out", packed],
        ["unpack-set", packed, "--out", str(tmp_path / "files")],
        ["prepare", "packed", packed, "--out", str(tmp_path / "prepared")],
        ["verify", str(tmp_path / "prepared")],
        ["forget", whole, "--pid", person],
    ):
        run = [sys.executable, "-c", CODE, *command]
        done = subprocess.run(run, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.endswith("torch False\n"), command
