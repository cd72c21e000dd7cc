"""`reposer train predictor_demo`, `evaluate` and `generate --target` on a few rendered people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from planted import Planted, pack_planted

from reposer.data.packed import PackedPeople
from reposer.data.parsing import write_parsing
from reposer.errors import UserError
from reposer.generation.batch import GenerateOptions
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.images import encode_png, read_picture
from reposer.models.generators import CONTROLS, build_predictor
from reposer.trained.networks import GeneratorConfig
from reposer.workflows.evaluate import evaluate_model
from reposer.workflows.generate import generate_poses
from reposer.workflows.identity import ALIKE, TURNED

SIZE = (64, 32)  # of conftest.py


def test_people_are_recognized_before_the_first_background(run, prepared, san, tmp_path, monkeypatch):
    asked = []

    def measure(model, reid, data, out, background, sources, **_):
        asked.append(background)
        return ""

    monkeypatch.setattr("reposer.workflows.identity.measure_identity", measure)
    monkeypatch.setattr("reposer.workflows.reid_features.open_judge", lambda *_: "a network")
    out = ("--data", prepared, "--limit", 4, "--metrics", "l1", "--reid", prepared)
    monkeypatch.setattr("reposer.workflows.reid_features.check_data", lambda *_: None)
    for given, wanted in (((), "generated"), (("--backgrounds", "source,donor"), "source")):
        code, _, err = run("evaluate", san, *out, "--out", tmp_path / wanted, *given)
        assert (code, asked.pop()) == (0, wanted), err


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Three people in two cameras, 64x32; the first has no label map."""
    folder = tmp_path_factory.mktemp("planted")
    pack_planted(
        folder, [Planted(pid=pid, camid=camid, parsing=pid != 1) for pid in (1, 2, 3) for camid in (1, 2)]
    )
    return folder


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("target", [3, 5])
def test_a_generator_without_weights_works_at_the_size_of_a_named_source(planted, tmp_path, name, target):
    people = PackedPeople.open(planted / "packed")
    model = PoseTransfer.from_pretrained(name)
    assert model.size != people.size
    if "target_mask" in model.needs():  # a pose alone has no maps
        info = GeneratorConfig(generator="parsing_predictor", size=people.size)
        network = build_predictor("parsing_predictor", width=4)
        model = model.with_predictor(MapPredictor(network, info), "predicted")
        assert model.size == people.size
    source, pose = people.names[2], people.names[target]
    out = tmp_path / "one.png"
    generate_poses(model, (Path(source), None), pose, out, GenerateOptions(), data=planted)
    expected = model.at_size(people.size)(people.pair_batch(np.array([2]), np.array([target])))[0]
    np.testing.assert_array_equal(read_picture(out).pixels, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("target", ["canonical:front", "canonical:left,back"])
def test_a_source_without_a_label_map_is_refused_by_its_name_as_by_its_file(planted, tmp_path, row, target):
    people = PackedPeople.open(planted / "packed")
    model = PoseTransfer.from_pretrained("transport")
    told = set()
    for source, data in ((people.names[row], planted), (planted / "people" / people.names[row], None)):
        with pytest.raises(UserError) as error:
            generate_poses(
                model, (Path(source), None), target, tmp_path / "out", GenerateOptions(), data=data
            )
        told.add(error.value.problem)
    why = "has no parsing map; a person is re-posed by the maps of source and donor"
    assert told == {f"{people.names[row]}: {why}"}


def test_a_re_id_run_that_cannot_judge_is_told_before_the_work(run, prepared, san, tmp_path, monkeypatch):
    def measure(*_, **__):
        raise AssertionError("measured first")

    monkeypatch.setattr("reposer.workflows.evaluate.evaluate_model", measure)
    (tmp_path / "empty").mkdir()
    words = ("evaluate", san, "--data", prepared, "--metrics", "l1", "--out", tmp_path / "out")
    for place, said in (
        (tmp_path / "nosuch", "No such file"),
        (tmp_path / "empty", "No such file"),
        (san, "is no run"),
    ):
        code, _, err = run(*words, "--reid", place)
        assert (code, err.count("\n"), said in err) == (1, 1, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backgrounds": ()}, "no background"),
        ({"sources": ()}, "no number of sources"),
        ({"backgrounds": ("generated", "doner")}, "did you mean donor"),
    ],
)
def test_a_measurement_of_nothing_is_refused_before_the_work(given, said, san, tmp_path):
    with pytest.raises(UserError, match=said):
        evaluate_model(PoseTransfer.from_pretrained(san), tmp_path / "none", tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("sources", "backgrounds", "rows"),
    [
        ((1,), ("generated",), ["model"]),
        ((4,), ("generated",), ["model, 4 sources"]),
        ((4, 1), ("generated",), ["model, 4 sources", "model"]),
        ((1, 2, 3), ("generated",), ["model", "model, 2 sources", "model, 3 sources"]),
        ((2,), ("generated", "donor"), ["model, 2 sources", "model, donor's background, 2 sources"]),
        ((1, 3), ("source",), ["model, source's background", "model, source's background, 3 sources"]),
    ],
)
def test_every_row_says_of_how_many_sources_it_is(sources, backgrounds, rows, prepared, san, tmp_path):
    """The transport reads further sources: each row is what that number alone, asked for alone, measures."""
    given = {"limit": 4, "metrics": ("l1",)}
    model = PoseTransfer.from_pretrained("transport")
    report = evaluate_model(model, prepared, tmp_path, sources=sources, backgrounds=backgrounds, **given)
    assert [row for row in report.rows if row.startswith("model")] == rows
    assert json.loads((tmp_path / "image_quality.json").read_text())["settings"]["sources"] == list(sources)
    for row in rows:
        count = int(row.split()[-2]) if row.endswith("sources") else 1
        scene = row.split("'")[0].split()[-1] if "background" in row else "generated"
        alone = evaluate_model(model, prepared, tmp_path, sources=(count,), backgrounds=(scene,), **given)
        assert alone.rows[row] == report.rows[row]


