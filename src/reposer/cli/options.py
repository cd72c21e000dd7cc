"""Options and small parsers that several commands share.

The files of this folder leave their annotations as they are, not as texts (PEP 563): typer evaluates texts
several times for each command, which made ``--help`` a third slower.
"""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from reposer.errors import LARGEST, LARGEST_SEED, MOST_AT_ONCE, MOST_SIDE_BY_SIDE, MOST_SOURCES, UserError
from reposer.storage.paths import CHECKPOINTS, printable, refuse_inputs, require_writable

__all__ = ["LARGEST", "LARGEST_SEED", "MOST_SIDE_BY_SIDE"]  # for the commands


def finite(context: typer.Context, option: typer.CallbackParam, value: float | None) -> float | None:
    """Of a command line's number: NaN is in every range of click's, and infinity in the open ones."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.", context, param_hint=option.opts)
    return value


Threads = Annotated[
    int | None, typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="CPU threads; default: all cores.")
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=LARGEST,
        callback=finite,
        help="Save and stop then; the same command goes on.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST_AT_ONCE, help="Pictures of one forward pass.")]
Processes = Annotated[
    int, typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="Side by side; --threads is for each.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting, as optimizer.lr=1e-4; repeatable.")
]
Model = Annotated[
    str,
    typer.Argument(
        help="Run folder, exported folder, hub:owner/name, `shipped` (SAN), `shipped-rsa` or"
        " `shipped-transport`."
    ),
]
Predictor = Annotated[
    str | None,
    typer.Option(
        help="Predictor of label maps: run folder of `train predictor_small`, export, hub:owner/name, or"
        " `shipped-predictor`."
    ),
]
WeightsFolder = Annotated[
    Path | None, typer.Option(help="Folder with .safetensors files of metric networks.")
]


Data = Annotated[Path, typer.Option(help="Folder written by `reposer prepare`.")]
Sources = Annotated[
    int,
    typer.Option(min=1, max=MOST_SOURCES, help="Images of a person that a picture is made from, at most."),
]
Camera = Annotated[
    str, typer.Option(help="source, or donor: its colors and number, with --background donor.")
]
Budget = Annotated[
    float, typer.Option(min=0, max=1, callback=finite, help="Share of a person's images that is used.")
]
Background = Annotated[str, typer.Option(help="generated, donor or source.")]
ParserTerms = Annotated[
    bool, typer.Option("--accept-license", help="You accept the terms of the parser's weights.")
]


NetworkFolder = Annotated[
    Path | None, typer.Option(help="Folder of the networks' files; default $REPOSER_WEIGHTS.")
]
NetworkTerms = Annotated[
    bool, typer.Option("--accept-license", help="You accept the terms of the networks' weights.")
]
MayDownload = Annotated[
    bool | None,
    typer.Option(
        "--download/--no-download",
        help="Get official weights that are not on this machine; default: those free for all.",
    ),
]


Engine = Annotated[
    str, typer.Option(help="here, or ray: as many workers as --processes (study: --workers) says, by Ray.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Of Ray's cluster, HOST:PORT or auto; default: a cluster of this machine, for now."),
]
Cpus = Annotated[
    float, typer.Option(min=0, max=MOST_SIDE_BY_SIDE, callback=finite, help="Of each worker of Ray.")
]
Gpus = Annotated[
    float, typer.Option(min=0, max=64, callback=finite, help="Of each worker of Ray; 0.5: two share one.")
]


_LEASE = 120.0  # seconds, jobs.workers.LEASE


def stepping(
    step: Annotated[
        str, typer.Option(help="all, or one for many workers: plan once, work anywhere, finish once.")
    ] = "all",
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: where worker I of N begins; default: as SLURM, torchrun or Kubernetes say."),
    ] = None,
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            callback=finite,
            help="With --step plan or --engine ray: a worker silent for so many seconds is lost.",
        ),
    ] = _LEASE,
    engine: Engine = "here",
    address: Address = None,
    cpus: Cpus = 1.0,
    gpus: Gpus = 0.0,
) -> Any:
    """The parameters of a job that many workers share; returns a jobs.workers.Step."""
    from reposer.jobs.workers import Step, parse_shard

    cluster = ray_cluster(engine, address, cpus, gpus)
    if cluster is not None and step != "all":
        raise UserError(f"--step {step} with --engine ray, which does all steps", "leave one of them out")
    made = Step(step, None if shard is None else parse_shard(shard), lease, cluster)
    if made.shard is not None and step != "work":
        raise UserError(f"--shard {shard}: is for --step work", "add that, or leave --shard out")
    if (
        lease != _LEASE and cluster is None and step == "all"
    ):  # further steps are "the same command with --step"
        problem = f"--lease {lease:g}: is for many workers, and this is one"
        raise UserError(problem, "add --step plan or --engine ray, or leave --lease out")
    return made


def filtering(
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="Drop pictures by identity, pose, sharpness, ...; or KEY=VALUE; repeatable."
        ),
    ] = None,
    reid: Annotated[Path | None, typer.Option(help="Re-ID run, for --filter identity.")] = None,
    parser: Annotated[
        str | None, typer.Option(help="Parser, for --filter pose: .onnx file, folder or name.")
    ] = None,
    filter_identity: Annotated[
        Path | None, typer.Option(help="The same as --filter identity --reid RUN.")
    ] = None,
    filter_sharpness: Annotated[
        bool, typer.Option("--filter-sharpness", help="The same as --filter sharpness.")
    ] = False,
    filter_pose: Annotated[
        str | None, typer.Option(help="The same as --filter pose --parser PARSER.")
    ] = None,
    accept_license: ParserTerms = False,
) -> tuple[Any, dict[str, Any]]:  # FilterOptions or None, and what the filters need
    """The parameters that say which pictures are dropped."""
    from reposer.generation.filters import filter_options

    short = {"identity": filter_identity, "pose": filter_pose, "sharpness": filter_sharpness}
    chosen = filter_options([*(name for name, value in short.items() if value), *(filters or ())])
    if (filter_pose and parser) or (filter_identity and reid):
        raise UserError(
            "two options name one thing", "give --parser or --filter-pose, --reid or --filter-identity"
        )
    refuse_useless("no --parser", {"--accept-license": accept_license and not (filter_pose or parser)})
    return chosen, {
        "reid_run": filter_identity or reid,
        "parser": filter_pose or parser,
        "accept_license": accept_license,
    }


def ray_cluster(engine: str, address: str | None, cpus: float, gpus: float) -> Any:
    """A jobs.workers.RayCluster, or None where this machine works.

    Raises:
        UserError: an unknown engine, or an address, CPUs or GPUs for none.
    """
    from reposer.errors import known
    from reposer.jobs.workers import RayCluster

    if known("engine", engine, ("here", "ray")) == "ray":
        return RayCluster(address, cpus, gpus)
    of_ray = {"address": address, "cpus": None if cpus == 1 else f"{cpus:g}"}
    of_ray["gpus"] = None if gpus == 0 else f"{gpus:g}"
    for name, value in of_ray.items():
        if value is not None:
            raise UserError(f"--{name} {value}: is for --engine ray", f"add that, or leave --{name} out")
    return None


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Its parameters, by keyword only: one that must be given may then follow one that need not."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def command_with(
    parameters: Sequence[inspect.Parameter], run: Callable[..., None], like: Callable[..., Any]
) -> Callable[..., None]:
    """``run`` as a command with these parameters, given by keyword; its name and help are ``like``'s."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = like.__name__, inspect.getdoc(like)
    return run


