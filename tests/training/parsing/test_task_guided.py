"""Whole trainings of a guided parser on colored people: batches, resuming, and what becomes of the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import final_hashes

from reposer.annotation.parser import GuidedPersonParser, open_parser
from reposer.annotation.segmentation_model import export_parser
from reposer.config import apply_overrides, config_bytes
from reposer.data.parsing import convert
from reposer.errors import UserError
from reposer.storage.runs import read_metrics
from reposer.structures import MISSING_LABEL
from reposer.trained.networks import PARSER, of_run
from reposer.training.loop import train
from reposer.training.parsing import task as parsing
from reposer.training.parsing.config import ParsingConfig
from reposer.training.parsing.task import ParsingData
from reposer.workflows.train import parser_small, rendered_parser


def tiny(folder: Path, **changes) -> ParsingConfig:
    """12 steps of 4 images, a checkpoint every 5 steps; two of the six training people are only watched."""
    values = {
        "data": {"folder": str(folder), "tuning_people": 2},
        "guided": {"widths": [4, 6, 8, 8], "blocks": 1},
        "optimizer": {"epochs": 3, "warmup_steps": 2},
        "output": {"log_every": 3, "validate_every": 6, "checkpoint_every": 5},
        "initial": "random",
        "batch_size": 4,
        "threads": 1,
    }
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    return ParsingConfig.model_validate_json(json.dumps(values))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "guided"
    summary = train(tiny(prepared), run, device="cpu")
    assert (summary.step, summary.finished) == (12, True)
    return run


def test_processes_share_a_batch_whose_samples_do_not_change(prepared):
    whole = ParsingData(tiny(prepared)).guided_batch(3)
    images, masks, joints = whole.inputs
    assert images.shape == (4, 3, 32, 16)
    assert images.dtype == masks.dtype == whole.maps.dtype == torch.uint8
    assert joints.shape == (4, 18, 2)
    assert set(masks.unique().tolist()) <= {0, 1, MISSING_LABEL}
    parts = [ParsingData(tiny(prepared), rank, 2).guided_batch(3) for rank in range(2)]
    for number, value in enumerate(whole.inputs):
        both = torch.cat([part.inputs[number] for part in parts])
        assert torch.equal(both.nan_to_num(-1), value.nan_to_num(-1))
    assert torch.equal(torch.cat([part.maps for part in parts]), whole.maps)
    assert [name for part in parts for name in part.names] == whole.names
    assert not torch.equal(ParsingData(tiny(prepared)).guided_batch(4).inputs[0], images)


@pytest.mark.slow
def test_a_run_watches_parts_and_resumes_bit_for_bit(whole, prepared, tmp_path, monkeypatch):
    watched = [line for line in read_metrics(whole) if "validation/miou" in line]
    assert [line["step"] for line in watched] == [6, 12]
    assert all(0 <= line["validation/parts_miou"] <= 1 for line in watched)
    real, calls = parsing.parsing_loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(parsing, "parsing_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(prepared), tmp_path / "run", device="cpu")
    train(tiny(prepared), tmp_path / "run", device="cpu")
    assert final_hashes(tmp_path / "run") == final_hashes(whole)


def test_a_run_is_a_parser_by_its_folder(whole, tmp_path):
    parser = open_parser(whole)
    assert isinstance(parser, GuidedPersonParser)
    images = torch.randint(0, 256, (3, 3, 40, 20), dtype=torch.uint8)  # another size than it was trained at
    masks = torch.zeros(3, 40, 20, dtype=torch.bool)
    masks[:2, 8:30, 5:15] = True  # nobody was found in the third
    joints = torch.full((3, 18, 2), torch.nan)
    maps = parser(images, joints, masks)
    assert maps.shape == (3, 40, 20)
    assert maps.dtype == torch.uint8
    assert torch.equal(maps[:2] > 0, masks[:2])
    assert torch.equal(maps[2:], parser(images[2:]))
    assert of_run(PARSER, whole).info.generator == "guided_parser"
    with pytest.raises(UserError, match="sees masks and joints"):
        export_parser(whole, tmp_path / "my.onnx")


def test_earlier_runs_keep_their_files():
    """What is new stays out of the configuration of a parser that is not guided."""
    assert b"guided" not in config_bytes(parser_small())
    assert b"randomize" not in config_bytes(parser_small())
    assert b"guided" in config_bytes(rendered_parser())
    with pytest.raises(ValueError, match="initial=random"):
        rendered_parser().changed(initial="imagenet")


@pytest.mark.parametrize(
    ("preset", "change"),
    [
        (rendered_parser, "parser.widths=[8,8,8,8]"),
        (rendered_parser, "parser.keras=true"),
        (rendered_parser, "augment.zoom=0.3"),
        (rendered_parser, "augment.flip=0"),
        (rendered_parser, "optimizer.encoder_factor=1"),
        (parser_small, "randomize.blur=0"),
        (parser_small, "randomize.no_mask=0.9"),
    ],
)
def test_what_a_parser_would_not_read_is_refused(preset, change):
    name = change.split("=")[0].removeprefix("optimizer.").split(".")[0]
    with pytest.raises(UserError, match=f"{name} is given but (only )?a guided parser would (not )?read it"):
        apply_overrides(preset(), [change])


def test_what_a_parser_reads_may_be_set():
    changes = ["guided.widths=[8,8,8,8]", "randomize.blur=0", "optimizer.lr=1e-3"]
    assert apply_overrides(rendered_parser(), changes).guided.widths == (8, 8, 8, 8)
    plain = apply_overrides(parser_small(), ["parser.widths=[8,8,8,8]", "augment.zoom=0.3"])
    assert (plain.parser.widths, plain.augment.zoom) == ((8, 8, 8, 8), 0.3)


def test_parts_join_the_labels_that_look_alike():
    assert (
        parsing._PARTS.tolist() == convert(np.arange(20, dtype=np.uint8)[None], "lip20", "parts8")[0].tolist()
    )
    assert parsing._PARTS[[1, 2]].tolist() == [1, 1]  # hat and hair
    assert parsing._PARTS[[8, 16, 17]].tolist() == [6, 6, 6]  # socks and legs
