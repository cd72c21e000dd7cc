"""Sixty hostile model files: each refused by a rule, no code run, no other file read, no memory asked for."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from reposer.annotation.detectors import load_detector
from reposer.annotation.networks import SEGMENTERS, OnnxNetwork, load_transformers
from reposer.annotation.segmentation_model import SegmentationModel
from reposer.errors import UserError

from .hostile_models import FOLDERS, MARKER, ONNX, STATES, _good

DESCRIPTION = SegmentationModel(size=(8, 8), labels="lip20")
_watched: dict[str, Path | None] = {"folder": None}
_seen: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    """Notes code that a file starts, and files that are opened beside the one given."""
    if _watched["folder"] is None:
        return
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
        _seen.append(f"{event} {arguments}")
    elif event == "open" and str(arguments[0]) in ("/etc/passwd", str(_watched["folder"] / "data.bin")):
        _seen.append(f"open {arguments[0]}")


sys.addaudithook(_audit)


@pytest.fixture
def watched(tmp_path):
    """The folder of the hostile file; afterwards nothing may have happened."""
    _seen.clear()
    _watched["folder"] = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tmp_path
    _watched["folder"] = None
    assert not _seen
    assert not (tmp_path / MARKER).exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; R-CNNs are built too


def test_there_are_sixty():
    assert len(ONNX) + len(STATES) + len(FOLDERS) >= 60


@pytest.mark.parametrize("name", ONNX)
def test_onnx_files(name, watched):
    make, told = ONNX[name]
    path = watched / "model.onnx"
    path.write_bytes(make(watched))
    _watched["folder"] = watched
    with pytest.raises(UserError, match=told):
        OnnxNetwork(path, DESCRIPTION)


def test_the_harmless_one_is_accepted(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(_good(tmp_path))
    OnnxNetwork(path, DESCRIPTION)


@pytest.mark.parametrize("kind", ["folder", "link-loop", "missing"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "link-loop":
        path.symlink_to(path)
    with pytest.raises(UserError, match=r"folder|link|no such file"):
        OnnxNetwork(path, DESCRIPTION)


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning"
)  # a TorchScript file, as others still have them
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", STATES)
def test_state_dicts(name, watched):
    make, suffix, told = STATES[name]
    path = watched / f"weights{suffix}"
    path.write_bytes(make(watched))
    _watched["folder"] = watched
    with pytest.raises(UserError, match=told):
        load_detector("maskrcnn", path)


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_transformers(name, watched):
    pytest.importorskip("transformers")
    make, told = FOLDERS[name]
    make(watched)
    _watched["folder"] = watched
    with pytest.raises(UserError, match=told):
        load_transformers(watched, SEGMENTERS)
