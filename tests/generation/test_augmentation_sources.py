"""Augmented sets by several sources, in the donor's colors, by controls: rows, faults, removal, export."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import augment_runner as runner
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotate_runner import tree
from PIL import Image
from typer.testing import CliRunner

from reposer.cli.main import app
from reposer.data.layouts.market1501 import is_generated, parse_name, with_camera
from reposer.data.layouts.tables import unpack_set
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_market1501
from reposer.data.samplers import budget_rows
from reposer.errors import UserError
from reposer.generation.augmentation import AugmentOptions
from reposer.generation.batch import GenerateOptions, generate
from reposer.generation.camera_colors import CameraColors
from reposer.generation.forgetting import forget
from reposer.generation.lineage import set_faults
from reposer.generation.pair_sources import FolderPairs
from reposer.generation.pictures import load_person
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.set_exports import export_set
from reposer.runtime import setup
from reposer.storage.manifest import find_faults, write_part

SEVERAL = AugmentOptions(
    factor=2, background="donor", sources=3, camera="donor", batch_size=4, shard_items=8, file_format="png"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve training people in three cameras."""
    return runner.prepare_drawn(tmp_path_factory.mktemp("data"), people=12)


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "whole"
    runner.augmented(
        PoseTransfer.from_pretrained("transport", setup("cpu", threads=1)), prepared, out, SEVERAL
    )
    return out


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "manifest").to_pylist()


def test_rows_name_further_sources_and_the_donors_camera(prepared, whole):
    people = PackedPeople.open(prepared / "packed")
    rows = rows_of(whole)
    assert set_faults(whole) == []
    assert any(len(row["more_sources"]) == 2 for row in rows)
    for row in rows:
        assert row["camid"] == row["donor_camid"]
        assert row["pid"] == row["source_pid"]
        for name in row["more_sources"]:
            at = people.index(name)
            assert (people.pids[at], people.splits[at]) == (row["pid"], "train")
            assert name not in (row["source"], row["donor"])


def test_pictures_are_those_of_the_model_in_the_donors_colors(prepared, whole):
    """The first pictures by hand: carried, recolored by the training people's lines, stitched."""
    people = PackedPeople.open(prepared / "packed")
    colors = CameraColors.fit(people, np.flatnonzero(people.splits == "train"))
    model = PoseTransfer.from_pretrained("transport", setup("cpu", threads=1)).at_size(runner.SIZE)
    for row in rows_of(whole)[:4]:
        source, donor = (np.array([people.index(row[side])]) for side in ("source", "donor"))
        more = np.array([[people.index(name) for name in row["more_sources"]]])
        batch = people.pair_batch(source, donor, more if more.size else None)
        lines = colors.between([row["source_camid"]], [row["donor_camid"]])
        wanted = model.paint(batch, "donor", lines)[0].permute(1, 2, 0).numpy()
        with Image.open(whole / "images" / row["file"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), wanted)


@pytest.mark.slow
def test_several_processes_write_the_same_set(prepared, whole, tmp_path):
    model = PoseTransfer.from_pretrained("transport", setup("cpu", threads=1))
    runner.augmented(model, prepared, tmp_path / "set", SEVERAL, processes=2)
    for name in ("manifest", "images"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (folder / name).iterdir()}
            for folder in (whole, tmp_path / "set")
        )
        assert ours == theirs


