"""A new part is one file and one line in one plain dict: a toy of each, in use by what its command calls."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from reposer.annotation import keypoints, parser, person_mask
from reposer.cli.main import app
from reposer.data.layouts import readers
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_market1501
from reposer.errors import UserError, with_plugins
from reposer.evaluation import reid_comparison
from reposer.generation import donors, filters
from reposer.generation.pose_transfer import PoseTransfer
from reposer.losses import image_gan
from reposer.metrics import protocols
from reposer.models import embedding, generators
from reposer.reid.features import write_features
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.storage.manifest import read_rows
from reposer.structures import FeatureSet
from reposer.studies import study
from reposer.studies.plan import StudyPlan
from reposer.trained.networks import EMBEDDING, GeneratorConfig, open_network

SIZE = (64, 32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A few rendered people, one of them held out."""
    root = tmp_path_factory.mktemp("people")
    counts = {"identities": 5, "test_identities": 1, "images_per_identity": 3}
    write_rendered_dataset(root / "raw", **counts, size=SIZE, samples=1, workers=1)
    prepare_market1501(root / "raw", root / "prepared", size=SIZE, holdout=1)
    return root / "prepared"


@pytest.fixture
def toy(tmp_path):
    """A module of one file, as somebody else would write it."""

    def write(text: str):
        path = tmp_path / "toy.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("toy", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return write


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def write_crops(folder: Path) -> Path:
    """Four people of two pictures each, called PERSON-NUMBER.png."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for person in range(1, 5):
        for number in range(2):
            picture = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{person}-{number}.png")
    return folder


LAYOUT = """
from pathlib import Path
from reposer.data.layouts.labeled_files import labeled

def list_toy(root: Path, first: int = 1):
    '''Pictures PERSON-NUMBER.png in one folder.'''
    names = sorted(path.name for path in root.glob("*.png"))
    return [labeled(name, int(name[0]) + first - 1, 1 + int(name[2]), "train") for name in names], []
"""


def test_a_data_set_layout(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(readers.LAYOUTS, "toy", toy(LAYOUT).list_toy)
    crops, out = write_crops(tmp_path / "crops"), tmp_path / "prepared"
    invoke("prepare", "toy", crops, "--out", out, "--size", "64x32", "--pairs", "parsing", "--first", 7)
    people = PackedPeople.open(out / "packed")
    assert sorted(set(people.pids.tolist())) == [7, 8, 9, 10]
    assert "PERSON-NUMBER" in invoke("prepare", "toy", "--help")


GENERATOR = """
from torch import nn
from reposer.images import to_float

class Copy(nn.Module):
    needs = ("source_image",)

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(__import__("torch").tensor(scale))

    def forward(self, batch):
        return to_float(batch.source_image) * self.scale
"""


@pytest.fixture
def copier(toy, tmp_path, monkeypatch) -> Path:
    """A generator that shows the source again, exported."""
    monkeypatch.setitem(generators.GENERATORS, "toy", toy(GENERATOR).Copy)
    config = GeneratorConfig(generator="toy", size=SIZE)
    model = PoseTransfer(generators.build_generator("toy"), config, setup("cpu", threads=1))
    model.save_pretrained(tmp_path / "toy_export")
    return tmp_path / "toy_export"


def augmented(model: Path, prepared: Path, out: Path, *options: str) -> list[dict]:
    """The rows of a set that `reposer augment` wrote, `reposer verify` finding nothing wrong with it."""
    plain = ("--real", "none", "--device", "cpu", "--threads", 1)
    invoke("augment", model, "--data", prepared, "--out", out, *plain, *options)
    assert "nothing is wrong" in invoke("verify", out)
    return read_rows(out).to_pylist()


def test_a_generator_and_a_donor_policy(copier, prepared, tmp_path, monkeypatch, toy):
    policy = toy(
        "import numpy as np\ndef next_one(pool, copies):\n    return np.stack([np.roll("
        "np.arange(len(pool.rows)), -c - 1) for c in range(copies)], 1)\n"
    )
    monkeypatch.setitem(donors.POLICIES, "toy", policy.next_one)
    rows = augmented(copier, prepared, tmp_path / "set", "--donors", "toy")
    assert [row["donor"] for row in rows] == [row["source"] for row in rows[1:] + rows[:1]]


FILTER = """
import numpy as np
from reposer.generation.filters import Filter

class Brightness:
    def __init__(self, given, choice):
        self.given, self.channels = given, {"mean": [0, 1, 2], "red": [0]}[choice]
        self.description = {}

    def real(self):
        people, rows = self.given.people, self.given.rows
        return people.images[rows][..., self.channels].mean((1, 2, 3))

    def score(self, pictures, batch, source_rows):
        return pictures.numpy()[:, self.channels].mean((1, 2, 3))

