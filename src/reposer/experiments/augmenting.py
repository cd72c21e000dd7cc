"""``reposer augment``: open the generator, show progress, write the set."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from reposer.experiments.image_evaluation import open_model
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.shards import WriteReport
from reposer.progress import Meter, progress
from reposer.runtime import setup


def augment_prepared(
    model: str,
    prepared: Path,
    out: Path,
    options: AugmentOptions,
    *,
    processes: int,
    threads: int | None,
    device: str,
) -> WriteReport:
    """The augmented set of a prepared folder, by the generator that ``open_model`` knows as ``model``."""
    runtime = setup(device, threads=threads)
    meters: list[Meter] = []
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            if not meters:  # how many pictures there are is known when the donors are
                meters.append(stack.enter_context(progress(total, done, "pictures")))
            meters[0].update(done)

        return augment(
            open_model(model, runtime), prepared, out, options, processes=processes, on_progress=show
        )
