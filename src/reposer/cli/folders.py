"""Commands about whole folders: ``demo``, ``render``, ``study``, ``export-run``, ``push-to-hub``,
``import-weights``, ``export-parser``, ``annotate``, ``slurm``."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from reposer.cli.options import (
    LARGEST,
    LARGEST_SEED,
    MOST_SIDE_BY_SIDE,
    Address,
    BatchSize,
    Cpus,
    Data,
    Engine,
    Gpus,
    MayDownload,
    NetworkFolder,
    NetworkTerms,
    ParserTerms,
    Processes,
    SetOption,
    Threads,
    claim_out,
    parse_size,
    parse_some,
    ray_cluster,
    refuse_useless,
    set_threads,
    stepping,
    with_parameters,
)
from reposer.errors import UserError
from reposer.storage.paths import folder_name, printable, refuse_inputs

# ---- ``reposer demo`` and ``reposer render``: everything that needs no data.

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A tenth of the work, to see that everything runs.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose the built-in rendered people, measure, train a little, and write a report: no data needed."""
    claim_out("demo", out)
    from reposer.report import write_report
    from reposer.studies.demo import run_demo

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
    """Render people with exact parsing, masks and keypoints: a data set without any real person in it."""
    claim_out("render", out)
    from reposer.rendered.dataset import write_rendered_dataset

    summary = write_rendered_dataset(
        out,
        identities=identities,
        test_identities=test_identities,
        images_per_identity=images,
        size=parse_size(size),
        seed=seed,
    )
    print(summary)


# ---- ``reposer study``: does it help, by how much, and is that luck?


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="augmentation, market_dev, san_table, paper_table, ablations, or a plan: FILE.json."
        ),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command goes on.")],
    generator: Annotated[
        str,
        typer.Option(
            help="Run folder, exported folder, hub id, `shipped` (default) or a plan's; not for ablations"
            " and paper_table."
        ),
    ] = "",
    runs: Annotated[
        list[str] | None,
        typer.Option(help="paper_table: a row that is not trained, as NAME=FOLDER; repeatable."),
    ] = None,
    arms: Annotated[str, typer.Option(help="Only these arms (rows), comma-separated.")] = "",
    variants: Annotated[
        list[str] | None,
        typer.Option("--arm", help="One more arm, as 'NAME=ARM FIELD=VALUE ...'; repeatable."),
    ] = None,
    predictor: Annotated[
        str, typer.Option(help="Predictor of label maps for the arms x2_predicted...: run folder or export.")
    ] = "",
    parser: Annotated[
        str, typer.Option(help="Parser for arms that judge poses: .onnx file of `export-parser`.")
    ] = "",
    accept_license: ParserTerms = False,
    overrides: SetOption = None,
    workers: Annotated[
        int,
        typer.Option(min=1, max=MOST_SIDE_BY_SIDE, help="Processes, each with --set threads=N of its own."),
    ] = 1,
    engine: Engine = "here",
    address: Address = None,
    cpus: Cpus = 1.0,
    gpus: Gpus = 0.0,
) -> None:
    """Compare ways to train, with controls, seeds and p-values; every finished stage is kept and shared."""
    given = [text.partition("=")[2] for text in runs or ()]
    claim_out("study", out, data, generator, predictor or None, parser or None, *filter(None, given))
    from reposer.report import write_report

    cluster = ray_cluster(engine, address, cpus, gpus)
    words = {
        "generator": generator,
        "predictor": predictor,
        "parser": parser,
        "accept_license": accept_license,
    }
    lists = (parse_some("--arms", arms) if arms else [], overrides or [], variants or [], runs or [])
    run = _study_of(name, data, out, words, *lists)
    if cluster:
        from reposer.jobs.workers import spread_copies

        spread_copies(run, cluster, workers)
    run(workers=1 if cluster else workers)
    print((out / "table.md").read_text())
    names = sorted(
        path.name for path in (*out.glob("table.*"), *out.glob("pictures"), *out.glob("mistakes.*"))
    )
    print(f"{printable(out)}: {', '.join(names)}")
    lead = "Every number on this page was measured by `reposer study`; its files lie in the same folder."
    title = f"Reposer study: {Path(name).stem}"
    print(f"report: {write_report(out, title=title, lead=lead)}")


