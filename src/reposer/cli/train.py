"""``reposer train``: a network of any kind, by the name of its preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reposer.cli.options import Data, Device, MaxMinutes, SetOption, Threads, with_parameters

app = typer.Typer()


def training(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run of the same settings goes on.")],
    overrides: SetOption = None,
    max_minutes: MaxMinutes = None,
    threads: Threads = None,
    device: Device = "auto",
) -> Callable[[str], object]:
    """The parameters of every command that trains; returns what trains a preset and says how it went."""

    def train_it(preset: str) -> object:
        from reposer.workflows.train import train_preset

        limits: dict[str, Any] = {"threads": threads, "device": device, "max_minutes": max_minutes}
        return train_preset(preset, data, out, overrides or [], **limits)

    return train_it


@app.command()
@with_parameters(training, "how")
def train(
    preset: Annotated[
        str,
        typer.Argument(help="san_market_small, rsa_demo, patn_market, predictor_small, reid_demo, bot, ..."),
    ],
    how: Callable[[str], object],
) -> None:
    """Train a network of any kind; Ctrl-C saves first. Several GPUs: torchrun -m reposer train."""
    print(how(preset))