BRIGHT = Filter("brightness", Brightness, choices=("mean", "red"))
"""


def test_a_picture_filter(copier, prepared, tmp_path, monkeypatch, toy):
    monkeypatch.setitem(filters.FILTERS, "bright", toy(FILTER).BRIGHT)
    people = PackedPeople.open(prepared / "packed")
    images = people.images[people.splits == "train"].astype(np.float64)
    real = {"mean": images.mean((1, 2, 3)), "red": images[..., 0].mean((1, 2))}
    chosen = ("--filter", "bright", "--filter", "bright_quantile=0.5", "--filter", "sharpness", "--png")
    rows = augmented(copier, prepared, tmp_path / "set", *chosen)
    scores = np.array([row["brightness"] for row in rows])
    np.testing.assert_allclose(np.sort(scores), np.sort(real["mean"]))  # the pictures are the sources
    dark = ["bright" in (row["dropped_because"] or "") for row in rows]
    assert dark == (scores < np.median(real["mean"])).tolist()
    invoke("forget", tmp_path / "set", "--pid", rows[0]["pid"])
    assert "nothing is wrong" in invoke("verify", tmp_path / "set")
    assert {"brightness", "sharpness"} < read_rows(tmp_path / "set").to_pylist()[0].keys()
    arms = ["red=x2_any filter.bright=red filter.identity=false"]
    study_of_it = study.configure("augmentation", prepared, "shipped", ["real"], variants=arms)
    inputs = StudyPlan(study_of_it.changed(generator=str(copier)), tmp_path).cells[1].augmented.inputs
    assert inputs["filter"]["bright"] == "red"
    with pytest.raises(UserError, match="bright blue: unknown: did you mean red"):
        filters.filter_options(["bright=blue"])
    assert augmented(copier, prepared, tmp_path / "other")[0].keys() == rows[0].keys() - {"brightness"}


LOSS = """
def red(made):
    return (made.image[:, 0] - made.batch.target_image[:, 0]).abs().mean()
"""


def test_a_loss_term(toy, prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(generators.GENERATORS, "toy", toy(GENERATOR).Copy)
    monkeypatch.setitem(image_gan.TERMS, "red", toy(LOSS).red)
    values = ("generator=toy", "generator_args={}", "weights.red=3", "weights.l1=0", "weights.adversarial=0")
    settings = [word for value in (*values, "output.log_every=1") for word in ("--set", value)]
    where = ("--data", prepared, "--out", tmp_path / "run", "--device", "cpu", "--max-minutes", 0)
    invoke("train", "san_demo", *where, *settings)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    found = [line for line in logged if "generator/red" in line]
    assert found
    assert all(line["generator/loss"] == pytest.approx(3 * line["generator/red"]) for line in found)


METRIC = """
from reposer.metrics.protocols import ImageMetric

def load(files, device):
    def measure(batch):
        change = batch.generated.double() - batch.pair.source_image.double()
        return change.abs().flatten(1).mean(1).numpy()
    return measure

CHANGE = ImageMetric("higher", "mean change of the source", load, ("source_image",))
"""


def test_an_image_metric_with_an_input_of_its_own(copier, prepared, tmp_path, monkeypatch, toy):
    monkeypatch.setitem(protocols.METRICS, "change", toy(METRIC).CHANGE)
    where = ("--data", prepared, "--out", tmp_path / "quality")
    text = invoke("evaluate", copier, *where, "--metrics", "change,l1", "--limit", 4)
    assert "change" in text
    assert "not measured" not in text


BACKBONE = """
from torch import nn

class Flat(nn.Module):
    channels = 4

    def __init__(self, stride: int = 4):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, stride, stride)

    def forward(self, image):
        return self.layer(image)

    def parts(self):
        return [self.layer]
"""


def test_a_reid_backbone(toy, prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(embedding.EMBEDDINGS, "flat", toy(BACKBONE).Flat)
    network = 'embedding={"backbone": "flat", "size": [64, 32]}'
    settings = [network, "augment.crop=[64,32]", "batch_size=8"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    where = ("--data", prepared, "--out", tmp_path / "run", "--device", "cpu", "--max-minutes", 0)
    invoke("train", "reid_demo", *where, *chosen)
    assert "model.safetensors" in invoke("reid", "export", tmp_path / "run", "--out", tmp_path / "export")
    network = open_network(EMBEDDING, tmp_path / "export").network
    assert network(torch.zeros(2, 3, *SIZE, dtype=torch.uint8)).shape == (2, 4)


LEARNER = """
import numpy as np
from reposer.reid.quadratic import QuadraticMetric
from reposer.reid.metric_learners import KISSME

class Toy(KISSME):
    pass
