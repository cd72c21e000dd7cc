"""The three ways to ask for pictures: a pair list of a prepared folder, a folder and one donor, one image."""

from __future__ import annotations

from pathlib import Path

from reposer.data.packed import PackedPeople
from reposer.data.prepare import PACKED
from reposer.experiments.image_evaluation import read_named_pairs
from reposer.generation.batch import Options, generate
from reposer.generation.inputs import load_person
from reposer.generation.outputs import write_picture
from reposer.generation.pair_sources import FolderPairs, PackedPairs, PairSource
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.shards import WriteReport
from reposer.progress import progress

ImageAndMap = tuple[Path, Path | None]


def generate_pair_list(
    model: PoseTransfer, prepared: Path, pairs_csv: Path, out: Path, options: Options
) -> WriteReport:
    """Every pair of a CSV (from: source, to: donor) of a prepared folder."""
    people = PackedPeople.open(prepared / PACKED)
    return _generate(model, PackedPairs(people, read_named_pairs(pairs_csv, people)), out, options)


def generate_from_folder(
    model: PoseTransfer, folder: Path, donor: Path, donor_parsing: Path | None, out: Path, options: Options
) -> WriteReport:
    """Every image of a folder in the pose of one donor."""
    pose = load_person(donor, _map_of(donor, donor_parsing), _mask_of(donor), size=model.size)
    return _generate(model, FolderPairs(folder, pose), out, options)


def generate_one(
    model: PoseTransfer, source: ImageAndMap, donor: ImageAndMap, out: Path, background: str
) -> str:
    """One picture, of the size of the source image; returns what was written where."""
    who = load_person(source[0], _map_of(*source), _mask_of(source[0]), size=model.size)
    pose = load_person(donor[0], _map_of(*donor), _mask_of(donor[0]), size=model.size)
    picture = model.transfer(who, pose, background, original_size=True)
    write_picture(out, picture)
    return f"{out}: {who.name} in the pose of {pose.name}"


def _generate(model: PoseTransfer, pairs: PairSource, out: Path, options: Options) -> WriteReport:
    with progress(len(pairs.names), unit="pictures") as meter:
        return generate(model, pairs, out, options, on_progress=lambda done, _: meter.update(done))


def _map_of(image: Path, parsing: Path | None) -> Path | None:
    """The label map that was named, or the one that lies where data sets have it."""
    return parsing or _beside(image, "parsing")


def _mask_of(image: Path) -> Path | None:
    return _beside(image, "mask")


def _beside(image: Path, kind: str) -> Path | None:
    """FOLDER/kind/<stem>.png or FOLDER/../kind/<stem>.png, where the first that exists counts."""
    places = (folder / kind / f"{image.stem}.png" for folder in (image.parent, image.parent.parent))
    return next((place for place in places if place.is_file()), None)
