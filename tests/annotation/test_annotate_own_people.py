"""A folder of photos of people, from raw files to Re-ID: annotate, verify, prepare, train, augment, train."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reposer.cli.main import app
from reposer.data.packed import PackedPeople
from reposer.rendered.dataset import write_rendered_dataset

SHORT = ("--set", "schedule.epochs_const=0.0005", "--set", "schedule.epochs_decay=0", "--threads", "1")
SHORT += ("--set", "output.sample_pairs=1", "--set", "output.validate_pairs=1", "--set", "batch_size=2")


def done(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "people"
    write_rendered_dataset(root, identities=4, test_identities=1, images_per_identity=4, workers=1)
    return root


def raw(rendered: Path, root: Path, source: str) -> tuple[object, ...]:
    """The training people without any annotation; returns how `prepare folder` learns who they are."""
    lines = ["path,pid,camid"]
    for number, file in enumerate(sorted((rendered / "bounding_box_train").iterdir())):
        person, camera = "abcd"[int(file.name[:4]) - 1], number % 2 + 1
        name = {
            "sub-folder": f"{person}/{number:02d}_c{camera}.jpg",
            "regex": f"IMG{number:02d}_{person}_c{camera}.jpg",
            "csv": f"holiday/{number:02d}.jpg",
        }[source]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name)
        lines.append(f"{name},{person},{camera}")
    if source == "csv":
        (root.parent / "who.csv").write_text("\n".join(lines))
    return {
        "sub-folder": (),
        "regex": ("--identity", r"IMG\d+_([a-d])_"),
        "csv": ("--labels", root.parent / "who.csv"),
    }[source]


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    ["regex", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sub-folder", "csv"))],
)
def test_from_raw_images_to_reid_on_an_enlarged_set(rendered, tmp_path, exported, described, source):
    root, data, model, larger = (tmp_path / n for n in ("root", "data", "san", "larger"))
    who = raw(rendered, root, source)
    parser = described(exported()[1], size=[33, 33], labels="lip20")
    options = ("--parser", parser, "--mask", "parsing", "--keypoints", "none", "--threads", 1)
    assert "16 images annotated" in done("annotate", root, *options)
    assert "nothing is wrong" in done("verify", root)
    said = done("prepare", "folder", root, "--out", data, *who, "--holdout", 1, "--pairs", "parsing")
    assert "parsing maps  16 of 16 images" in said
    people = PackedPeople.open(data / "packed")
    assert sorted(people.pids.tolist()) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert sorted(people.camids.tolist()) == [1] * 8 + [2] * 8
    done("train", "san_market_small", "--data", data, "--out", model, "--set", "weights.perceptual=0", *SHORT)
    done(
        "augment", model, "--data", data, "--images", root, "--out", larger, "--donors", "any", "--threads", 1
    )
    assert len(list((larger / "images").iterdir())) == 12
    assert "nothing is wrong" in done("verify", larger)
    few = ("--set", "data.images_per_epoch=16", "--set", "schedule.epochs=1", "--set", "batch_size=8")
    more = ("--set", f"generated.folder={larger}")
    done("train", "reid_demo", "--data", data, "--out", tmp_path / "reid", "--threads", 1, *few, *more)