def _study_of(
    name: str,
    data: Path,
    out: Path,
    words: dict[str, Any],
    chosen: list[str],
    overrides: list[str],
    variants: list[str],
    runs: list[str],
) -> Callable[..., object]:
    """What runs a study of that name; options that it has no use for are refused."""
    given = [f"--{word}" for word in ("generator", "predictor", "parser") if words[word]]
    given += ["--arm"] * bool(variants) + ["--runs"] * bool(runs)
    given += ["--accept-license"] * words["accept_license"]
    useless = {
        "ablations": {"--arm", "--predictor", "--parser", "--accept-license", "--runs"},
        "paper_table": {"--generator", "--predictor", "--parser", "--accept-license"},
    }
    refuse_useless(f"study {name}", {word: word in useless.get(name, {"--runs"}) for word in given})
    if name == "ablations":
        from reposer.studies.ablations import ablations, run_ablations

        return partial(run_ablations, ablations(data, chosen, overrides), out)
    if name == "paper_table":
        from reposer.studies.paper_table import paper_table, run_paper_table

        return partial(
            run_paper_table, paper_table(data, chosen, overrides, variants=variants, runs=runs), out
        )
    from reposer.studies.study import configure, run_study

    generator = words.pop("generator")
    made = configure(name, data, generator, chosen, overrides, variants=variants, **words)
    return partial(run_study, made, out)


# ---- ``reposer export-run``: a run as a folder to share.


