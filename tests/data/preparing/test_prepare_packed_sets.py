"""Packed sets of ``export-set``, here and in a bucket, are prepared as their files are."""

from __future__ import annotations

import json
import re

import augment_runner as runner
import pytest
from annotate_runner import tree
from typer.testing import CliRunner

from reposer.cli.main import app
from reposer.data.layouts.tables import unpack_set
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.generation import set_exports
from reposer.generation.set_exports import export_set


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An augmented set of 15 real and 30 generated pictures."""
    folder = tmp_path_factory.mktemp("data")
    runner.write(runner.prepare_drawn(folder / "drawn"), folder / "whole", 3, shard=8)
    return folder / "whole"


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_packed_set_is_prepared_as_its_files_are(whole, tmp_path, monkeypatch, layout):
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 20)
    packed, bucket = tmp_path / "packed", f"memory://{tmp_path.name}/{layout}"
    for place in (packed, bucket):
        export_set(whole, place, layout)
    unpack_set(packed, tmp_path / "files")
    table = {"table": str(tmp_path / "files" / "train.csv"), "split": "train"}
    prepare_people("table", tmp_path / "files", tmp_path / "wanted", options=table, single_camera=True)
    wanted = tree(tmp_path / "wanted")
    for number, place in enumerate((packed, bucket)):
        out = tmp_path / "prepared" / str(number)
        for _ in range(2):  # the second over the first
            told = CliRunner().invoke(
                app, ["prepare", "packed", str(place), "--out", str(out), "--single-camera"]
            )
            assert told.exit_code == 0, told.output
        found = tree(out)
        assert found.keys() == wanted.keys()
        differing = {name for name in found if found[name] != wanted[name]}
        assert differing == {"report.json", "seal.json"}  # which name the data set
        report = json.loads((out / "report.json").read_text())
        assert (report["root"], report["config"]["data_set"]) == (str(place), str(place))
        looked = CliRunner().invoke(app, ["prepare", "packed", str(place), "--dry-run"])
        assert looked.exit_code == 0, looked.output
        assert re.search(r"training +45 images", looked.output), looked.output
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["0", "1"]


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_packed_set_that_is_not_as_it_was_written_is_not_prepared(whole, tmp_path, monkeypatch, layout):
    monkeypatch.setattr(set_exports, "PACKED_IMAGES", 20)
    packed, out = tmp_path / "packed", tmp_path / "prepared"
    export_set(whole, packed, layout)
    shard = sorted(packed.rglob("train-*"))[1]
    data = shard.read_bytes()

    def refused(message: str, *more: str) -> None:
        with pytest.raises(UserError, match=message) as refusal:
            prepare_people("packed", packed, out, options=dict(zip(more[::2], more[1::2], strict=True)))
        assert "\n" not in str(refusal.value)
        assert "tmp-" not in str(refusal.value)  # where it was unpacked for the time
        assert [path.name for path in tmp_path.iterdir()] == ["packed"]

    at = data.index(b"\xff\xd8", data.index(b"\xff\xd8") + 2) + 200  # in its second picture
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    refused(rf"packed/(data/)?{shard.name}: \S+\.jpg differs from its sha256 \(row 22 of manifest.parquet\)")
    shard.unlink()
    refused(shard.name)
    shard.symlink_to("/etc/passwd")
    refused(shard.name)
    shard.unlink()
    shard.write_bytes(data)
    refused("split.*nowhere", "split", "nowhere")
    refused(r"packed: \S*images/\S+jpg: is a generated picture|is a generated picture", "split", "gallery")
    (packed / "manifest.parquet").unlink()
    refused("packed: is no packed set: give one that export-set has written")
