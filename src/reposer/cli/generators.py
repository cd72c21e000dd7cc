"""``reposer train``, ``evaluate``, ``generate`` and ``augment``: the commands of trained networks."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from reposer.cli.options import (
    LARGEST,
    LARGEST_SEED,
    PICTURES,
    Background,
    BatchSize,
    Budget,
    Camera,
    Data,
    Device,
    MaxMinutes,
    MayDownload,
    Model,
    NetworkFolder,
    NetworkTerms,
    Predictor,
    Processes,
    SetOption,
    Sources,
    Threads,
    WeightsFolder,
    claim_out,
    filtering,
    parse_numbers,
    parse_some,
    refuse_useless,
    set_threads,
    stepping,
    with_parameters,
)
from reposer.errors import UserError
from reposer.storage.paths import printable

# ---- ``reposer train``: a network of any kind, by the name of its preset.

app = typer.Typer()


def training(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run of the same settings goes on.")],
    settings: Annotated[
        Path | None,
        typer.Option("--config", help="JSON of settings in place of a preset, as a run's config.json."),
    ] = None,
    overrides: SetOption = None,
    max_minutes: MaxMinutes = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option("--tracker", help="Send figures to wandb or mlflow, under your login; repeatable."),
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
) -> Callable[..., object]:
    """The parameters of every command that trains; returns what trains a preset, or the settings of a file,
    of the wanted ``kind``, and says how it went."""

    def train_it(preset: str | None, kind: str = "") -> object:
        from reposer.workflows.train import read_settings, train_preset, train_settings

        claim_out("train", out)
        limits: dict[str, Any] = {"threads": threads, "device": device, "max_minutes": max_minutes}
        limits["trackers"] = tuple(trackers or ())
        if (preset is None) == (settings is None):
            raise UserError("a preset or --config FILE says what is trained", "give one of them")
        if preset is not None:
            return train_preset(preset, data, out, overrides or [], **limits)
        assert settings is not None
        read = read_settings(settings)
        if kind and type(read).__name__ != kind:
            raise UserError(f"{printable(settings)}: is of another kind of training", "use `reposer train`")
        return train_settings(read, data, out, overrides or [], **limits)

    return train_it


@app.command()
@with_parameters(training, "how")
def train(
    preset: Annotated[
        str | None,
        typer.Argument(help="san_market_small, rsa_demo, patn_market, predictor_small, reid_demo, bot, ..."),
    ] = None,
    *,
    how: Callable[..., object],
) -> None:
    """Train a network of any kind; Ctrl-C saves first. Several GPUs: torchrun -m reposer train."""
    print(how(preset))


_PAIRS = "give --data and --pairs"

# ---- ``reposer evaluate`` and ``generate``: what trained generators make, measured and written.


@app.command()
def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for table, per-image values and grid.")],
    pairs: Annotated[Path | None, typer.Option(help="CSV from,to; default: the validation pairs.")] = None,
    metrics: Annotated[str, typer.Option(help="Names, comma-separated; `list` prints them all.")] = "",
    weights: WeightsFolder = None,
    backgrounds: Annotated[
        str, typer.Option(help="generated, donor, source; comma-separated.")
    ] = "generated",
    sources: Annotated[
        str, typer.Option(help="Images of the source person, at most; 1,4: a row each.")
    ] = "1",
    limit: Annotated[int | None, typer.Option(min=1, max=LARGEST, help="Only the first pairs.")] = None,
    reid: Annotated[Path | None, typer.Option(help="Re-ID run: are generated people recognized?")] = None,
    predictor: Predictor = None,
    keypoint_detector: Annotated[
        str | None, typer.Option(help="For pckh: keypointrcnn, or vitpose=FOLDER.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You accept the terms of the detector's weights.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Measure a generator, or a predictor of label maps, beside trivial baselines; intervals, protocols.

    With --predictor a second row shows the generator with predicted target maps in place of the true ones.
    """
    if metrics == "list":
        from reposer.metrics.protocols import METRICS

        print("\n".join(f"{name:26} {metric.protocol}" for name, metric in METRICS.items()))
        return
    claim_out("evaluate", out, model, data, pairs, weights, reid, predictor)
    measured = parse_some("--metrics", metrics) if metrics else []
    scenes, counts = parse_some("--backgrounds", backgrounds), parse_numbers("--sources", sources)
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED
    from reposer.evaluation.image_quality import DEFAULT_METRICS
    from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
    from reposer.workflows.evaluate import evaluate_model, is_predictor, open_detector
    from reposer.workflows.identity import claim_identity, measure_identity
    from reposer.workflows.reid_features import check_data, open_judge

    set_threads(threads)
    images: dict[str, object] = {"--metrics": metrics, "--weights": weights, "--reid": reid}
    images |= {"--backgrounds": backgrounds != "generated", "--sources": sources != "1"}
    images |= {"--predictor": predictor, "--keypoint-detector": keypoint_detector}
    if is_predictor(model):
        refuse_useless("evaluate of a predictor of label maps", images | {"--accept-license": accept_license})
        _evaluate_maps(model, data, out, pairs, limit)
        return
    refuse_useless("no --keypoint-detector", {"--accept-license": accept_license and not keypoint_detector})
    check_data(PackedPeople.open(data / PACKED), model, predictor)
    if reid:
        claim_identity(out)
    judge = open_judge(reid, data) if reid else None
    generator = PoseTransfer.from_pretrained(model)
    maps = MapPredictor.from_pretrained(predictor) if predictor else None
    report = evaluate_model(
        generator,
        data,
        out,
        pairs_csv=pairs,
        metrics=measured or DEFAULT_METRICS,
        weights=weights,
        backgrounds=scenes,
        sources=counts,
        limit=limit,
        predictor=maps,
        detector=open_detector(keypoint_detector, accept_license) if keypoint_detector else None,
    )
    print(report.to_markdown())
    if judge:
        print(measure_identity(generator, judge, data, out, scenes[0], counts[0], predictor=maps))
    print(f"{out}: image_quality.json, .md, .parquet (per image), people.png")