def test_predicted_maps_say_of_how_many_sources_they_are(prepared, san, tmp_path):
    info = GeneratorConfig(generator="parsing_predictor", size=SIZE)
    predictor = MapPredictor(build_predictor("parsing_predictor", width=4), info)
    given = {"limit": 2, "metrics": ("l1",), "predictor": predictor}
    for sources, row in (((1,), "model, predicted maps"), ((3, 1), "model, predicted maps, 3 sources")):
        report = evaluate_model(
            PoseTransfer.from_pretrained(san), prepared, tmp_path, sources=sources, **given
        )
        assert [name for name in report.rows if "predicted" in name] == [row]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_several_pictures_are_not_written_into_a_folder_called_as_one(run, prepared, san, tmp_path, suffix):
    people = PackedPeople.open(prepared / "packed")
    (tmp_path / "pairs.csv").write_text(f"from,to\n{people.names[0]},{people.names[4]}\n")
    photos = tmp_path / "photos"
    (photos / "parsing").mkdir(parents=True)
    (photos / "who.png").write_bytes(encode_png(people.images[0]))
    write_parsing(photos / "parsing" / "who.png", people.parsing[0])
    out, named = tmp_path / f"x{suffix}", ("--data", prepared)
    jobs: list[tuple[object, ...]] = [
        ("transport", *named, "--source", people.names[0], "--target", "canonical:front,left"),
        ("transport", "--source", photos / "who.png", "--target", "canonical:all"),
        ("transport", "--source", photos, "--donor", photos / "who.png"),
        (san, *named, "--pairs", tmp_path / "pairs.csv"),
    ]
    info = GeneratorConfig(generator="parsing_predictor", generator_args={"width": 4}, size=SIZE)
    maps = MapPredictor(build_predictor("parsing_predictor", width=4), info)
    maps.save_pretrained(tmp_path / "maps")
    for job in jobs:
        given = ("--predictor", tmp_path / "maps") if "--target" in job else ()
        code, _, err = run("generate", *job, *given, "--out", out)
        assert (code, err.count("\n")) == (1, 1), (job, err)
        assert f"{out}: is the name of a picture, and a set of them is a folder: name a folder" in err
        assert not out.exists()
    out.mkdir()
    code, _, err = run("generate", *jobs[-1], "--out", out)  # somebody has a folder of that name
    assert (code, (out / "job.json").is_file()) == (0, True), err


