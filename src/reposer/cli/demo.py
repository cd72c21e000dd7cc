"""``reposer demo`` and ``reposer render``: everything that needs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reposer.cli.options import LARGEST_SEED, Threads, parse_size

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A tenth of the work, to see that everything runs.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose the built-in rendered people, measure, train a little, and write a report: no data needed."""
    from reposer.experiments.demo import run_demo
    from reposer.report import write_report

    page = write_report(
        run_demo(out, quick=quick, threads=threads),
        title="Reposer: people re-posed",
        lead="Rendered people, a shipped SAN, and a SAN trained from scratch a moment ago.",
    )
    print(f"report: {page}")


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="Folder to write, in Market-1501's layout.")],
    identities: Annotated[int, typer.Option(min=1, max=9999, help="Training people.")] = 64,
    test_identities: Annotated[
        int, typer.Option(min=0, max=9999, help="Test people (query and gallery).")
    ] = 16,
    images: Annotated[int, typer.Option(min=1, max=9999, help="Images a person.")] = 16,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "128x64",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same bytes.")] = 0,
) -> None:
    """Render people with exact parsing, masks and key-points: a data set without any real person in it."""
    from reposer.data.rendered.dataset import write_rendered_dataset

    summary = write_rendered_dataset(
        out,
        identities=identities,
        test_identities=test_identities,
        images_per_identity=images,
        size=parse_size(size),
        seed=seed,
    )
    print(summary)