def with_parameters(
    shared: Callable[..., Any], place: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command takes the parameters of ``shared`` where its own parameter ``place`` stands.

    It is called with what ``shared`` returns for them as that parameter, so that several commands have the
    same options, written down once.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = inspect.signature(shared).parameters

        def run(**values: Any) -> None:
            made = shared(**{name: values.pop(name) for name in names})
            command(**values, **{place: made})

        parameters = []
        for parameter in parameters_of(command):
            parameters += parameters_of(shared) if parameter.name == place else [parameter]
        return command_with(parameters, run, command)

    return decorate


# ---- What a command leaves in the folder of its --out: with anything else there it is refused.

_EXPORT = ("model.safetensors", "config.json", "README.md", "embedding.onnx", "seal.json")
_IMAGE_SCORES = ("image_quality.*", "map_quality.*", "identity.json", "people.png", "maps.png")
_REID_SCORES = ("reidentification.*", "features.*", "cmc.png", "ranklist_*.png", "map_*.png")
_PICTURES = ("job.json", "images", "manifest", "problems.csv", "seal.json")
_SET = (
    *_PICTURES,
    "real",
    "real.parquet",
    "_real.sha256",
    "summary.json",
    "packed_*",
    "forgetting.json",
    "removed.json",
)
_RUN = ("environment.json", "metrics.jsonl", "samples", CHECKPOINTS)  # before it is a run
OUTPUT_NAMES: dict[str, tuple[str, ...]] = {
    "demo": (
        *("people", "prepared", "prepared_single_camera", "training", "pictures", "evaluation", "study"),
        "sections.json",
    ),
    "render": ("bounding_box_*", "query", "parsing", "mask", "people.json", "keypoints.csv"),
    "study": (
        "study.json",
        "stages",
        "workers",
        "table.*",
        "pictures",
        "sections.json",
        "mistakes.*",
        "seal.json",
    ),
    "export-run": _EXPORT,
    "import-weights": _EXPORT,
    "export-parser": (),
    "annotate": ("annotation",),
    "train": _RUN,
    "evaluate": _IMAGE_SCORES,
    "generate": (*_PICTURES, "*___*.png", "*___*.jpg"),  # these: an image in several poses
    "repose": ("pictures", "contact_sheet.png", "repose.json"),
    "augment": _SET,
    "export-set": (),
    "unpack-set": (),
    "prepare": ("report.json", "manifest.parquet", "problems.csv", "pairs_*.csv", "packed", "seal.json"),
    "reid train": _RUN,
    "reid evaluate": _REID_SCORES,
    "reid score": _REID_SCORES,
    "reid export": _EXPORT,
}
# Known by a file: a run, which may hold its own evaluations; annotated people, who have any name; and what is
# looked through in full by the command itself.
_MARKS = {
    "prepare": ("report.json",),
    "render": ("people.json",),
    "train": ("config.json",),
    "reid train": ("config.json",),
    "annotate": ("annotation/job.json", "annotation/photos/job.json"),
}
PICTURES = (".png", ".jpg", ".jpeg")
_FILES = {"generate": PICTURES, "export-parser": (".onnx",)}  # that --out may be itself


def refuse_useless(what: str, options: Mapping[str, object]) -> None:
    """Refuse options that were given and that ``what`` would pass over in silence.

    Args:
        options: name -> its value, false where it was not given.

    Raises:
        UserError: names them.
    """
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(f"{what}: has no use for {' and '.join(given)}", "leave it out")


def claim_out(command: str, out: Path, *inputs: str | Path | None) -> None:
    """Refuse an output that would go over what is read, or that lies among what others wrote; the first
    thing that every command with an output does.

    Args:
        command: a key of OUTPUT_NAMES.
        out: of its --out, or the argument that says where it writes.
        inputs: what it reads.

    Raises:
        UserError: ``out`` holds one of the inputs, or a file that this command did not write; or nothing can
            be written there.
    """
    from reposer.storage.outputs import refuse_others

    refuse_inputs(out, *inputs)
    if out.suffix.lower() in _FILES.get(command, ()) and not os.path.isdir(out):
        if command == "generate" and os.path.lexists(out):
            from reposer.generation.pictures import claim_picture

            claim_picture(out)
        require_writable(out.parent)
        return
    refuse_others(out, OUTPUT_NAMES[command], marks=_MARKS.get(command, ()), page="report.html")


_LONGEST_SIDE = 4096  # pixels


def parse_size(text: str) -> tuple[int, int]:
    """ "128x64" -> (128, 64): height, width.

    Raises:
        UserError: anything else, or a side of more than 4,096 pixels.
    """
    height, _, width = text.lower().partition("x")
    sides = [int(side) for side in (height, width) if side.isascii() and side.isdigit() and len(side) < 6]
    if len(sides) < 2 or not all(1 <= side <= _LONGEST_SIDE for side in sides):
        advice = f"write HEIGHTxWIDTH, as 128x64, each at most {_LONGEST_SIDE:,}"
        raise UserError(f"--size {printable(text[:40])}: not a size", advice)
    return sides[0], sides[1]


def parse_names(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_some(option: str, text: str) -> list[str]:
    """:func:`parse_names`, at least one.

    Raises:
        UserError: there is none.
    """
    if names := parse_names(text):
        return names
    raise UserError(f"{option} {text[:40]!r}: names nothing", "give one name, or several with commas between")


def parse_numbers(option: str, text: str) -> list[int]:
    """ "1, 4" -> [1, 4].

    Raises:
        UserError: something else than numbers with commas between them.
    """
    names = parse_names(text)
    if not names or not all(name.isascii() and name.isdigit() and len(name) < 7 for name in names):
        raise UserError(
            f"{option} {text[:40]!r}: is no number, and no numbers with commas between", "write 1,4"
        )
    return [int(name) for name in names]


def set_threads(threads: int | None) -> None:
    """Of the CPU, for everything PyTorch does from here on; None leaves its choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
