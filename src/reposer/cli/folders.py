"""``reposer report`` and ``reposer verify``: what is in a folder, and is it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reposer.errors import UserError
from reposer.paths import printable

app = typer.Typer()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, an evaluation or the demo.")],
) -> None:
    """Write one self-contained HTML page about a folder: pictures, curves, tables, settings."""
    from reposer.report import write_report

    print(f"report: {write_report(folder)}")


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="Run, exported network; prepared, annotated or generated folder.")
    ],
) -> None:
    """Re-read a folder and compare every file with the hash that was written beside it."""
    from reposer.experiments.verification import verify_folder

    kind, faults = verify_folder(folder)
    print("\n".join(map(printable, faults)) if faults else f"{printable(folder)}: {kind}: nothing is wrong")
    if faults:
        raise UserError(f"{printable(folder)}: {kind}: {len(faults)} faults", "make the damaged files again")