@app.command("export-run")
def export_run(
    run: Annotated[Path, typer.Argument(help="Run folder of any training.")],
    out: Annotated[Path, typer.Option(help="Folder to write, ready for a hub or a server.")],
    license_text: Annotated[
        str, typer.Option("--license", help="What others may do with the weights, in words.")
    ],
    trained_on: Annotated[str, typer.Option("--trained-on", help="The training data, in words.")],
    figures: Annotated[
        list[Path] | None, typer.Option(help="Folder of an evaluation of this run; repeatable.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="float16 weights, half the size.")] = False,
) -> None:
    """Write the newest good checkpoint of a run with a card: data, license, limits, figures, hashes."""
    claim_out("export-run", out, run, *(figures or ()))
    from reposer.workflows.export_run import export_run as export

    card = {"license_text": license_text, "trained_on": trained_on}
    print(export(run, out, evaluations=figures or (), half=half, **card))


@app.command("push-to-hub")
def push_to_hub(
    folder: Annotated[Path, typer.Argument(help="Folder written by `export-run`.")],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; made where missing.")],
    private: Annotated[bool, typer.Option("--private", help="A new one is for its owner alone.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
) -> None:
    """Send an exported network and its card to the hub, under your login there (`hf auth login`)."""
    from reposer.workflows.export_run import push_to_hub as push

    print(push(folder, name, private=private, message=message))


# ---- ``reposer import-weights``: checkpoints that authors published.


@app.command("import-weights")
def import_weights(
    network: Annotated[str, typer.Argument(help="patn, xinggan, gfla or dptn.")],
    file: Annotated[Path, typer.Argument(help="The authors' .pth of the generator.")],
    out: Annotated[Path, typer.Option(help="Folder to write, for generate, augment and evaluate.")],
    size: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH that dptn learned, which its file does not tell.")
    ] = "256x256",
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You accept the terms of the authors' weights.")
    ] = False,
) -> None:
    """Write a published checkpoint as a folder of ours; every name and shape in it is checked."""
    claim_out("import-weights", out, file)
    from reposer.workflows.import_weights import import_weights as write

    learned = parse_size(size) if network == "dptn" or size != "256x256" else None
    print(write(network, file, out, accept_license=accept_license, size=learned))


# ---- ``reposer export-parser``: a trained parser for use by ``--parser``.


@app.command("export-parser")
def export_parser(
    run: Annotated[Path, typer.Argument(help="Run folder of `reposer train parser_small`, or its export.")],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write; its description goes beside it.")],
) -> None:
    """Write a trained parser as an ONNX file and its description."""
    claim_out("export-parser", out, run)
    from reposer.annotation.segmentation_model import export_parser as write

    refuse_inputs(out.with_suffix(".json"), run)
    print(f"{write(run, out)}: with {out.with_suffix('.json').name}")


# ---- ``reposer annotate``: parsing maps, masks and keypoints for a folder of images.


@app.command()
@with_parameters(stepping, "step")
def annotate(
    folder: Annotated[Path, typer.Argument(help="Folder of crops of people, or of photos; only read.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Another folder, which gets the images too; default: beside the images."),
    ] = None,
    parser: Annotated[
        str,
        typer.Option(
            help="auto, rendered_parser, rule, schp_lip, schp_atr, segformer_clothes, fashn, my.onnx,"
            " a folder, or none."
        ),
    ] = "auto",
    mask: Annotated[
        str,
        typer.Option(
            help="auto, selfie, parsing (what the label map calls a person), maskrcnn_v2, maskrcnn, a folder,"
            " or none."
        ),
    ] = "auto",
    keypoints: Annotated[
        str,
        typer.Option(
            help="auto, blazepose_full, blazepose_heavy, keypointrcnn, vitpose, {openpose,viton,pidm}:FOLDER,"
            " {alphapose,colon,comma}:FILE, or none."
        ),
    ] = "auto",
    sides: Annotated[
        str | None,
        typer.Option(help="Who tells left from right: model, keypoints; default: as the parser says."),
    ] = None,
    detect: Annotated[
        str | None,
        typer.Option(help="The images are photos: cut people out, by auto, maskrcnn_v2 or keypointrcnn."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Only so many, into OUT/annotation/sample: a look."),
    ] = None,
    weights: NetworkFolder = None,
    accept_license: NetworkTerms = False,
    download: MayDownload = None,
    batch_size: BatchSize = 32,
    processes: Processes = 1,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    *,
    step: Any,  # a jobs.workers.Step
) -> None:
    """Make parsing maps, masks and keypoints beside the images, and a page that shows them.

    `--sample 64` first, and look; then the whole folder; then `reposer prepare`. NAME=FILE is another file of
    a known network, as maskrcnn_v2=mine.pth. The same command goes on where it stopped.
    """
    if out is not None:
        claim_out("annotate", out)
    from reposer.annotation.annotate import annotate_step
    from reposer.annotation.annotators import NONE, AnnotatorChoice, chosen_sides
    from reposer.annotation.journal import BOOK
    from reposer.report import write_report

    set_threads(threads)
    if weights is not None:
        os.environ["REPOSER_WEIGHTS"] = str(weights.absolute())  # for the processes started here as well
    choice = AnnotatorChoice(
        parser, mask, keypoints, detect or NONE, accept_license, download, device, chosen_sides(sides)
    )
    do = partial(annotate_step, folder, out, choice, batch_size, threads)
    report = _annotated(do, step, processes, sample)
    print(report)
    if report.work.said:
        return
    page = write_report(report.root / BOOK, f"Annotations of {folder_name(folder)}", str(report.root))
    print(f"look at {page}")
    if not report.annotated:
        raise UserError(
            f"{printable(folder)}: none of {report.images:,} images could be annotated",
            "see annotation/problems.csv for what is wrong with each",
        )


def _annotated(do: Callable[..., Any], step: Any, processes: int, sample: int | None) -> Any:
    """The AnnotationReport of ``annotate_step`` here, or by workers of Ray."""
    from reposer.jobs.workers import with_ray

    if step.engine is None:
        with ExitStack() as meters:
            return do(step, processes, sample, partial(_meter, meters))
    if sample is not None:
        raise UserError("--sample is a look, for one process", "leave --engine out, or --sample")
    return with_ray(do, step, processes)


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


# ---- ``reposer slurm``: annotate, augment and study as an array of jobs.


@app.command(context_settings={"ignore_unknown_options": True})
def slurm(
    verb: Annotated[str, typer.Argument(help="annotate, augment or study.")],
    words: Annotated[list[str], typer.Argument(help="Its own words and options.")],
    array: Annotated[int, typer.Option(min=1, max=LARGEST, help="Tasks of the array.")],
    sbatch: Annotated[
        list[str] | None, typer.Option(help="An option of sbatch, as --sbatch=--mem=8G; repeatable.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit it instead of printing it.")] = False,
) -> None:
    """Print, or submit, a script that runs annotate, augment or study as an array of SLURM jobs.

    One job plans, the array's tasks share the shards, one job finishes; a task that is lost costs its shard.
    """
    import subprocess
    import sys

    from reposer.cli import generators
    from reposer.errors import known
    from reposer.jobs.workers import slurm_script

    known("command", verb, ("annotate", "augment", "study"))
    group: Any = typer.main.get_command(generators.app if verb == "augment" else app)
    inner = group.commands[verb]
    values = inner.make_context(verb, list(words)).params  # a wrong word is told now, and not in a queue
    usual: dict[str, object] = {"step": "all", "shard": None, "processes": 1, "workers": 1, "sample": None}
    usual |= {"engine": "here", "address": None, "cpus": 1.0, "gpus": 0.0}
    asked = {"cpus": ", and ask SLURM, as --sbatch=-c8"}
    asked["gpus"] = ", and ask SLURM, as --sbatch=--gpus=1"
    for option, default in usual.items():
        if values.get(option, default) != default:
            problem = f"--{option}: has no place in a job of SLURM"
            raise UserError(problem, f"leave it out{asked.get(option, '')}")
    script = slurm_script([sys.executable, "-m", "reposer", verb, *words], verb, array, sbatch or ())
    if not submit:
        print(script, end="")
        return
    try:
        done = subprocess.run(["/bin/sh"], input=script, text=True, capture_output=True, check=False)
    except OSError as error:
        raise UserError(
            f"the script cannot be run: {error.strerror}", "print it, and run it yourself"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise UserError(
            f"SLURM refused: {printable(reason)}", "mend that; what was submitted is in `squeue --me`"
        )
    print(done.stdout, end="")
