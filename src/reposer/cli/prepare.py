"""``reposer prepare LAYOUT``: index, check and pack a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reposer.cli.options import parse_size

app = typer.Typer(
    help="Index, check and pack a data set; the originals are never touched.", no_args_is_help=True
)


@app.command("market1501")
def prepare_market(
    root: Annotated[
        Path, typer.Argument(help="Folder that holds bounding_box_train/ (and query/, bounding_box_test/).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    holdout: Annotated[
        int, typer.Option(help="Hold out this many people with the highest pids, for validation.")
    ] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the packed images.")] = "128x64",
    parsing: Annotated[Path | None, typer.Option(help="Parsing maps; default ROOT/parsing.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Person masks; default ROOT/mask.")] = None,
    keypoints: Annotated[Path | None, typer.Option(help="Key-point CSV; default ROOT/keypoints.csv.")] = None,
) -> None:
    """Market-1501 or any data set in its layout and names."""
    from reposer.data.prepare import prepare_market1501
    from reposer.progress import Stages

    report = prepare_market1501(
        root,
        out,
        holdout=holdout,
        size=parse_size(size),
        parsing=parsing,
        mask=mask,
        keypoints=keypoints,
        on_progress=Stages(),
    )
    print(report.summary())
