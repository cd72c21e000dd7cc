"""``reposer augment``, ``forget`` and ``export-set``: larger training sets, and what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from reposer.cli.options import (
    LARGEST,
    LARGEST_SEED,
    Background,
    BatchSize,
    Data,
    Device,
    Model,
    ParserTerms,
    Predictor,
    Processes,
    Threads,
    finite,
)

app = typer.Typer()


@app.command()
def augment(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the set; an unfinished one of the same job goes on.")],
    factor: Annotated[
        int, typer.Option(min=2, max=1000, help="Images per real one: 1 real, the rest new.")
    ] = 2,
    donors: Annotated[
        str,
        typer.Option(
            help="any, same_camera, other_camera, compatible, same_identity, coverage or canonical."
        ),
    ] = "any",
    predictor: Predictor = None,
    background: Background = "generated",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the choice of donors.")] = 0,
    budget: Annotated[
        float,
        typer.Option(min=0, max=1, callback=finite, help="Share of a person's images that is used."),
    ] = 1.0,
    budget_seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of that choice.")] = 0,
    images: Annotated[
        Path | None, typer.Option(help="The data set that --data was made of, for --real link and copy.")
    ] = None,
    real: Annotated[str, typer.Option(help="Real images in the set: link, copy or none.")] = "link",
    filter_identity: Annotated[
        Path | None, typer.Option(help="Drop pictures that this Re-ID run does not take for their person.")
    ] = None,
    filter_sharpness: Annotated[bool, typer.Option("--filter-sharpness", help="Drop blurred ones.")] = False,
    filter_pose: Annotated[
        str | None, typer.Option(help="Drop those in another pose than the donor's, by this parser.")
    ] = None,
    accept_license: ParserTerms = False,
    png: Annotated[bool, typer.Option("--png", help="PNG instead of JPEG.")] = False,
    batch_size: BatchSize = 32,
    processes: Processes = 1,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Enlarge a Re-ID training set by pictures of its people in other poses; the same command goes on.

    With --predictor only the pose is the donor's: maps are predicted from what the source wears.
    """
    from reposer.generation.augmentation import AugmentOptions
    from reposer.generation.filters import FilterOptions
    from reposer.workflows.augment import augment_prepared

    filters = None
    if filter_identity or filter_sharpness or filter_pose:
        pose: Literal["merged8"] | None = "merged8" if filter_pose else None
        filters = FilterOptions(identity=filter_identity, sharpness=filter_sharpness, pose=pose)
    options = AugmentOptions(
        factor=factor,
        policy=donors,
        seed=seed,
        background=background,
        batch_size=batch_size,
        file_format="png" if png else "jpg",
        real=real,
        budget=budget,
        budget_seed=budget_seed,
        filters=filters,
    )
    print(
        augment_prepared(
            model,
            data,
            out,
            options,
            images=images,
            predictor=predictor,
            parser=filter_pose,
            accept_license=accept_license,
            processes=processes,
            threads=threads,
            device=device,
        )
    )


@app.command()
def forget(
    folder: Annotated[Path, typer.Argument(help="Folder written by `augment`.")],
    pid: Annotated[int, typer.Option(min=0, max=LARGEST, help="Number of the person.")],
    runs: Annotated[
        list[Path] | None, typer.Option(help="Folder of runs to look through for trainings on this set.")
    ] = None,
) -> None:
    """Remove a person from an augmented set: pictures of them or in their pose, and their real images."""
    from reposer.generation.forgetting import forget as forget_person

    print(forget_person(folder, pid, runs or ()))


@app.command("export-set")
def export_set(
    folder: Annotated[Path, typer.Argument(help="Folder written by `augment`.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    layout: Annotated[str, typer.Option(help="market, folders or list.")] = "market",
    copy: Annotated[bool, typer.Option("--copy", help="Copy files instead of linking them.")] = False,
) -> None:
    """Write an augmented set as other Re-ID programs read it; pictures that a filter dropped stay out."""
    from reposer.generation.set_exports import export_set as export

    print(export(folder, out, layout, copy=copy))
