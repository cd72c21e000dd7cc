"""``reposer augment``: open the generator, show progress, write the set."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from reposer.annotation.parser import open_parser
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.batch import WriteReport
from reposer.generation.map_prediction import MapPredictor
from reposer.generation.pose_transfer import PoseTransfer
from reposer.progress import Meter, progress
from reposer.runtime import setup
from reposer.workflows.reid_features import check_data


def augment_prepared(
    model: str,
    prepared: Path,
    out: Path,
    options: AugmentOptions,
    *,
    images: Path | None,
    predictor: str | None,
    parser: str | None,
    accept_license: bool,
    processes: int,
    threads: int | None,
    device: str,
) -> WriteReport:
    """The augmented set of a prepared folder.

    Args:
        model: as ``PoseTransfer.from_pretrained`` knows it.
        images: the data set, for real images beside the generated ones.
        predictor: of target maps, as ``MapPredictor.from_pretrained`` knows it; None: the donors' maps.
        parser: as ``open_parser`` knows it, for the filter of poses.
        accept_license: of the parser's weights.
    """
    runtime = setup(device, threads=threads)
    check_data(PackedPeople.open(prepared / PACKED), model, predictor)
    generator = PoseTransfer.from_pretrained(model, runtime)
    if predictor:
        generator = generator.with_predictor(MapPredictor.from_pretrained(predictor, runtime), "predicted")
    meters: list[Meter] = []
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            if not meters:  # how many pictures there are is known when the donors are
                meters.append(stack.enter_context(progress(total, done, "pictures")))
            meters[0].update(done)

        return augment(
            generator,
            prepared,
            out,
            options,
            images=images,
            processes=processes,
            parser=open_parser(parser, accept_license=accept_license) if parser else None,
            on_progress=show,
        )