def _evaluate_maps(model: str, data: Path, out: Path, pairs: Path | None, limit: int | None) -> None:
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED
    from reposer.generation.pose_transfer import MapPredictor
    from reposer.workflows.evaluate import evaluate_predictor
    from reposer.workflows.reid_features import check_data

    check_data(PackedPeople.open(data / PACKED), model)
    report = evaluate_predictor(MapPredictor.from_pretrained(model), data, out, pairs_csv=pairs, limit=limit)
    print(report.to_markdown())
    print(f"{out}: map_quality.json, .md, .parquet (per pair), maps.png")


@app.command()
def generate(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures and their manifest; PNG file for one picture.")
    ],
    data: Annotated[Path | None, typer.Option(help="Prepared folder, for --pairs and for names.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV from,to: source and donor of each picture.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="An image, a folder with parsing/ and mask/, or a name in --data."),
    ] = None,
    source_parsing: Annotated[Path | None, typer.Option(help="LIP-20 label map of the source image.")] = None,
    donor: Annotated[
        Path | None, typer.Option(help="Image of the person who lends the pose, or a name in --data.")
    ] = None,
    donor_parsing: Annotated[Path | None, typer.Option(help="LIP-20 label map of the donor.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="A pose in place of a donor: canonical:front,left; FILE.json; an image's name."),
    ] = None,
    predictor: Predictor = None,
    maps: Annotated[
        str, typer.Option(help="given: the donor's label maps where there are any; predicted: never.")
    ] = "given",
    background: Background = "generated",
    camera: Camera = "source",
    sources: Sources = 1,
    batch_size: BatchSize = 32,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="JPEG instead of PNG.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose people: a pair list, a folder, or one image; stopped jobs go on where they were."""
    inputs = (model, data, pairs, source, source_parsing, donor, donor_parsing, target, predictor)
    claim_out("generate", out, *inputs)
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED
    from reposer.generation.batch import GenerateOptions
    from reposer.generation.camera_colors import check_camera
    from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
    from reposer.workflows.generate import (
        generate_from_folder,
        generate_one,
        generate_pair_list,
        generate_poses,
    )
    from reposer.workflows.reid_features import check_data

    set_threads(threads)
    camera = check_camera(camera, background)
    options = GenerateOptions(background, "jpg" if jpeg else "png", batch_size, camera=camera)
    single: dict[str, object] = {"--source": source, "--donor": donor, "--target": target}
    single |= {"--source-parsing": source_parsing, "--donor-parsing": donor_parsing}
    written: dict[str, object] = {"--batch-size": batch_size != 32, "--jpeg": jpeg}
    _refuse_generate(single, bool(data), bool(pairs), out, written, sources, camera)
    if data:
        check_data(PackedPeople.open(data / PACKED), model, predictor)
    generator = PoseTransfer.from_pretrained(model).with_predictor(
        MapPredictor.from_pretrained(predictor) if predictor else None, maps
    )
    if data and pairs:
        print(generate_pair_list(generator, data, pairs, out, options, sources))
    elif source and target:
        print(generate_poses(generator, (source, source_parsing), target, out, options, data=data))
    elif source and donor and source.is_dir():
        print(generate_from_folder(generator, source, donor, donor_parsing, out, options, data=data))
    elif source and donor:
        images = (source, source_parsing), (donor, donor_parsing)
        print(generate_one(generator, *images, out, background, data=data))


def _refuse_generate(
    single: dict[str, Any],
    data: bool,
    pairs: bool,
    out: Path,
    written: dict[str, object],
    sources: int,
    camera: str,
) -> None:
    """Refuse options of `generate` that contradict each other, are too few, or that nothing would read.

    Args:
        single: those of everything but lists of pairs, by name.
        data, pairs: whether they are given.
        written: those of many pictures, true where they are not as usual.
    """
    source, donor, target = (single[name] for name in ("--source", "--donor", "--target"))
    if target and donor:
        raise UserError("--target and --donor each name a pose", "give one of them")
    if data and pairs:
        refuse_useless("generate of a list of pairs", single)
        return
    if not (source and (donor or target)):
        advice = "give --data and --pairs, or --source and one of --donor and --target"
        raise UserError("nothing to generate", advice)
    refuse_useless("generate of --source", {"--pairs": pairs})
    refuse_useless("generate of a pose", {"--donor-parsing": target and single["--donor-parsing"]})
    if source.is_dir():
        refuse_useless("generate of a folder", {"--source-parsing": single["--source-parsing"]})
    elif donor or out.suffix.lower() in PICTURES:
        refuse_useless("generate of one picture", written)
    else:
        refuse_useless("generate of one image", written | {"--jpeg": False})
    if sources > 1:
        raise UserError("--sources: further images of a person are known in a prepared folder only", _PAIRS)
    if camera == "donor":
        problem = "--camera donor: how cameras show colors is known in a prepared folder only"
        raise UserError(problem, f"{_PAIRS}, or --camera source")


# ---- ``reposer repose``: photos in, people in other poses out.


@app.command()
def repose(
    source: Annotated[Path, typer.Argument(help="A photo, or a folder of photos; only read.")],
    pose: Annotated[
        str,
        typer.Option(help="front, left, ... or all; FILE.json of keypoints; another photo; with commas."),
    ] = "front",
    out: Annotated[Path, typer.Option(help="Folder for pictures and a contact sheet.")] = Path("reposed"),
    in_place: Annotated[
        bool, typer.Option("--in-place", help="The whole photo too, with everybody in the pose.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="auto (texture transport), run folder, export, hub:owner/name, shipped.")
    ] = "auto",
    predictor: Annotated[str, typer.Option(help="Of maps of new poses: run folder, export, hub id.")] = (
        "shipped-predictor"
    ),
    parser: Annotated[str, typer.Option(help="As for `annotate`, but not none.")] = "auto",
    mask: Annotated[str, typer.Option(help="As for `annotate`, but no folder and not none.")] = "auto",
    keypoints: Annotated[str, typer.Option(help="As for `annotate`, but no files and not none.")] = "auto",
    detect: Annotated[str, typer.Option(help="Who finds people; as for `annotate`.")] = "auto",
    weights: NetworkFolder = None,
    accept_license: NetworkTerms = False,
    download: MayDownload = None,
    threads: Threads = None,
) -> None:
    """Put the people of photos into other poses: found, cut out, annotated and re-posed by one command.

    Networks come by themselves at the first call (36 MB, Apache-2.0). Generated people are marked as such.
    """
    claim_out("repose", out, source)
    from reposer.annotation.annotators import AnnotatorChoice
    from reposer.progress import Stages
    from reposer.workflows.repose import ReposeOptions, repose_files

    set_threads(threads)
    if weights is not None:
        os.environ["REPOSER_WEIGHTS"] = str(weights.absolute())
    choice = AnnotatorChoice(parser, mask, keypoints, detect, accept_license, download)
    options = ReposeOptions(model, predictor, choice, in_place)
    report = repose_files(source, pose, out, options, partial(Stages(), "photos"))
    print(report)
    print(f"look at {report.out / 'contact_sheet.png'}")


# ---- ``reposer augment``: larger training sets.


@app.command()
@with_parameters(stepping, "step")
@with_parameters(filtering, "filters")
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
    camera: Camera = "source",
    sources: Sources = 1,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the choice of donors.")] = 0,
    budget: Budget = 1.0,
    budget_seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of that choice.")] = 0,
    images: Annotated[
        Path | None, typer.Option(help="The data set that --data was made of, for --real link and copy.")
    ] = None,
    real: Annotated[str, typer.Option(help="Real images in the set: link, copy or none.")] = "link",
    *,
    filters: Any,  # FilterOptions or None, and what they need
    png: Annotated[bool, typer.Option("--png", help="PNG instead of JPEG.")] = False,
    batch_size: BatchSize = 32,
    processes: Processes = 1,
    threads: Threads = None,
    device: Device = "auto",
    step: Any,  # a jobs.workers.Step
) -> None:
    """Enlarge a Re-ID training set by pictures of its people in other poses; the same command goes on.

    With --predictor only the pose is the donor's: maps are predicted from what the source wears.
    """
    from reposer.generation.augmentation import AugmentOptions
    from reposer.workflows.generate import augment_prepared

    chosen, needed = filters
    refuse_useless("augment by all images of a person", {"--budget-seed": budget_seed and budget == 1})
    claim_out("augment", out, model, data, images, predictor, needed["reid_run"], needed["parser"])
    options = AugmentOptions(
        factor=factor,
        policy=donors,
        seed=seed,
        background=background,
        sources=sources,
        camera=camera,
        batch_size=batch_size,
        file_format="png" if png else "jpg",
        real=real,
        budget=budget,
        budget_seed=budget_seed,
        filters=chosen,
    )
    do: Callable[..., Any] = partial(
        augment_prepared,
        model,
        data,
        out,
        options,
        images=images,
        predictor=predictor,
        **needed,
        threads=threads,
        device=device,
    )
    if step.engine:
        from reposer.jobs.workers import with_ray

        print(with_ray(do, step, processes))
    else:
        print(do(step, processes))
