"""Generating by a trained network: pictures of named pairs, folders or poses, and whole augmented sets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from reposer.annotation.parser import open_parser
from reposer.data.packed import PackedPeople, has_maps
from reposer.data.preparing.prepare import PACKED
from reposer.data.sources import check_sources
from reposer.errors import UserError
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.batch import GenerateOptions, WriteReport, generate
from reposer.generation.pair_sources import FolderPairs, PackedPairs, PairSource
from reposer.generation.pictures import Person, beside, load_person, no_map, output_names, write_picture
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.targets import CANONICAL, KEYPOINTS, keypoints_beside, read_targets
from reposer.jobs.workers import Step, refuse_groups
from reposer.models.parsing_networks import ParsingPredictor
from reposer.progress import Meter, progress
from reposer.runtime import setup
from reposer.storage.paths import printable
from reposer.workflows.evaluate import read_named_pairs
from reposer.workflows.reid_features import check_data

# ---- The ways to ask for pictures: a pair list, or a folder or an image with a donor or with poses.

ImageAndMap = tuple[Path, Path | None]
_PICTURES = (".png", ".jpg", ".jpeg")


def generate_pair_list(
    model: PoseTransfer,
    prepared: Path,
    pairs_csv: Path,
    out: Path,
    options: GenerateOptions,
    sources: int = 1,
) -> WriteReport:
    """Every pair of a CSV (from: source, to: donor) of a prepared folder, by so many images of the source.

    Camera "donor": in the colors of the donors' cameras, as the folder's training people tell them.
    """
    people = PackedPeople.open(prepared / PACKED)
    check_sources(sources)
    return _generate(model, PackedPairs(people, read_named_pairs(pairs_csv, people), sources), out, options)


def generate_from_folder(
    model: PoseTransfer,
    folder: Path,
    donor: Path,
    donor_parsing: Path | None,
    out: Path,
    options: GenerateOptions,
    *,
    data: Path | None = None,
) -> WriteReport:
    """Every image of a folder in the pose of one donor, a file or a name in the prepared folder ``data``.

    Raises:
        UserError: ``data`` has no image of that name.
    """
    people, lender = _people_of(data, donor), (donor, donor_parsing)
    model = _at_size(model, people, lender)
    pose = _person(model, people, lender)
    return _generate(model, FolderPairs(folder, pose), out, options)


def generate_one(
    model: PoseTransfer,
    source: ImageAndMap,
    donor: ImageAndMap,
    out: Path,
    background: str,
    *,
    data: Path | None = None,
) -> str:
    """One picture, of the size of the source image; returns what was written where.

    Args:
        source, donor: files, or names in ``data``.
        data: prepared folder.

    Raises:
        UserError: neither is an image of ``data``, and all that reading and re-posing refuse.
    """
    people = _people_of(data, source[0], donor[0])
    model = _at_size(model, people, source, donor)
    who, pose = _person(model, people, source), _person(model, people, donor)
    for person, field in ((who, "source_keypoints"), (pose, "target_keypoints")):
        if field in model.needs() and np.isnan(person.keypoints).all():
            advice = f"put a row for it into {KEYPOINTS} beside it"
            raise UserError(f"{person.name}: has no keypoints, which {model.config.generator} reads", advice)
    picture = model.transfer(who, pose, background, original_size=True)
    write_picture(out, picture)
    return _with_provenance(model, background, f"{out}: {who.name} in the pose of {pose.name}")


def generate_poses(
    model: PoseTransfer,
    source: ImageAndMap,
    target: str,
    out: Path,
    options: GenerateOptions,
    *,
    data: Path | None,
) -> WriteReport | str:
    """An image, every image of a folder, or a named image of a prepared folder, in the poses of ``target``.

    Args:
        target: as ``generation.targets.read_targets`` knows it.
        out: a folder; for one picture a PNG or JPEG file.
        data: prepared folder in which ``source`` and ``target`` may be names; a model without weights works
            at the size of a named source.

    Raises:
        UserError: the source has no label map, or is of another size than the model; ``out`` is the name of
            one picture, and several are made; or ``data`` has neither of the names.
    """
    people = _people_of(data, source[0], *([] if target.startswith(CANONICAL) else [Path(target)]))
    targets = read_targets(target, people)
    if len(targets) > 1:
        _refuse_picture(out)
    if source[0].is_dir():
        return _generate(model, FolderPairs(source[0], targets, size=model.size), out, options)
    model = _at_size(model, people, source)
    who = _person(model, people, source)
    lines = []
    read = (*model.needs(), *(ParsingPredictor.needs if model.predictor else ()))
    if "source_keypoints" in read and np.isnan(who.keypoints).all():
        lines.append(f"{who.name}: has no keypoints; its own pose is unknown to the networks")
    single = len(targets) == 1 and out.suffix.lower() in _PICTURES
    files = output_names([(who.name, one.name) for one in targets], options.file_format)
    for one, file in zip(targets, files, strict=True):
        picture = model.transfer(who, one.for_source(who), options.background, original_size=True)
        place = out if single else out / file
        write_picture(place, picture)
        lines.append(f"{place}: {who.name} in the pose {one.name}")
    return _with_provenance(model, options.background, "\n".join(lines))


def _with_provenance(model: PoseTransfer, background: str, text: str) -> str:
    return "\n".join(line for line in (text, model.provenance(background)) if line)


def _load(model: PoseTransfer, image: ImageAndMap) -> Person:
    """A person with the map that was named, and the annotations that lie beside it."""
    path = image[0]
    return load_person(path, _map_of(*image), _mask_of(path), keypoints_beside(path), size=model.size)


def _people_of(data: Path | None, *images: Path) -> PackedPeople | None:
    """The prepared folder that some of these images are named in; None without one."""
    if data is None:
        return None
    people = PackedPeople.open(data / PACKED)
    if people.name_index().keys().isdisjoint(map(str, images)):
        names = " and ".join(map(printable, images))
        raise UserError(f"{printable(data)}: has no image {names}", "correct the name, or leave out --data")
    return people


def _at_size(model: PoseTransfer, people: PackedPeople | None, *images: ImageAndMap) -> PoseTransfer:
    """The model; one without weights at the size of the prepared folder that names some of the images."""
    if people is None or people.name_index().keys().isdisjoint(str(image[0]) for image in images):
        return model
    return model.at_size(people.size)


def _person(model: PoseTransfer, people: PackedPeople | None, image: ImageAndMap) -> Person:
    """The image of that name in a prepared folder, else the file."""
    if people is None or str(image[0]) not in people.name_index():
        return _load(model, image)
    if image[1] is not None:
        problem = (
            f"{printable(image[0])}: is in the prepared folder with its label map, {printable(image[1])}"
        )
        raise UserError(f"{problem} would not be read", "leave that out")
    return _packed_person(people, str(image[0]))


def _packed_person(people: PackedPeople, name: str) -> Person:
    row = people.index(name)
    if not has_maps(people, np.array([row])).all():
        raise no_map(name, "annotate it with a parser, and prepare again")
    return Person(
        name=name,
        image=people.images[row],
        parsing=people.parsing[row],
        mask=people.mask[row],
        keypoints=people.keypoints[row],
        original_size=people.size,
        sha256=people.sha256[row],
    )


def _refuse_picture(out: Path) -> None:
    """The name of one picture for a folder of several; one that is there already is a folder of that name."""
    if out.suffix.lower() in _PICTURES and not out.is_dir():
        raise UserError(
            f"{printable(out)}: is the name of a picture, and a set of them is a folder", "name a folder"
        )


def _generate(model: PoseTransfer, pairs: PairSource, out: Path, options: GenerateOptions) -> WriteReport:
    _refuse_picture(out)
    with progress(len(pairs.names), unit="pictures") as meter:
        return generate(model, pairs, out, options, on_progress=lambda done, _: meter.update(done))


def _map_of(image: Path, parsing: Path | None) -> Path | None:
    """The label map that was named, or the one that lies where data sets have it."""
    return parsing or _beside(image, "parsing")


def _mask_of(image: Path) -> Path | None:
    return _beside(image, "mask")


def _beside(image: Path, kind: str) -> Path | None:
    """FOLDER/kind/<stem>.png of the first of the places beside the image that has it."""
    places = ((folder / kind / name).with_name(f"{image.stem}.png") for folder, name in beside(image))
    return next((place for place in places if place.is_file()), None)


# ---- ``reposer augment``: open the generator, show progress, write the set.


def augment_prepared(
    model: str,
    prepared: Path,
    out: Path,
    options: AugmentOptions,
    step: Step | None = None,
    processes: int = 1,
    *,
    images: Path | None,
    predictor: str | None,
    reid_run: Path | None,
    parser: str | None,
    accept_license: bool,
    threads: int | None,
    device: str,
) -> WriteReport:
    """The augmented set of a prepared folder, or a step towards it.

    Args:
        model: as ``PoseTransfer.from_pretrained`` knows it.
        images: the data set, for real images beside the generated ones.
        predictor: of target maps, as ``MapPredictor.from_pretrained`` knows it; None: the donors' maps.
        reid_run: of `reposer train`, for a filter that needs one.
        parser: as ``open_parser`` knows it, for a filter that needs one.
        accept_license: of the parser's weights.
    """
    refuse_groups(step, processes)
    runtime = setup(device, threads=threads, alone=step is not None and step.name != "all")
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
            reid_run=reid_run,
            parser=open_parser(parser, accept_license=accept_license) if parser else None,
            step=step,
            on_progress=show,
        )
