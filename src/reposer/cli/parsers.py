"""``reposer export-parser``: a trained parser for use by ``--parser``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("export-parser")
def export_parser(
    run: Annotated[Path, typer.Argument(help="Run folder of `reposer train parser_small`.")],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write; its description goes beside it.")],
) -> None:
    """Write a trained parser as an ONNX file and its description."""
    from reposer.annotation.export import export_parser as write

    print(f"{write(run, out)}: with {out.with_suffix('.json').name}")
