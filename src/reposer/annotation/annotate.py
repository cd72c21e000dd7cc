"""`reposer annotate`: parsing maps, masks and keypoints for any folder of people, beside its images.

    OUT/parsing/a/b.png   OUT/mask/a/b.png   OUT/keypoints.csv   of the image a/b.jpg, as `prepare` reads them
    OUT/annotation/       journal (annotation/journal.py), problems.csv, report.json, the report page's parts

OUT is the folder of the images itself, which stay as they are, or another one, which gets copies of them; of
photos it is always another one, which gets the people that were cut out. Stopped at any moment, the same call
goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reposer.annotation.annotators import NONE, AnnotatorChoice, Annotators
from reposer.annotation.faults import seal_annotations
from reposer.annotation.interfaces import AnnotatorInfo
from reposer.annotation.journal import (
    BOOK,
    KEYPOINTS,
    PHOTOS,
    AnnotationJob,
    AnnotationReport,
    earlier_settings,
    read_book,
    write_results,
)
from reposer.annotation.keypoints import KeypointFiles, repeated_names
from reposer.annotation.makers import (
    COPIES,
    CROP_COLUMNS,
    CROP_OUTPUTS,
    MASK,
    PARSING,
    PHOTO_COLUMNS,
    PHOTO_OUTPUTS,
    CropMaker,
    PhotoMaker,
    crop_origins,
)
from reposer.data.layouts.folder_scan import drop_shadowed, split_folders
from reposer.data.layouts.identity_folders import annotation_folders, list_images
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.jobs.claims import is_planned
from reposer.jobs.executors import in_processes, in_this_process
from reposer.jobs.shards import Executor, Folder, Maker, Progress, Work
from reposer.jobs.workers import Step, refuse_groups, take_step
from reposer.storage.files import remove_tree
from reposer.storage.paths import check_relative, no_folder, printable, unlinked

SAMPLE = "sample"  # folder in BOOK: a first look
OpenDetector = Callable[[], tuple[nn.Module, AnnotatorInfo]]


@dataclass(frozen=True)
class AnnotateOptions:
    """What does not depend on the annotators."""

    batch_size: int = 32  # images of one forward pass, all of one size
    sample: int | None = None  # only so many images, evenly spread, into OUT/annotation/sample
    processes: int = 1
    on_progress: Callable[[str], Progress] = lambda stage: None  # a progress for each stage
    step: Step = field(default_factory=Step)  # which part of the job to do


def annotate(
    folder: str | Path,
    out: str | Path | None,
    open_annotators: Callable[[], Annotators],
    open_detector: OpenDetector | None = None,
    how: AnnotateOptions | None = None,
) -> AnnotationReport:
    """Annotate every image below ``folder``, or what is left of it.

    Args:
        folder: the images; never changed.
        out: where to; None: ``folder``.
        open_annotators: loads them (annotators.AnnotatorChoice.open); pickled for other processes.
        open_detector: the images are photos: cut the people out first, with this detector.
        how: the rest.

    Raises:
        UserError: no folder, no images, an ``out`` that holds something else, models that cannot be loaded.
            What was finished stays.
    """
    folder, how = Path(folder), how or AnnotateOptions()
    root = folder if out is None else Path(out)
    apart = _checked(folder, root, how, cuts=open_detector is not None)
    problems: list[AnnotationProblem] = []
    annotators = open_annotators()
    beside = annotators.folders_in(folder)
    # workers go by the plan: a list of all images by each of them would take the disk's time
    images = [] if how.step.name == "work" else _images(folder, problems, beside)
    unread = len({problem.file for problem in problems if problem.rule != "unread-folder"})
    if how.sample is not None:
        images = _spread(images, how.sample)
        root, apart = unlinked(root, f"{BOOK}/{SAMPLE}"), True
        remove_tree(root)  # a first look is always a new one
    origins: Mapping[str, Mapping[str, Any]] = {}
    if open_detector is not None:
        step, cut = _cut_people(folder, root, images, open_detector, how)
        if cut.said and step is None:
            return AnnotationReport(0, 0, 0, {}, {}, {}, root, cut)
        how = replace(how, step=step or how.step)
        listed = _left_out(root / BOOK / PHOTOS)
        origins = crop_origins(root / BOOK / PHOTOS)
        problems += listed
        folder, images, apart, unread = root, sorted(origins), False, 0  # people, no longer photos
        if not images:
            raise UserError(
                f"{printable(root)}: nobody was found in {len(listed):,} photos", "give photos of people"
            )
    settings: dict[str, Any] = {"kind": "annotation", "images": _absolute(folder) if apart else "."}
    settings |= {"batch_size": how.batch_size, **annotators.describe()}
    if isinstance(annotators.keypoints, KeypointFiles) and annotators.keypoints.is_table:
        repeated = repeated_names(images or _images(folder, [], beside))
        open_annotators = partial(_knowing, open_annotators, repeated)
        annotators.keypoints.repeated = repeated
    outputs = (*CROP_OUTPUTS, COPIES) if apart else CROP_OUTPUTS
    job = AnnotationJob(
        Folder(root, root / BOOK, CROP_COLUMNS, synthetic=False, outputs=outputs),
        settings,
        _environment(),
        images=folder,
        listed=images,
        beside=beside,
        foreign=_foreign(root, annotators, apart),
        given=annotators.given,
    )
    rest = (folder, how.batch_size, apart, origins)
    executor = _executor(
        how,
        lambda: CropMaker(annotators, *rest),
        partial(_crop_maker, torch.get_num_threads(), open_annotators, *rest),
    )
    work, finished = Work(len(images)), list[AnnotationReport]()

    def finish() -> None:
        listed = problems + _table_problems(annotators)
        told: dict[str, Any] = {"with_keypoints": annotators.keypoints is not None, "unread": unread}
        finished.append(write_results(job, work, listed, own_mask=annotators.own_mask, **told))
        seal_annotations(root)

    take_step(how.step, job, executor, work, on_progress=how.on_progress("annotating"), after=finish)
    return finished[0] if finished else AnnotationReport(0, 0, 0, {}, {}, {}, root, work)


def annotate_step(
    folder: Path,
    out: Path | None,
    choice: AnnotatorChoice,
    batch_size: int,
    threads: int | None,
    step: Step,
    processes: int = 1,
    sample: int | None = None,
    on_progress: Callable[[str], Progress] = lambda stage: None,
) -> AnnotationReport:
    """:func:`annotate` with the annotators of a choice; picklable, for a step in a process elsewhere."""
    if threads is not None:
        torch.set_num_threads(threads)
    choice = choice.continuing(earlier_settings(out or folder))
    detector = choice.open_detector if choice.detect != NONE else None
    how = AnnotateOptions(batch_size, sample, processes, on_progress, step)
    return annotate(folder, out, choice.open, detector, how)


def _checked(folder: Path, root: Path, how: AnnotateOptions, *, cuts: bool) -> bool:
    """Whether the annotations go to another folder than the images'; refuses what does not go together."""
    refuse_groups(how.step, how.processes)
    if how.step.name != "all" and how.sample is not None:
        raise UserError("--sample is a look, for one process", "leave --step out, or --sample")
    if not folder.is_dir():
        raise no_folder(folder)
    apart = _is_apart(folder, root)
    if cuts and not apart:
        raise UserError("people cut out of photos need a folder of their own", "give --out")
    return apart


