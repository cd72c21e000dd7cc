"""``reposer annotate``: parsing maps, masks and keypoints for a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reposer.cli.options import LARGEST, BatchSize, Processes, Threads, set_threads
from reposer.errors import UserError

app = typer.Typer()


@app.command()
def annotate(
    folder: Annotated[Path, typer.Argument(help="Folder of crops of people, or of photos; only read.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Another folder, which gets the images too; default: beside the images."),
    ] = None,
    parser: Annotated[
        str,
        typer.Option(
            help="schp_lip, schp_atr, segformer_clothes, fashn, my.onnx (and my.json), a folder, or none."
        ),
    ] = "schp_lip",
    mask: Annotated[
        str,
        typer.Option(
            help="parsing (what the label map calls a person), maskrcnn_v2, maskrcnn, a folder, or none."
        ),
    ] = "parsing",
    keypoints: Annotated[
        str,
        typer.Option(
            help="none, keypointrcnn, vitpose, or {openpose,viton,pidm}:FOLDER, {alphapose,colon,comma}:FILE."
        ),
    ] = "none",
    sides: Annotated[
        str | None,
        typer.Option(help="Who tells left from right: model, keypoints; default: as the parser says."),
    ] = None,
    detect: Annotated[
        str | None,
        typer.Option(help="The images are photos: cut people out first, by maskrcnn_v2 or keypointrcnn."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Only so many, into OUT/annotation/sample: a look."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the models' files; default $REPOSER_WEIGHTS.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You accept the terms of the models' weights.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Get official weights that are not on this machine.")
    ] = False,
    batch_size: BatchSize = 32,
    processes: Processes = 1,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Make parsing maps, masks and keypoints beside the images, and a page that shows them.

    `--sample 64` first, and look; then the whole folder; then `reposer prepare`. NAME=FILE is another file of
    a known network, as maskrcnn_v2=mine.pth. The same command goes on where it stopped.
    """
    from reposer.annotation.annotate import AnnotateOptions
    from reposer.annotation.annotate import annotate as annotate_folder
    from reposer.annotation.annotators import NONE, AnnotatorChoice, chosen_sides
    from reposer.annotation.journal import BOOK
    from reposer.report import write_report
    from reposer.storage.paths import printable

    set_threads(threads)
    if weights is not None:
        os.environ["REPOSER_WEIGHTS"] = str(weights.absolute())  # for the processes started here as well
    choice = AnnotatorChoice(
        parser, mask, keypoints, detect or NONE, accept_license, download, device, chosen_sides(sides)
    )
    with ExitStack() as meters:
        how = AnnotateOptions(batch_size, sample, processes, partial(_meter, meters))
        report = annotate_folder(folder, out, choice.open, choice.open_detector if detect else None, how)
    print(report)
    page = write_report(report.root / BOOK, f"Annotations of {folder.name}", str(report.root))
    print(f"look at {page}")
    if not report.annotated:
        raise UserError(
            f"{printable(folder)}: none of {report.images:,} images could be annotated",
            "see annotation/problems.csv for what is wrong with each",
        )


def _meter(meters: ExitStack, stage: str) -> Callable[[int, int], None]:
    """A progress line for a stage of the job; the stage before has ended."""
    from reposer.progress import Meter, progress

    meters.close()
    started: list[Meter] = []

    def show(done: int, total: int) -> None:
        if not started:
            started.append(meters.enter_context(progress(total, done, "images", title=stage)))
        started[0].update(done)

    return show