@pytest.mark.parametrize("target", ["canonical:front", "pose.json"])
def test_a_prepared_folder_of_which_no_image_is_named_is_refused(run, prepared, tmp_path, target):
    people = PackedPeople.open(prepared / "packed")
    (tmp_path / "who.png").write_bytes(encode_png(people.images[0]))
    line = ("generate", "transport", "--source", tmp_path / "who.png", "--target", target)
    code, _, err = run(*line, "--data", prepared, "--out", tmp_path / "out.png")
    assert (code, "has no image" in err, "leave out --data" in err) == (1, True, True), err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("metrics", ["", "ssim", "l1,psnr"])
def test_weights_that_no_metric_reads_are_refused(run, prepared, san, tmp_path, metrics):
    given = ("--metrics", metrics) if metrics else ()
    line = ("evaluate", san, "--data", prepared, "--weights", tmp_path, *given)
    code, _, err = run(*line, "--out", tmp_path / "out")
    assert (code, "--weights: no metric reads weights: add one to --metrics" in err) == (1, True), err
    assert not (tmp_path / "out").exists()


def test_one_picture_of_names_in_a_prepared_folder(run, prepared, san, tmp_path):
    """The same as the pair list makes of them; a file may stand for either."""
    people = PackedPeople.open(prepared / "packed")
    who, pose = people.names[0], people.names[4]
    (tmp_path / "pairs.csv").write_text(f"from,to\n{who},{pose}\n")
    line = ("generate", san, "--data", prepared)
    code, _, err = run(*line, "--pairs", tmp_path / "pairs.csv", "--out", tmp_path / "list")
    assert code == 0, err
    (listed,) = (tmp_path / "list" / "images").rglob("*.png")
    wanted, out = read_picture(listed).pixels, tmp_path / "one.png"
    code, said, err = run(*line, "--source", who, "--donor", pose, "--out", out)
    assert (code, f"{who} in the pose of {pose}" in said) == (0, True), err
    np.testing.assert_array_equal(read_picture(out).pixels, wanted)
    maps = tmp_path / "parsing"
    maps.mkdir()
    for name, row in (("who", 0), ("pose", 4)):
        (tmp_path / f"{name}.png").write_bytes(encode_png(people.images[row]))
        write_parsing(maps / f"{name}.png", people.parsing[row])
    for number, (source, donor) in enumerate(((who, tmp_path / "pose.png"), (tmp_path / "who.png", pose))):
        out = tmp_path / f"{number}.png"
        code, _, err = run(*line, "--source", source, "--donor", donor, "--out", out)
        assert (code, read_picture(out).pixels.shape) == (0, (*SIZE, 3)), err
    folder = tmp_path / "folder"
    (folder / "parsing").mkdir(parents=True)
    for name in ("who.png", "parsing/who.png"):
        (tmp_path / name).rename(folder / name)
    code, _, err = run(*line, "--source", folder, "--donor", pose, "--out", tmp_path / "many")
    assert code == 0, err
    assert len(list((tmp_path / "many" / "images").rglob("*.png"))) == 1


