"""Many pictures into a folder: pairs of packed people, and a folder of images with one donor."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from reposer.errors import UserError
from reposer.generation.batch import GenerateOptions, generate
from reposer.generation.pair_sources import FolderPairs, PackedPairs
from reposer.generation.pictures import is_marked, load_person
from reposer.images import decode
from reposer.storage.manifest import find_faults, read_rows

PAIRS = np.array([(0, 1), (1, 0), (2, 5), (3, 3), (9, 8)])


@pytest.mark.parametrize("background", ["generated", "donor", "source"])
def test_files_and_rows_say_the_same(tmp_path, pose_transfer, people, background):
    seen = []
    options = GenerateOptions(background, batch_size=2, shard_items=2)
    report = generate(
        pose_transfer,
        PackedPairs(people, PAIRS),
        tmp_path / "out",
        options,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.items, report.written, report.kept, report.notes) == (5, 5, 0, [])
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
    rows = read_rows(tmp_path / "out").to_pylist()
    expected = pose_transfer(people.pair_batch(*PAIRS.T), background).permute(0, 2, 3, 1).numpy()
    for row, (source, donor), picture in zip(rows, PAIRS, expected, strict=True):
        path = tmp_path / "out" / "images" / row["file"]
        stems = [people.names[i].removesuffix(".png") for i in (source, donor)]
        assert row["file"] == f"{stems[0]}___{stems[1]}.png"
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["source"], row["donor"]) == (people.names[source], people.names[donor])
        assert (row["source_pid"], row["donor_camid"]) == (people.pids[source], people.camids[donor])
        assert (row["source_sha256"], row["donor_sha256"]) == (f"{source:064x}", f"{donor:064x}")
        assert (row["checkpoint"], row["background"]) == (pose_transfer.weights_hash, background)
        assert row["synthetic"] is True
        assert is_marked(path.read_bytes())
        assert np.abs(decode(path).astype(int) - picture).max() <= 1
    assert find_faults(tmp_path / "out") == []


def test_a_finished_job_is_not_done_again_and_another_one_is_refused(tmp_path, pose_transfer, people):
    out = tmp_path / "out"
    pairs = PackedPairs(people, PAIRS)
    generate(pose_transfer, pairs, out)
    again = generate(pose_transfer, pairs, out)
    assert (again.written, again.kept) == (0, 5)
    assert "0 pictures written, 5 were there already" in str(again)
    with pytest.raises(UserError, match=r'these differ: settings\.background: "generated" -> "donor"'):
        generate(pose_transfer, pairs, out, GenerateOptions("donor"))
    with pytest.raises(UserError, match=r"these differ: settings\.inputs"):
        generate(pose_transfer, PackedPairs(people, PAIRS[::-1]), out)
    pose_transfer.__dict__.pop("weights_hash")
    pose_transfer.generator.layers[0].bias.data += 1
    with pytest.raises(UserError, match=r"these differ: settings\.checkpoint"):
        generate(pose_transfer, pairs, out)


def test_pairs_without_parsing_are_left_out_and_listed(tmp_path, pose_transfer, people):
    out = tmp_path / "out"
    report = generate(pose_transfer, PackedPairs(people, np.array([(0, 11), (11, 2), (1, 2)])), out)
    assert report.written == 1
    text = (out / "problems.csv").read_text()
    assert text.splitlines()[1].startswith(people.names[11])
    assert "no parsing map; its pairs are left out" in str(report)
    with pytest.raises(UserError, match=r"there is no pair to generate.*no parsing map"):
        generate(pose_transfer, PackedPairs(people, np.array([(11, 0)])), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_wrong_calls_are_refused_before_anything_is_written(tmp_path, pose_transfer, people):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 pairs occur more than once"):
        generate(pose_transfer, PackedPairs(people, PAIRS[[0, 1, 0]]), out)
    with pytest.raises(UserError, match="format gif: unknown: did you mean png"):
        generate(pose_transfer, PackedPairs(people, PAIRS), out, GenerateOptions(file_format="gif"))
    with pytest.raises(UserError, match="background black: unknown"):
        generate(pose_transfer, PackedPairs(people, PAIRS), out, GenerateOptions("black"))
    pose_transfer.config = pose_transfer.config.changed(size=(128, 64))
    with pytest.raises(UserError, match=r"size \(64, 32\), the model \(128, 64\): prepare .* 128x64"):
        generate(pose_transfer, PackedPairs(people, PAIRS), out)
    assert not out.exists()


def test_a_folder_of_images_and_one_donor(tmp_path, pose_transfer, people, people_folder):
    paths = sorted(people_folder.glob("*.png"))
    (people_folder / "broken.png").write_bytes(paths[0].read_bytes()[:100])
    (people_folder / "notes.txt").write_text("no image")
    secret = b"GPS and serial numbers"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    Image.open(paths[0]).save(people_folder / "camera.jpg", quality=95, exif=exif)
    (people_folder / "parsing" / "camera.png").write_bytes(
        (people_folder / "parsing" / paths[0].name).read_bytes()
    )
    donor = load_person(paths[4], people_folder / "parsing" / paths[4].name, size=(64, 32))
    options = GenerateOptions(file_format="jpg", batch_size=5)
    report = generate(pose_transfer, FolderPairs(people_folder, donor), tmp_path / "out", options)
    rows = read_rows(tmp_path / "out").to_pylist()
    assert [row["source"] for row in rows] == [*(path.name for path in paths[:11]), "camera.jpg"]
    assert rows[0]["source_sha256"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert rows[0]["donor_sha256"] == hashlib.sha256(paths[4].read_bytes()).hexdigest()
    for row in rows:
        data = (tmp_path / "out" / "images" / row["file"]).read_bytes()
        assert is_marked(data)
        assert secret not in data
        assert not Image.open(io.BytesIO(data)).getexif()
    problems = (tmp_path / "out" / "problems.csv").read_text()
    assert "broken.png" in problems
    assert f"{paths[11].stem}.png" in problems
    assert "problems, see problems.csv" in str(report)
    assert (
        generate(
            pose_transfer,
            FolderPairs(people_folder, donor),
            tmp_path / "out",
            GenerateOptions(file_format="jpg", batch_size=5),
        ).kept
        == 12
    )


def test_a_folder_with_nothing_usable_says_so(tmp_path, pose_transfer, people_folder):
    path = sorted(people_folder.glob("*.png"))[0]
    donor = load_person(path, people_folder / "parsing" / path.name, size=(64, 32))
    with pytest.raises(UserError, match="cannot be listed"):
        generate(pose_transfer, FolderPairs(tmp_path / "nowhere", donor), tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "a.png").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"there is no pair to generate: .*no folder of parsing maps"):
        generate(pose_transfer, FolderPairs(bare, donor), tmp_path / "out")
