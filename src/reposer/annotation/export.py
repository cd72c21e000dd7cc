"""A trained parser as an ONNX file with its description beside it: what ``--parser my.onnx`` takes."""

from __future__ import annotations

from pathlib import Path

import torch

from reposer.annotation.segmentation_model import SegmentationModel
from reposer.config import config_bytes
from reposer.errors import UserError
from reposer.files import claim_outputs, holds_keys, is_older, write_output
from reposer.models.onnx_export import export_module
from reposer.models.parsing_network import parsing_network_from_run

INPUT, OUTPUT = "image", "scores"


def export_parser(run_dir: str | Path, path: str | Path) -> Path:
    """Write ``x.onnx`` and ``x.json`` from the newest checkpoint of a run of ``reposer train parser_small``.

    Args:
        run_dir: the run.
        path: x.onnx; each file appears complete or not at all, the description last.

    Raises:
        UserError: no such run, another suffix, a missing package, or the disk refuses.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path}: not an .onnx file", "give a name that ends with .onnx")
    claim_outputs(path.parent, [path.name, path.with_suffix(".json").name], older=_is_older(path))
    network, facts = parsing_network_from_run(run_dir)
    height, width = facts["size"]
    half = (0.5, 0.5, 0.5)  # model float: [-1, 1]
    # it mixes up legs (docs/results.md), so key-points decide where there are any
    description = SegmentationModel(
        size=(height, width), labels="lip20", mean=half, std=half, sides="keypoints"
    )
    export_module(network, torch.zeros(2, 3, height, width), path, (INPUT, OUTPUT))
    write_output(path.with_suffix(".json"), config_bytes(description))
    return path


def _is_older(path: Path) -> bool:
    """Whether a description of this program's form lies beside the file, from before outputs were listed."""
    return is_older(path.with_suffix(".json"), holds_keys("size", "labels", "mean", "std", "sides"))
