"""The command line: ``reposer VERB``. Torch and the rooms are imported inside the commands: help is instant.

Exit codes: 0 done, 1 something the user can mend, 2 wrong usage, 130 interrupted, 143 stopped by a scheduler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reposer.errors import UserError

app = typer.Typer(
    name="reposer",
    help="Re-pose people to train better person re-identification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
prepare_app = typer.Typer(
    help="Index, check and pack a data set; the originals are never touched.", no_args_is_help=True
)
app.add_typer(prepare_app, name="prepare")

Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting, as optimizer.lr=1e-4; repeatable.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Folder with weight files of outside networks (default: the torch cache).")
]


def main() -> None:
    """Run the command line and turn errors into one clear line and an exit code."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv[1:])
    try:
        code = app(args=arguments, standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error knows how to print itself
            error.show()
            code = error.exit_code
        else:
            print(
                f"error: {type(error).__name__}: {error} (a fault of ours; --debug shows where)",
                file=sys.stderr,
            )
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every verb (``--debug`` is taken out of the line before this is read)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A tenth of the work, to see that everything runs.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose the built-in rendered people, measure, train a little, and write a report: no data needed."""
    from reposer.experiments.demo import run_demo

    report = run_demo(out, quick=quick, threads=threads)
    print(f"report: {report}")


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="Folder to write, in Market-1501's layout.")],
    identities: Annotated[int, typer.Option(help="Training people.")] = 64,
    test_identities: Annotated[int, typer.Option(help="Test people (query and gallery).")] = 16,
    images: Annotated[int, typer.Option(help="Images a person.")] = 16,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "128x64",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Render people with exact parsing, masks and key-points: a data set without any real person in it."""
    from reposer.data.rendered.dataset import write_rendered_dataset

    summary = write_rendered_dataset(
        out,
        identities=identities,
        test_identities=test_identities,
        images_per_identity=images,
        size=_size(size),
        seed=seed,
    )
    print(summary)


@prepare_app.command("market1501")
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

    report = prepare_market1501(
        root, out, holdout=holdout, size=_size(size), parsing=parsing, mask=mask, keypoints=keypoints
    )
    print(report.summary())


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: not a size", "write HEIGHTxWIDTH, as 128x64")
    return int(height), int(width)
