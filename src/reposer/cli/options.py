"""Options and small parsers that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from reposer.errors import LARGEST, LARGEST_SEED, MOST_AT_ONCE, MOST_SIDE_BY_SIDE, UserError

__all__ = ["LARGEST", "LARGEST_SEED", "MOST_SIDE_BY_SIDE"]  # for the commands


def finite(value: float | None) -> float | None:
    """Of a command line's number: NaN is in every range of click's, and infinity in the open ones."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Threads = Annotated[
    int | None, typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="CPU threads; default: all cores.")
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=LARGEST,
        callback=finite,
        help="Save and stop then; the same command goes on.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST_AT_ONCE, help="Pictures of one forward pass.")]
Processes = Annotated[
    int, typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="Side by side; --threads is for each.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting, as optimizer.lr=1e-4; repeatable.")
]
Model = Annotated[
    str, typer.Argument(help="Run folder, exported folder, hub:owner/name, `shipped` (SAN) or `shipped-rsa`.")
]
Predictor = Annotated[
    str | None,
    typer.Option(
        help="Predictor of label maps: run folder of `train predictor_small`, export, hub:owner/name, or"
        " `shipped-predictor`."
    ),
]
WeightsFolder = Annotated[
    Path | None, typer.Option(help="Folder with .safetensors files of metric networks.")
]


def parse_size(text: str) -> tuple[int, int]:
    """ "128x64" -> (128, 64): height, width.

    Raises:
        UserError: anything else.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: not a size", "write HEIGHTxWIDTH, as 128x64")
    return int(height), int(width)


def parse_names(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def set_threads(threads: int | None) -> None:
    """Of the CPU, for everything PyTorch does from here on; None leaves its choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
