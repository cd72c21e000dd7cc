"""Sixty hostile model files: each refused by a rule, no code run, no other file read, no memory asked for."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_models import FOLDERS, MARKER, ONNX, STATES, _good, built
from onnx import helper, numpy_helper

from reposer.annotation import onnx_session
from reposer.annotation.interfaces import load_detector
from reposer.annotation.networks import SEGMENTERS, OnnxNetwork, load_transformers
from reposer.annotation.segmentation_model import SegmentationModel
from reposer.errors import UserError

DESCRIPTION = SegmentationModel(size=(8, 8), labels="lip20")
_watched: dict[str, Path | None] = {"folder": None}
_seen: list[str] = []


def _audit(event: str, arguments: tuple, watched: dict[str, Path | None] = _watched) -> None:
    """Notes code that a file starts, and files that are opened beside the one given.

    It is still asked when Python ends and this module's names are gone.
    """
    if watched["folder"] is None:
        return
    if event == "subprocess.Popen" and "reposer.annotation.onnx_session" in arguments[1]:
        return  # the process of our own that the model is kept in
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
        _seen.append(f"{event} {arguments}")
    elif event == "open" and str(arguments[0]) in ("/etc/passwd", str(watched["folder"] / "data.bin")):
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


def outer_products(rounds: int, multiplied: int = 0) -> bytes:
    """Of an image (1, 3, 8, 8): every number with every number, again and again; then matrices multiplied."""
    nodes, last = [], "x"
    for n in range(rounds):
        nodes += [
            helper.make_node("Reshape", [last, "column"], [f"c{n}"]),
            helper.make_node("Reshape", [last, "row"], [f"r{n}"]),
            helper.make_node("MatMul", [f"c{n}", f"r{n}"], [f"p{n}"]),
        ]
        last = f"p{n}"
    for n in range(multiplied):
        nodes.append(helper.make_node("MatMul", [last, last], [f"m{n}"]))
        last = f"m{n}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    shapes = [
        numpy_helper.from_array(np.array(s, np.int64), n) for n, s in (("column", [-1, 1]), ("row", [1, -1]))
    ]
    return built(nodes, shapes)(Path())


def test_a_model_that_takes_too_much_memory_is_ended(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(outer_products(2))  # 36,864 x 36,864 numbers: 5.4 GB from 192
    network = OnnxNetwork(path, DESCRIPTION)
    with pytest.raises(UserError, match="wants more memory than a call may take"):
        network(torch.rand(1, 3, 8, 8))


@pytest.mark.slow
def test_a_model_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(outer_products(1, 8_000))
    network = OnnxNetwork(path, DESCRIPTION)
    monkeypatch.setattr(onnx_session, "_SECONDS", 0.0)
    monkeypatch.setattr(onnx_session, "_SECONDS_PER_PIXEL", 0.0)
    with pytest.raises(UserError, match="took more than"):
        network(torch.rand(1, 3, 8, 8))


def test_the_process_of_a_model_gives_what_the_model_gives_and_ends_with_it(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(outer_products(1))
    network = OnnxNetwork(path, DESCRIPTION)
    x = torch.rand(1, 3, 8, 8)
    expected = torch.outer(x.flatten(), x.flatten())
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x + 1), torch.outer((x + 1).flatten(), (x + 1).flatten()))
    process = network._session._process
    assert process.poll() is None
    del network
    assert process.wait(timeout=10) is not None


def test_code_in_the_present_folder_is_not_imported(tmp_path, monkeypatch):
    for name in ("numpy", "onnxruntime", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / MARKER)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(outer_products(1))
    assert OnnxNetwork(path, DESCRIPTION)(torch.rand(1, 3, 8, 8)).shape == (192, 192)
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("kind", ["folder", "link-loop", "missing"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "link-loop":
        path.symlink_to(path)
    with pytest.raises(UserError, match=r"folder|link|no such file"):
        OnnxNetwork(path, DESCRIPTION)


# a TorchScript file, as others still have them
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
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