def _images(folder: Path, problems: list[AnnotationProblem], beside: Sequence[str]) -> list[str]:
    """The images of people; folders of annotations hold none, whether given or only called so."""
    places = ["", *split_folders(folder).values()]
    likely = annotation_folders(folder, places, beside, problems, "--mask or --keypoints")
    found = []
    for path in list_images(folder, problems, skip={*beside, *likely}):
        try:
            found.append(check_relative(path))
        except ValueError as error:  # c:x.jpg: no place of a copy, and no file on Windows
            message = f"{error}; left out: rename the file"
            problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-path"))
    kept, collisions = drop_shadowed(found)
    problems += collisions
    if not kept:
        reason = f" of people ({problems[0]})" if problems else ""
        advice = "give a folder with .jpg, .png, .webp or .bmp"
        raise UserError(f"{printable(folder)}: holds no image{reason}", advice)
    return [path for path, _ in kept]


def _spread(images: Sequence[str], count: int) -> list[str]:
    """``count`` of the images, evenly over their order."""
    if count < 1:
        raise UserError(f"--sample {count}: nothing to look at", "give 1 or more")
    if count >= len(images):
        return list(images)
    return [images[i * len(images) // count] for i in range(count)]


def _is_apart(folder: Path, root: Path) -> bool:
    """Whether the annotations go to another folder than the images'."""
    here, there = os.path.realpath(folder), os.path.realpath(root)
    if here == there:
        return False
    if os.path.commonpath((here, there)) in (here, there):
        advice = "give that folder itself, or one outside it"
        raise UserError(f"{printable(root)}: overlaps with {printable(folder)}", advice)
    return True


def _cut_people(
    folder: Path, root: Path, photos: Sequence[str], open_detector: OpenDetector, how: AnnotateOptions
) -> tuple[Step | None, Work]:
    """Cut the people out of the photos, or do a step of that.

    Returns:
        What to do with the people next: None, where workers cut first; and what was done here.
    """
    detector, info = open_detector()
    book = root / BOOK / PHOTOS
    job = AnnotationJob(
        Folder(root, book, PHOTO_COLUMNS, synthetic=False, outputs=PHOTO_OUTPUTS),
        {"kind": "people in photos", "photos": _absolute(folder), "detector": _described(info)},
        _environment(),
        images=folder,
        listed=photos,
        foreign=sorted(path for path in root.iterdir() if path.name != BOOK) if root.is_dir() else [],
    )
    executor = _executor(
        how,
        lambda: PhotoMaker(detector, folder),
        partial(_photo_maker, torch.get_num_threads(), open_detector, folder),
    )
    step, work, meter = how.step, Work(len(photos)), how.on_progress("cutting")
    if step.name in ("work", "finish") and not is_planned(book):
        return step, work  # of what was cut out before
    take_step(step, job, executor, work, on_progress=meter, after=job.drop_stale)
    if step.name == "plan" and work.kept == work.items:
        work = Work()
        take_step(replace(step, name="finish"), job, executor, work, after=job.drop_stale)
    elif step.name in ("plan", "work"):
        return None, work
    # who finishes the cutting plans what follows
    return replace(step, name="plan") if step.name == "finish" else step, work


def _left_out(book: Path) -> list[AnnotationProblem]:
    """What a finished journal of photos lists."""
    return [
        AnnotationProblem(cell["file"], 0, cell["field"], cell["message"], cell["rule"])
        for row in read_book(book).to_pylist()
        for cell in row["problems"]
    ]


def _executor(how: AnnotateOptions, here: Callable[[], Maker], there: Callable[[], Maker]) -> Executor:
    """``here`` makes the Maker of this process, ``there`` that of a new one."""
    return in_this_process(here) if how.processes == 1 else in_processes(there, how.processes)


def _foreign(root: Path, annotators: Annotators, apart: bool) -> list[Path]:
    """What a first start must not find: things that it would write over."""
    if apart and root.is_dir():
        return sorted(path for path in root.iterdir() if path.name != BOOK)
    made = {PARSING: annotators.parser, MASK: annotators.masks, KEYPOINTS: annotators.keypoints}
    return [root / name for name, annotator in made.items() if annotator is not None]


def _table_problems(annotators: Annotators) -> list[AnnotationProblem]:
    keypoints = annotators.keypoints
    return keypoints.table_problems() if isinstance(keypoints, KeypointFiles) else []


def _environment() -> dict[str, Any]:
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def _described(info: AnnotatorInfo) -> dict[str, str]:
    return {"name": info.name, "sha256": info.sha256, "licence": info.license}


def _absolute(folder: Path) -> str:
    return printable(os.path.abspath(folder))


def _knowing(open_annotators: Callable[[], Annotators], repeated: frozenset[str]) -> Annotators:
    """Annotators whose table of keypoints knows which file names several images have."""
    annotators = open_annotators()
    if isinstance(annotators.keypoints, KeypointFiles):
        annotators.keypoints.repeated = repeated
    return annotators


def _crop_maker(threads: int, open_annotators: Callable[[], Annotators], *rest: Any) -> CropMaker:
    """In another process."""
    torch.set_num_threads(threads)
    return CropMaker(open_annotators(), *rest)


def _photo_maker(threads: int, open_detector: OpenDetector, folder: Path) -> PhotoMaker:
    """In another process."""
    torch.set_num_threads(threads)
    return PhotoMaker(open_detector()[0], folder)
