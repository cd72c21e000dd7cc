"""What comes by itself, on real people: MediaPipe's networks and the rule, against the development maps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.annotation.annotators import AnnotatorChoice
from reposer.annotation.mediapipe import LiteNetwork, squared
from reposer.errors import UserError
from reposer.images import decode
from reposer.weights.files import licensed_weights

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "market1501"
CONVERTED = ROOT.parent / "shared" / "weights"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("annotate_auto", ROOT / "benchmarks" / "annotate_auto.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """The files are on this machine, or its package index has them."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    try:
        licensed_weights("selfie")
    except UserError as error:
        pytest.skip(f"no networks: {error}")


@pytest.mark.real
@pytest.mark.skipif(not DATA.exists(), reason="no real data here")
def test_defaults_find_joints_masks_and_groups(benchmark, tmp_path):
    names = benchmark.people_of(DATA, 100, every=9)
    figures = benchmark.run(DATA, tmp_path, names, AnnotatorChoice())
    print(figures)
    assert figures["pck_of_both"] > 0.8
    assert figures["missing_precision"] > 0.7
    assert figures["mask_iou"] > 0.85
    assert figures["miou_8"] > 0.46


@pytest.mark.real
@pytest.mark.skipif(not DATA.exists(), reason="no real data here")
def test_the_rule_alone(benchmark, tmp_path):
    names = benchmark.people_of(DATA, 100, every=9)
    assert benchmark.run(DATA, tmp_path, names, AnnotatorChoice("rule"))["miou_8"] > 0.46


@pytest.mark.real
@pytest.mark.skipif(not (CONVERTED / "blazepose_full.onnx").exists(), reason="no converted networks here")
def test_litert_runs_the_originals_as_onnxruntime_runs_their_conversion():
    ort = pytest.importorskip("onnxruntime")
    paths = sorted((DATA / "bounding_box_train").glob("*.jpg"))[-1000::250]
    images = torch.from_numpy(np.stack([decode(path) for path in paths])).permute(0, 3, 1, 2)
    view = squared(images, 160, 256)
    raw, flag = LiteNetwork(licensed_weights("blazepose_full"), threads=2)(view, (0, 1))
    session = ort.InferenceSession(CONVERTED / "blazepose_full.onnx", providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: view})
    assert np.abs(raw.reshape(4, 39, 5)[:, :33, :2] - theirs[0].reshape(4, 39, 5)[:, :33, :2]).max() < 0.5
    assert np.abs(flag - theirs[1]).max() < 0.01
    alone, _ = LiteNetwork(licensed_weights("blazepose_full"), threads=1)(view[:1], (0, 1))
    assert np.array_equal(alone, raw[:1])  # neither the batch nor the threads count
