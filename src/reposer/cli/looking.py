"""``reposer report``, ``verify`` and ``serve``: looking at what is in a folder; ``forget``, ``export-set``,
``unpack-set``: what is done with an augmented set."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, TypeVar

import typer

from reposer.cli.options import (
    LARGEST,
    Device,
    MayDownload,
    NetworkFolder,
    NetworkTerms,
    Threads,
    claim_out,
)
from reposer.errors import UserError
from reposer.storage.paths import printable

_Made = TypeVar("_Made")
_OPENED_LATER = ("transport", "shipped-predictor", "auto")  # generator, predictor and device, unless named
app = typer.Typer()


# ---- ``reposer report`` and ``reposer verify``: what is in a folder, and is it whole.


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
    from reposer.workflows.verify import verify_folder

    kind, faults = verify_folder(folder)
    print("\n".join(map(printable, faults)) if faults else f"{printable(folder)}: {kind}: nothing is wrong")
    if faults:
        raise UserError(f"{printable(folder)}: {kind}: {len(faults)} faults", "make the damaged files again")


# ---- ``reposer serve``: the same folders in a browser.


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder of sets, annotated people, runs and studies; looked through.")
    ] = Path("."),
    host: Annotated[str, typer.Option(help="Address to listen on; this machine alone sees 127.0.0.1.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8765,
    generator: Annotated[
        str, typer.Option(help="Who poses people: run folder, export, hub:owner/name, shipped or transport.")
    ] = _OPENED_LATER[0],
    predictor: Annotated[
        str, typer.Option(help="Predictor of label maps, of the same size; none: by joints alone.")
    ] = _OPENED_LATER[1],
    parser: Annotated[str | None, typer.Option(help="Of photos, as for `annotate`.")] = None,
    mask: Annotated[str | None, typer.Option(help="Of photos, as for `annotate`.")] = None,
    keypoints: Annotated[str | None, typer.Option(help="Of photos, as for `annotate`.")] = None,
    detect: Annotated[
        str | None, typer.Option(help="Who finds the people of a photo, as for `annotate`; or none.")
    ] = None,
    weights: NetworkFolder = None,
    accept_license: NetworkTerms = False,
    download: MayDownload = None,
    threads: Threads = None,
    device: Device = _OPENED_LATER[2],
) -> None:
    """A page of this machine: pose people by hand, keep or drop a folder's pictures, read its reports."""
    try:
        from reposer.app.server import serve as answer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn"):
            raise
        problem = f"the page needs {error.name}, not installed here"
        raise UserError(problem, "pip install reposer[serve]") from error
    given = {"parser": parser, "mask": mask, "keypoints": keypoints, "detect": detect}
    if weights is not None:
        os.environ["REPOSER_WEIGHTS"] = str(weights.absolute())
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    def opened() -> Any:
        from reposer.annotation.annotators import AnnotatorChoice
        from reposer.annotation.interfaces import AUTO
        from reposer.workflows.studio import open_studio

        how: dict[str, Any] = {"detect": AUTO, "accept_license": accept_license, "may_download": download}
        choice = AnnotatorChoice(**how | named)
        return open_studio(generator, predictor, choice, at_once=bool(named), threads=threads, device=device)

    studio = _once(opened)
    if named or (generator, predictor, device) != _OPENED_LATER:
        studio()  # what somebody names may not be there, and is said now
    with suppress(KeyboardInterrupt):
        answer(folder, studio, host=host, port=port)


def _once(make: Callable[[], _Made]) -> Callable[[], _Made]:
    """``make``, called for whoever asks first, while others wait; after an error again."""
    turn, made = Lock(), list[_Made]()

    def get() -> _Made:
        with turn:
            if not made:
                made.append(make())
            return made[0]

    return get


# ---- ``reposer forget``, ``export-set`` and ``unpack-set``: what is done with an augmented set.


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
    out: Annotated[str, typer.Option(help="New folder; of a packed layout also a bucket's, s3://...")],
    layout: Annotated[str, typer.Option(help="market, folders, list, webdataset or parquet.")] = "market",
    copy: Annotated[bool, typer.Option("--copy", help="Copy files instead of linking them.")] = False,
) -> None:
    """Write an augmented set as other Re-ID programs read it; pictures that a filter dropped stay out."""
    from reposer.storage.files import is_remote

    if not is_remote(out):
        claim_out("export-set", Path(out), folder)
    from reposer.generation.set_exports import export_set as export

    print(export(folder, out, layout, copy=copy))


@app.command("unpack-set")
def unpack_set(
    folder: Annotated[
        str, typer.Argument(help="Folder of `export-set`, layout webdataset or parquet; or s3://... of it.")
    ],
    out: Annotated[Path, typer.Option(help="New folder.")],
) -> None:
    """Write the images of a packed set as files, each held against its sha256: the layout list."""
    from reposer.storage.files import is_remote

    claim_out("unpack-set", out, None if is_remote(folder) else folder)
    from reposer.data.layouts.tables import unpack_set as unpack

    print(unpack(folder, out))