"""


def test_a_metric_learner(toy, tmp_path, monkeypatch):
    module = toy(LEARNER)
    monkeypatch.setitem(reid_comparison.LEARNERS, "toy", lambda seed: module.Toy())
    rng = np.random.default_rng(0)

    def features(first: int) -> FeatureSet:
        pids = np.repeat(np.arange(first, first + 12), 4)
        values = pids[:, None] * np.linspace(1, 2, 6) + rng.normal(0, 0.3, (len(pids), 6))
        names = tuple(f"{number}.jpg" for number in range(len(pids)))
        return FeatureSet(values.astype(np.float32), pids, np.tile(np.arange(1, 5), 12), names)

    test = features(100)
    write_features(tmp_path / "features.npz", {"query": test, "gallery": test, "train": features(1)})
    assert "| toy |" in invoke("reid", "score", tmp_path / "features.npz", "--methods", "toy")


ANNOTATORS = """
import numpy as np
import torch
from reposer.annotation.interfaces import AnnotatorInfo, Masks, Poses

class Middle:
    info = AnnotatorInfo("toy")
    needs_keypoints = False

    def __call__(self, images, keypoints=None):
        maps = torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)
        maps[:, 8:24, 4:12] = 5
        return maps

class All:
    info = AnnotatorInfo("toy")

    def __call__(self, images, parsing=None):
        count, _, height, width = images.shape
        return Masks(np.ones((count, height, width), bool), ("detector",) * count, np.ones(count, np.int64))

class Line:
    info = AnnotatorInfo("toy")

    def __call__(self, images):
        points = np.stack([np.stack([np.arange(18) % 7 + 4, np.arange(18) + 5], 1)] * len(images))
        count = len(images)
        return Poses(points.astype(np.float32), np.ones((count, 18), np.float32), np.ones(count, np.int64))
"""


def test_a_parser_a_masker_and_a_keypoint_detector(toy, tmp_path, monkeypatch):
    module = toy(ANNOTATORS)
    monkeypatch.setitem(parser.PARSERS, "toy", lambda weights, sides, **how: module.Middle())
    monkeypatch.setitem(person_mask.MASKERS, "toy", lambda weights, **how: module.All())
    monkeypatch.setitem(keypoints.KEYPOINT_DETECTORS, "toy", lambda weights, **how: module.Line())
    crops = write_crops(tmp_path / "crops")
    chosen = ("--parser", "toy", "--mask", "toy", "--keypoints", "toy")
    assert "8 " in invoke("annotate", crops, "--out", tmp_path / "out", *chosen)
    assert len(list((tmp_path / "out" / "parsing").glob("*.png"))) == 8
    assert len(list((tmp_path / "out" / "mask").glob("*.png"))) == 8
    assert (tmp_path / "out" / "keypoints.csv").read_text().count("\n") == 9


def test_a_study_arm(toy, prepared, monkeypatch):
    arm = toy("from reposer.studies.config import Arm\nARM = Arm(name='x3_toy', factor=3)\n").ARM
    monkeypatch.setitem(study.EXTRA_ARMS, "x3_toy", arm)
    chosen = study.configure("augmentation", prepared, "shipped", ["real", "x3_toy"])
    assert [one.name for one in chosen.arms] == ["real", "x3_toy"]


# ---- parts that other installed packages bring, by entry points

PLUGIN = """
from torch import nn
from reposer.structures import PairBatch

class Toy(nn.Module):
    needs = ("source_image",)

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width

def open_toy(weights, **how):
    return f"a parser of {weights}"
"""
POINTS = """[reposer.generators]
toy = toy_plugin:Toy
san = toy_plugin:Toy
broken = toy_plugin:Missing

[reposer.backbones]
toy = toy_plugin:Toy

[reposer.parsers]
toy = toy_plugin:open_toy
"""


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package of somebody else's, as pip leaves it."""
    (tmp_path / "toy_plugin.py").write_text(PLUGIN)
    info = tmp_path / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_installed_package_adds_parts_and_replaces_none(installed, caplog):
    ours = {"san": generators.GENERATORS["san"]}
    whole = with_plugins("reposer.generators", ours)
    assert whole.keys() == {"san", "toy"}
    assert whole["san"] is ours["san"]
    assert whole["toy"](width=3).width == 3
    said = [record.getMessage() for record in caplog.records]
    assert any("san of toy-plugin" in line and "this name already" in line for line in said)
    assert any("broken of toy-plugin cannot be used: AttributeError" in line for line in said)
    assert with_plugins("reposer.nothing", ours) == ours


@pytest.mark.slow
def test_its_parts_are_used_by_their_names(installed):
    code = (
        "from reposer.models.generators import build_generator\n"
        "from reposer.models.embedding import EMBEDDINGS\n"
        "from reposer.annotation.parser import PARSERS\n"
        "assert build_generator('toy', width=5).width == 5\n"
        "assert EMBEDDINGS['toy']().width == 8\n"
        "assert PARSERS['toy']('w.pth') == 'a parser of w.pth'\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