def test_a_name_that_the_prepared_folder_does_not_have_is_told(run, prepared, san, tmp_path):
    name = PackedPeople.open(prepared / "packed").names[0]
    line = ("generate", san, "--data", prepared, "--out", tmp_path / "x.png")
    for given, said in (
        (("--source", "a.jpg", "--donor", "b.jpg"), "has no image a.jpg and b.jpg: correct the name"),
        (("--source", tmp_path, "--donor", "b.jpg"), "has no image b.jpg: correct the name"),
        (("--source", name, "--donor", "b.jpg"), "b.jpg: no such file"),
        (("--source", name, "--donor", name, "--source-parsing", "p.png"), "p.png would not be read: leave"),
        (("--source", name, "--donor", name, "--donor-parsing", "p.png"), "p.png would not be read: leave"),
        (("--source", name, "--target", name, "--source-parsing", "p.png"), "p.png would not be read: leave"),
    ):
        code, _, err = run(*line, *given)
        assert (code, err.count("\n"), said in err) == (1, 1, True), err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_predictor_from_training_to_pictures(run, prepared, san, tmp_path):
    """Two steps of the preset, its table, and a held-out person in two canonical poses."""
    maps = tmp_path / "maps"
    changes = ["data.pairs_per_epoch=32", "predictor_args.width=4", "optimizer.warmup_steps=1"]
    sets = [word for change in changes for word in ("--set", change)]
    code, said, err = run("train", "predictor_demo", "--data", prepared, "--out", maps, "--threads", 1, *sets)
    assert code == 0, err
    assert "step 2 of 2" in said
    code, said, err = run("evaluate", maps, "--data", prepared, "--out", tmp_path / "table", "--limit", 4)
    assert code == 0, err
    table = json.loads((tmp_path / "table" / "map_quality.json").read_text())
    assert list(table["rows"]) == ["predictor", "source's map", "donor's map"]
    assert (tmp_path / "table" / "maps.png").is_file()

    people = PackedPeople.open(prepared / "packed")
    name = people.names[int(np.flatnonzero(people.splits == "val")[0])]
    asked = ["generate", san, "--data", prepared, "--source", name, "--out", tmp_path / "out"]
    code, _, err = run(*asked, "--target", "canonical:front,left")
    assert code == 1
    assert "name a predictor" in err
    code, said, err = run(*asked, "--target", "canonical:front,left", "--predictor", maps)
    assert code == 0, err
    assert "target maps are predicted" in said
    stem = name.rpartition(".")[0]
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == [f"{stem}___canonical-front.png", f"{stem}___canonical-left.png"]
    assert read_picture(tmp_path / "out" / pictures[0]).pixels.shape == (*SIZE, 3)
    code, _, err = run(*asked, "--target", "canonical:lft")
    assert (code, "did you mean left" in err) == (1, True)
    code, _, err = run(*asked, "--target", people.names[0], "--donor", "x.png")
    assert (code, "give one of them" in err) == (1, True)
    table, reid = tmp_path / "images", tmp_path / "reid"
    sets = ("--set", "data.images_per_epoch=16", "--set", "schedule.epochs=1", "--set", "batch_size=8")
    code, _, err = run("train", "reid_demo", "--data", prepared, "--out", reid, "--threads", 1, *sets)
    assert code == 0, err
    code, said, err = run(
        *("evaluate", san, "--data", prepared, "--out", table, "--limit", 4, "--predictor", maps),
        *("--reid", reid),
    )
    assert code == 0, err
    assert "| model, predicted maps |" in said
    generated = ("generated, own pose", "generated, another person's pose")
    rows = ["real queries", *generated, *(f"{row}, predicted maps" for row in generated)]
    found = json.loads((table / "identity.json").read_text())["rows"]
    assert [row for row in found if not row.endswith((ALIKE, TURNED))] == rows
    out = tmp_path / "set"
    code, said, err = run(
        "augment",
        san,
        "--data",
        prepared,
        "--out",
        out,
        "--predictor",
        maps,
        "--threads",
        1,
        "--real",
        "none",
    )
    assert code == 0, err
    assert json.loads((out / "job.json").read_text())["settings"]["maps"] == "predicted"
