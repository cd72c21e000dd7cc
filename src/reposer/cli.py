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
WeightsFolder = Annotated[
    Path | None, typer.Option(help="Folder with .safetensors files of metric networks.")
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
    from reposer.progress import Stages

    report = prepare_market1501(
        root,
        out,
        holdout=holdout,
        size=_size(size),
        parsing=parsing,
        mask=mask,
        keypoints=keypoints,
        on_progress=Stages(),
    )
    print(report.summary())


@app.command()
def train(
    preset: Annotated[
        str, typer.Argument(help="san_market, san_market_small, san_demo, reid_demo, bot, ...")
    ],
    data: Annotated[Path, typer.Option(help="Folder written by `reposer prepare`.")],
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run of the same settings goes on.")],
    overrides: SetOption = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Save and stop after so many minutes; the same command goes on.")
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Train a generator or a Re-ID network; Ctrl-C saves first. Several GPUs: torchrun -m reposer train."""
    from reposer.experiments.trainings import train_preset

    print(
        train_preset(
            preset, data, out, overrides or [], threads=threads, device=device, max_minutes=max_minutes
        )
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, exported folder, hub id, or `shipped`.")],
    data: Annotated[Path, typer.Option(help="Folder written by `reposer prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder for table, per-image values and grid.")],
    pairs: Annotated[Path | None, typer.Option(help="CSV from,to; default: the validation pairs.")] = None,
    metrics: Annotated[str, typer.Option(help="Names, comma-separated; `list` prints them all.")] = "",
    weights: WeightsFolder = None,
    backgrounds: Annotated[
        str, typer.Option(help="generated, donor, source; comma-separated.")
    ] = "generated",
    limit: Annotated[int | None, typer.Option(help="Only the first so many pairs.")] = None,
    reid: Annotated[Path | None, typer.Option(help="Re-ID run: are generated people recognized?")] = None,
    threads: Threads = None,
) -> None:
    """Measure a generator beside the trivial baselines, every number with its protocol and interval."""
    from reposer.metrics.protocols import METRICS

    if metrics == "list":
        print("\n".join(f"{name:26} {metric.protocol}" for name, metric in METRICS.items()))
        return
    from reposer.evaluation.image_quality import DEFAULT_METRICS
    from reposer.experiments.image_evaluation import evaluate_model, open_model

    _set_threads(threads)
    generator = open_model(model)
    report = evaluate_model(
        generator,
        data,
        out,
        pairs_csv=pairs,
        metrics=_names(metrics) or DEFAULT_METRICS,
        weights=weights,
        backgrounds=_names(backgrounds),
        limit=limit,
    )
    print(report.to_markdown())
    if reid:
        from reposer.experiments.identity import measure_identity

        print(measure_identity(generator, reid, data, out))
    print(f"{out}: image_quality.json, .md, .parquet (per image), people.png")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Run folder, exported folder, hub id, or `shipped`.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures and their manifest; PNG file for one picture.")
    ],
    data: Annotated[Path | None, typer.Option(help="Prepared folder, with --pairs.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV from,to: source and donor of each picture.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="An image, or a folder with parsing/ and mask/.")
    ] = None,
    source_parsing: Annotated[Path | None, typer.Option(help="LIP-20 map of the source image.")] = None,
    donor: Annotated[Path | None, typer.Option(help="Image of the person who lends the pose.")] = None,
    donor_parsing: Annotated[Path | None, typer.Option(help="LIP-20 map of the donor.")] = None,
    background: Annotated[str, typer.Option(help="generated, donor or source.")] = "generated",
    batch_size: Annotated[int, typer.Option(help="Pictures of one forward pass.")] = 32,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="JPEG instead of PNG.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose people: a pair list, a folder, or one image; stopped jobs go on where they were."""
    from reposer.experiments.generating import generate_from_folder, generate_one, generate_pair_list
    from reposer.experiments.image_evaluation import open_model
    from reposer.generation.batch import Options

    _set_threads(threads)
    options = Options(background, "jpg" if jpeg else "png", batch_size)
    if data and pairs:
        print(generate_pair_list(open_model(model), data, pairs, out, options))
    elif source and donor and source.is_dir():
        print(generate_from_folder(open_model(model), source, donor, donor_parsing, out, options))
    elif source and donor:
        print(
            generate_one(open_model(model), (source, source_parsing), (donor, donor_parsing), out, background)
        )
    else:
        raise UserError("nothing to generate", "give --data and --pairs, or --source and --donor")


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
        Path, typer.Argument(help="Run, prepared folder, generated folder or exported generator.")
    ],
) -> None:
    """Re-read a folder and compare every file with the hash that was written beside it."""
    from reposer.experiments.verification import verify_folder

    kind, faults = verify_folder(folder)
    print("\n".join(faults) if faults else f"{folder}: {kind}: nothing is wrong")
    if faults:
        raise UserError(f"{folder}: {kind}: {len(faults)} faults", "make the damaged files again")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: not a size", "write HEIGHTxWIDTH, as 128x64")
    return int(height), int(width)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
