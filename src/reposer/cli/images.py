"""``reposer evaluate`` and ``generate``: what trained generators make, measured and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reposer.cli.options import (
    LARGEST,
    Background,
    BatchSize,
    Data,
    Model,
    Predictor,
    Threads,
    WeightsFolder,
    parse_names,
    set_threads,
)
from reposer.errors import UserError

app = typer.Typer()


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
    from reposer.metrics.protocols import METRICS

    if metrics == "list":
        print("\n".join(f"{name:26} {metric.protocol}" for name, metric in METRICS.items()))
        return
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED
    from reposer.evaluation.image_quality import DEFAULT_METRICS
    from reposer.generation.map_prediction import MapPredictor
    from reposer.generation.pose_transfer import PoseTransfer
    from reposer.workflows.evaluate import (
        evaluate_model,
        evaluate_predictor,
        is_predictor,
        open_detector,
    )
    from reposer.workflows.reid_features import check_data

    set_threads(threads)
    check_data(PackedPeople.open(data / PACKED), model, predictor, reid)
    if is_predictor(model):
        print(
            evaluate_predictor(
                MapPredictor.from_pretrained(model), data, out, pairs_csv=pairs, limit=limit
            ).to_markdown()
        )
        print(f"{out}: map_quality.json, .md, .parquet (per pair), maps.png")
        return
    if reid:
        from reposer.workflows.evaluate import claim_identity

        claim_identity(out)
    generator = PoseTransfer.from_pretrained(model)
    report = evaluate_model(
        generator,
        data,
        out,
        pairs_csv=pairs,
        metrics=parse_names(metrics) or DEFAULT_METRICS,
        weights=weights,
        backgrounds=parse_names(backgrounds),
        limit=limit,
        predictor=MapPredictor.from_pretrained(predictor) if predictor else None,
        detector=open_detector(keypoint_detector, accept_license) if keypoint_detector else None,
    )
    print(report.to_markdown())
    if reid:
        from reposer.workflows.evaluate import measure_identity

        print(measure_identity(generator, reid, data, out))
    print(f"{out}: image_quality.json, .md, .parquet (per image), people.png")


@app.command()
def generate(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures and their manifest; PNG file for one picture.")
    ],
    data: Annotated[Path | None, typer.Option(help="Prepared folder, with --pairs.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV from,to: source and donor of each picture.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="An image, a folder with parsing/ and mask/, or a name in --data."),
    ] = None,
    source_parsing: Annotated[Path | None, typer.Option(help="LIP-20 label map of the source image.")] = None,
    donor: Annotated[Path | None, typer.Option(help="Image of the person who lends the pose.")] = None,
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
    batch_size: BatchSize = 32,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="JPEG instead of PNG.")] = False,
    threads: Threads = None,
) -> None:
    """Re-pose people: a pair list, a folder, or one image; stopped jobs go on where they were."""
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED
    from reposer.generation.batch import GenerateOptions
    from reposer.generation.map_prediction import MapPredictor
    from reposer.generation.pose_transfer import PoseTransfer
    from reposer.workflows.generate import (
        generate_from_folder,
        generate_one,
        generate_pair_list,
        generate_poses,
    )
    from reposer.workflows.reid_features import check_data

    set_threads(threads)
    options = GenerateOptions(background, "jpg" if jpeg else "png", batch_size)
    if target and donor:
        raise UserError("--target and --donor each name a pose", "give one of them")
    if not (data and pairs) and not (source and (donor or target)):
        advice = "give --data and --pairs, or --source and one of --donor and --target"
        raise UserError("nothing to generate", advice)
    if data:
        check_data(PackedPeople.open(data / PACKED), model, predictor)
    generator = PoseTransfer.from_pretrained(model).with_predictor(
        MapPredictor.from_pretrained(predictor) if predictor else None, maps
    )
    if data and pairs:
        print(generate_pair_list(generator, data, pairs, out, options))
    elif source and target:
        print(generate_poses(generator, (source, source_parsing), target, out, options, data=data))
    elif source and donor and source.is_dir():
        print(generate_from_folder(generator, source, donor, donor_parsing, out, options))
    elif source and donor:
        print(generate_one(generator, (source, source_parsing), (donor, donor_parsing), out, background))
