"""``reposer study``: does it help, by how much, and is that luck?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reposer.cli.options import MOST_SIDE_BY_SIDE, SetOption, parse_names

app = typer.Typer()


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="augmentation, market_dev, san_table or ablations.")],
    data: Annotated[Path, typer.Option(help="Folder written by `reposer prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command goes on.")],
    generator: Annotated[
        str, typer.Option(help="Run folder, exported folder, hub id, or `shipped`; not for ablations.")
    ] = "shipped",
    arms: Annotated[str, typer.Option(help="Only these arms (rows), comma-separated.")] = "",
    variants: Annotated[
        list[str] | None,
        typer.Option("--arm", help="One more arm, as 'NAME=ARM FIELD=VALUE ...'; repeatable."),
    ] = None,
    predictor: Annotated[
        str, typer.Option(help="Predictor of target maps for the arms x2_predicted...: run folder or export.")
    ] = "",
    parser: Annotated[
        str, typer.Option(help="Parser for arms that judge poses: .onnx file of `export-parser`.")
    ] = "",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You accept the terms of the parser's weights.")
    ] = False,
    overrides: SetOption = None,
    workers: Annotated[
        int,
        typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="Processes, each with --set threads=N of its own."),
    ] = 1,
) -> None:
    """Compare ways to train, with controls, seeds and p-values; every finished stage is kept and shared."""
    from reposer.report import write_report

    chosen = parse_names(arms)
    if name == "ablations":
        from reposer.errors import UserError
        from reposer.experiments.ablations import ablations, run_ablations

        if variants or predictor or parser:
            raise UserError(
                "study ablations: has no use for --arm, --predictor and --parser", "leave them out"
            )
        run_ablations(ablations(data, chosen, overrides or []), out, workers=workers)
    else:
        from reposer.experiments.studies import configure, run_study

        made = configure(
            name,
            data,
            generator,
            chosen,
            overrides or [],
            predictor=predictor,
            parser=parser,
            accept_licence=accept_licence,
            variants=variants or [],
        )
        run_study(made, out, workers=workers)
    print((out / "table.md").read_text())
    lead = "Every number on this page was measured by `reposer study`; its files lie in the same folder."
    print(f"report: {write_report(out, title=f'Reposer study: {name}', lead=lead)}")