def pair_list(folder: Path, rows: list[dict]) -> Path:
    lines = ["from,to", *(f"{row['source']},{row['donor']}" for row in rows)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def test_a_pair_list_in_the_donors_colors_gives_the_pictures_of_a_set(prepared, whole, tmp_path):
    rows, out = rows_of(whole)[:8], tmp_path / "out"
    told = CliRunner().invoke(
        app,
        [
            *("generate", "transport", "--data", str(prepared), "--pairs", str(pair_list(tmp_path, rows))),
            *("--out", str(out), "--background", "donor", "--camera", "donor", "--sources", "3"),
            *("--batch-size", "4", "--threads", "1"),
        ],
    )
    assert told.exit_code == 0, told.output
    assert "people get the colors of their donor's camera, by 6 pairs of cameras" in told.output
    assert "no network: pixels of the source are carried to the target's pose" in told.output
    made = rows_of(out)
    for row, other in zip(made, rows, strict=True):
        assert (row["camid"], row["more_sources"]) == (other["donor_camid"], other["more_sources"])
        assert (out / "images" / row["file"]).read_bytes() == (whole / "images" / other["file"]).read_bytes()
    settings = [json.loads((folder / "job.json").read_text())["settings"] for folder in (out, whole)]
    assert [settings[0][key] for key in ("camera", "colors")] == ["donor", settings[1]["colors"]]
    assert find_faults(out) == []
    part = out / "manifest" / "part-00000.parquet"
    columns = [(field.name, field.type) for field in pq.read_schema(part)][2:]
    write_part(part, [made[0] | {"camid": 9}, *made[1:]], columns)
    assert f"{made[0]['file']}: camid is not that of its donor" in "".join(find_faults(out))


def test_pictures_between_cameras_without_common_people_are_counted(prepared, whole):
    people = PackedPeople.open(prepared / "packed")
    colors = CameraColors.fit(people, np.flatnonzero(people.splits == "train"))
    assert len(colors.notes([1, 2, 3], [2, 2, 1])) == 1
    assert colors.notes([1, 9, 9, 2], [9, 9, 1, 1])[1].startswith("2 of 4 pictures keep the source's colors")


def test_colors_of_cameras_are_known_in_a_prepared_folder_only(prepared, tmp_path):
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["generate", "paste", *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code
        return str(result.exception) + result.output

    files = ("--source", str(tmp_path), "--donor", str(tmp_path / "b.png"))
    listed = ("--data", str(prepared), "--pairs", str(tmp_path / "none.csv"))
    wanted = ("--camera", "donor", "--background", "donor")
    assert "known in a prepared folder only: give --data and --pairs" in refused(*files, *wanted)
    assert "add --background donor" in refused(*listed, *wanted[:2])
    assert "known: source, donor" in refused(*files, "--camera", "mine")
    pose = load_person(np.zeros((64, 32, 3), np.uint8), np.ones((64, 32), np.uint8), size=(64, 32))
    options = GenerateOptions("donor", camera="donor")
    draw = runner.draw_data_set(tmp_path / "raw", 2, 2) / "bounding_box_train"
    shutil.copytree(tmp_path / "raw" / "parsing", draw / "parsing")
    with pytest.raises(UserError, match="known in a prepared folder only"):
        generate(PoseTransfer.from_pretrained("paste"), FolderPairs(draw, pose), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_budget_hides_further_sources(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    options = AugmentOptions(factor=2, sources=4, budget=0.7, batch_size=8)
    runner.augmented(PoseTransfer.from_pretrained("transport"), prepared, tmp_path / "set", options)
    allowed = {people.names[row] for row in budget_rows(people, 0.7, 0, ("train",)).tolist()}
    named = {name for row in rows_of(tmp_path / "set") for name in row["more_sources"]}
    assert named
    assert named <= allowed


def test_a_row_that_lies_about_its_camera_is_a_fault(whole, tmp_path):
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    settings = (copied / "job.json").read_text()
    (copied / "job.json").write_text(settings.replace('"camera": "donor"', '"camera": "source"'))
    assert any("camid is not that of its source" in fault for fault in set_faults(copied))


@pytest.mark.parametrize("gone", ["images", "real"])
def test_every_picture_is_missing_where_their_folder_is_gone(whole, tmp_path, gone):
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    names = sorted(path.name for path in (copied / gone).iterdir())
    shutil.rmtree(copied / gone)
    assert sorted(set_faults(copied)) == [f"{gone}/{name} is missing" for name in names]


def test_removal_keeps_the_columns(whole, tmp_path):
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    pid = rows_of(copied)[0]["pid"]
    forget(copied, pid)
    left = rows_of(copied)
    assert left
    assert all(row["pid"] != pid and row["donor_pid"] != pid and "more_sources" in row for row in left)
    assert set_faults(copied) == []


def export_rows(out, layout):
    """What an export says of its images: name, person, camera, generated or not."""
    if layout in ("webdataset", "parquet"):
        rows = pq.read_table(out / "manifest.parquet").to_pylist()
        if layout == "webdataset":
            (place,) = out.glob("*.tar")
            with tarfile.open(place) as tar:
                members = tar.getnames()
            assert len(members) == len(set(members)) == 2 * len(rows)
        return [(row["file"], row["pid"], row["camid"], row["synthetic"]) for row in rows]
    if layout == "list":
        with (out / "train.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            (r["path"].rpartition("/")[2], int(r["pid"]), int(r["camid"]), r["synthetic"] == "1")
            for r in rows
        ]
    return [(p.name, *parse_name(p.name)[:2], is_generated(p.name)) for p in out.rglob("*.jpg")]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A set in the donors' colors of people whose images differ by the camera's number alone."""
    root = tmp_path_factory.mktemp("alike")
    raw = runner.draw_data_set(root / "raw", 10, 3)
    for path in [*raw.rglob("*.jpg"), *raw.rglob("*.png")]:
        path.rename(path.with_name(re.sub(r"_\d{6}_", "_000000_", path.name)))
    prepare_market1501(raw, root / "prepared", size=runner.SIZE)
    options = AugmentOptions(factor=3, policy="any", background="donor", camera="donor", batch_size=8)
    runner.augmented(runner.stub_model(), root / "prepared", root / "set", options)
    return root / "set"


@pytest.mark.parametrize("layout", ["market", "folders", "list", "webdataset", "parquet"])
def test_pictures_that_only_the_replaced_cameras_told_apart_keep_names_of_their_own(alike, tmp_path, layout):
    export_set(alike, tmp_path / "out", layout)
    rows = export_rows(tmp_path / "out", layout)
    assert len(rows) == 30 * 3
    assert len({name for name, *_ in rows}) == len(rows)
    for name, pid, camid, synthetic in rows:
        assert parse_name(name)[:2] == (pid, camid)
        assert is_generated(name) == synthetic
    made = rows_of(alike)
    plain = [with_camera(row["file"], row["camid"]) for row in made]
    assert len(set(plain)) < len(plain)
    for row, name in zip(made, plain, strict=True):
        taken = plain.count(name) > 1 and row["camid"] != row["source_camid"]
        wanted = name.replace(".jpg", f"-{row['source_camid']}.jpg") if taken else name
        assert (wanted, row["pid"], row["camid"], True) in rows
    export_set(alike, tmp_path / "again", layout)
    assert sorted(export_rows(tmp_path / "again", layout)) == sorted(rows)


def test_an_export_names_pictures_by_the_camera_whose_colors_they_have(prepared, tmp_path):
    options = AugmentOptions(factor=2, background="donor", camera="donor", batch_size=8)
    runner.augmented(PoseTransfer.from_pretrained("paste"), prepared, tmp_path / "set", options)
    export_set(tmp_path / "set", tmp_path / "market", "market", copy=True)
    names = {path.name for path in (tmp_path / "market" / "bounding_box_train").iterdir()}
    for row in rows_of(tmp_path / "set"):
        stem = (
            row["source"]
            .replace(f"_c{row['source_camid']}s", f"_c{row['donor_camid']}s")
            .removesuffix(".jpg")
        )
        assert f"{stem}_g01.jpg" in names


def test_a_set_by_one_source_has_no_further_column(prepared, tmp_path):
    runner.augmented(
        PoseTransfer.from_pretrained("paste"), prepared, tmp_path / "set", AugmentOptions(factor=2)
    )
    rows = rows_of(tmp_path / "set")
    assert "more_sources" not in rows[0]
    assert all(row["camid"] == row["source_camid"] for row in rows)
    assert set_faults(tmp_path / "set") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (AugmentOptions(camera="donor"), "add --background donor"),
        (AugmentOptions(camera="other"), "known: source, donor"),
        (AugmentOptions(sources=0), "sources 0"),
        (AugmentOptions(sources=99), "at most 16"),
    ],
)
def test_impossible_options_are_refused(prepared, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        runner.augmented(PoseTransfer.from_pretrained("transport"), prepared, tmp_path / "set", options)
    assert not (tmp_path / "set").exists()


def test_names_of_any_language_and_length_are_augmented_forgotten_and_packed(prepared, tmp_path):
    """What prepare takes, augment and every export that promises nothing about names take too."""
    raw, root = Path(prepared).parent / "raw", tmp_path / "people"
    people = {"0002": "Dr. Émile", "0003": "人", "0004": "a;b $(id)", "0005": "x" * 120}
    images = sorted((raw / "bounding_box_train").iterdir())
    for path in images:
        if (person := people.get(path.name[:4])) is not None:
            for source, target in ((path, root), (raw / "parsing" / f"{path.stem}.png", root / "parsing")):
                (target / person).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target / person)
    told = CliRunner().invoke(
        app,
        [
            "prepare",
            "folder",
            str(root),
            "--out",
            str(tmp_path / "p"),
            "--pairs",
            "parsing",
            "--size",
            "48x24",
        ],
    )
    assert told.exit_code == 0, told.output
    out, options = tmp_path / "set", AugmentOptions(factor=2, background="donor")
    model = PoseTransfer.from_pretrained("transport", setup("cpu", threads=1))
    runner.augmented(model, tmp_path / "p", out, options, images=root)
    assert set_faults(out) == []
    names = [row["file"] for row in rows_of(out)]
    assert len(names) == 12 == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) for name in names)
    for layout in ("webdataset", "parquet"):
        export_set(out, tmp_path / layout, layout)
        unpack_set(tmp_path / layout, tmp_path / f"files_{layout}")
        assert len(list((tmp_path / f"files_{layout}" / "images").iterdir())) == 24
    shards = pq.read_table(tmp_path / "webdataset" / "manifest.parquet").to_pylist()
    assert all(row["file"].count(".") == 1 and row["file"].isascii() for row in shards)
    for layout in ("folders", "list"):
        export_set(out, tmp_path / layout, layout)
    one = next(row for row in rows_of(out) if "Émile" in row["source"])
    (out / "images" / one["file"].replace("_g01", "_g07")).write_bytes(b"left by a killed writer")
    result = forget(out, one["pid"])
    assert not result.unlisted
    assert not list((out / "images").glob(f"*{one['file'][:20]}*"))
    assert set_faults(out) == []


@pytest.mark.parametrize("more", [False, True])
def test_a_file_of_a_packed_set_with_other_images_than_its_list_is_named(whole, tmp_path, more):
    export_set(whole, tmp_path / "set", "parquet")
    place = tmp_path / "set" / "data" / "train-000000.parquet"
    table = pq.read_table(place)
    pq.write_table(pa.concat_tables([table, table]) if more else table.slice(1), place)
    told = "more images than" if more else "differs from its sha256"
    with pytest.raises(UserError, match=rf"train-000000\.parquet: .*{told}"):
        unpack_set(tmp_path / "set", tmp_path / "out")
    pq.write_table(table.slice(0, 2), place)
    with pytest.raises(UserError, match=r"train-000000\.parquet: holds fewer images than"):
        unpack_set(tmp_path / "set", tmp_path / "out")
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist([{**rows[0], "image": None}, *rows[1:]], table.schema), place)
    with pytest.raises(UserError, match=r"train-000000\.parquet: a row holds no image"):
        unpack_set(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that says a size of any sign, which TarInfo itself refuses to write."""
    member = tarfile.TarInfo(name)
    member.type = kind
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else f"{size:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def pax_header(key: str, value: object) -> bytes:
    record = f" {key}={value}\n"
    body = f"{len(record) + 2}{record}".encode()
    return tar_header("pax", len(body), tarfile.XHDTYPE) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        (tar_header("z.json", 0) + tar_header("a.json", -512), r"a\.json is no file of an image's size"),
        (tar_header("z.json", 0) + tar_header("a.json", -1024), r"a\.json is no file of an image's size"),
        (tar_header("a.json", -(2**40)), r"a\.json is no file of an image's size"),
        (tar_header("a.json", -512, tarfile.XHDTYPE), r"a\.json is no file of an image's size"),
        (tar_header("a.jpg", -512, tarfile.GNUTYPE_LONGNAME), r"a\.jpg is no file of an image's size"),
        (tar_header("a.jpg", 2**30, tarfile.GNUTYPE_LONGNAME), r"a\.jpg is no file of an image's size"),
        (tar_header("a.jpg", 0, tarfile.GNUTYPE_SPARSE), r"a\.jpg is no file of an image's size"),
        (tar_header("a.jpg", 2**30), r"a\.jpg is no file of an image's size"),
        (pax_header("size", -2048) + tar_header("a.json", 0), r"a\.json is no file of an image's size"),
        (pax_header("size", 2**60) + tar_header("a.json", 0), r"a\.json is no file of an image's size"),
        (pax_header("comment", "nested") * 2000 + tar_header("a.json", 0), "recursion"),
        (tar_header("a.json", 0) * 20_000, "holds more than 16 other files for an image"),
    ],
)
def test_a_tar_file_that_leads_back_or_has_no_end_is_named(whole, tmp_path, shard, told):
    export_set(whole, tmp_path / "set", "webdataset")
    (tmp_path / "set" / "train-000000.tar").write_bytes(shard + bytes(1024))
    with pytest.raises(UserError, match=rf"set/train-000000\.tar: .*{told}") as refusal:
        unpack_set(tmp_path / "set", tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_tar_file_packed_again_with_long_headers_is_still_read(whole, tmp_path):
    export_set(whole, tmp_path / "set", "webdataset")
    place = tmp_path / "set" / "train-000000.tar"
    unpack_set(tmp_path / "set", tmp_path / "wanted")
    with tarfile.open(place) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(place, "w", format=form) as tar:
            for member, data in members:
                again = tarfile.TarInfo(member.name)
                again.size, again.mtime, again.uname = len(data), 1.5, "\u540d" * 3
                tar.addfile(again, io.BytesIO(data))
        unpack_set(tmp_path / "set", tmp_path / f"out{form}")
        assert tree(tmp_path / f"out{form}") == tree(tmp_path / "wanted")


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_an_image_listed_twice_is_named_with_its_row(whole, tmp_path, layout):
    export_set(whole, tmp_path / "set", layout)
    manifest, place = tmp_path / "set" / "manifest.parquet", next((tmp_path / "set").rglob("train-*"))
    rows = pq.read_table(manifest)
    pq.write_table(pa.concat_tables([rows, rows]), manifest, row_group_size=2 * len(rows))
    if layout == "parquet":
        table = pq.read_table(place)
        pq.write_table(pa.concat_tables([table, table]), place)
    else:
        with tarfile.open(place) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]
        with tarfile.open(place, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member, data in members * 2:
                tar.addfile(member, io.BytesIO(data))
    twice = re.escape(f"{rows['file'][0].as_py()} is of an earlier row too (row {len(rows) + 1:,} of man")
    with pytest.raises(UserError, match=rf"{place.name}: {twice}"):
        unpack_set(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x"]),
        pa.array([b"x"]),
        pa.array([{"path": "a"}]),
        pa.array([{"bytes": 1, "path": "a"}]),
        pa.array([{"bytes": b"1", "path": 2}]),
        pa.array([[{"bytes": b"1", "path": "a"}]]),
        None,
    ],
)
def test_a_parquet_file_without_images_is_named(whole, tmp_path, column):
    export_set(whole, tmp_path / "set", "parquet")
    place = tmp_path / "set" / "data" / "train-000000.parquet"
    table = pq.read_table(place)
    others = table.drop_columns(["image"])
    if column is not None:
        others = others.append_column("image", column.take(pa.array([0] * len(table))))
    pq.write_table(others, place)
    with pytest.raises(UserError, match=r"data/train-000000\.parquet: has no column image of bytes and path"):
        unpack_set(tmp_path / "set", tmp_path / "out")
