"""The demo: the whole story on rendered people, without data, network or GPU, in about five minutes.

Render people, prepare them, train a small SAN from scratch for a short while to see it learn, re-pose people
that no generator has seen, and measure that beside the trivial baselines; then take a training set whose
people were each seen by one camera, enlarge it three times, train Re-ID networks with and without generated
pictures, and say whether it helped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from reposer.data.packed import PackedPeople
from reposer.data.pairs import ordered_pairs
from reposer.data.parsing import colorize
from reposer.data.preparing.prepare import prepare_market1501
from reposer.evaluation.image_quality import DEFAULT_METRICS, Method, evaluate_pairs
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.images import encode_png
from reposer.jobs.stages import LOGS, STAGES
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.sections import Picture, Section, draw_grid, read_sections, write_sections
from reposer.storage.files import refuse_foreign, remove_tree
from reposer.storage.outputs import OUTPUTS, SEAL, claim_outputs, refuse_others, write_output
from reposer.storage.paths import made_folder
from reposer.studies.config import StudyConfig
from reposer.studies.report import PICTURES, WRITTEN
from reposer.studies.study import demo as demo_study
from reposer.studies.study import run_study
from reposer.training.loop import train
from reposer.training.run_writer import TrainingSummary
from reposer.workflows.gan_presets import san_demo

SEED = 2024  # of the demo's people; the shipped generator was trained on people of another seed
TRAIN_PEOPLE, TEST_PEOPLE, IMAGES = 48, 12, 12
PAIRS = 192  # test pairs that are measured
TRAIN_MINUTES = 1.25  # of training from scratch
SINGLE = "prepared_single_camera"  # folder in the demo's: what the study trains on
STUDY = "study"  # the same
SHOWN = 10  # pairs in the first grid, one a row: its pictures stand at twice their size on the page
POSES = 7  # donors of the one-person-in-many-poses grid
GRIDS = ("pairs.png", "poses.png")  # in PICTURES
_OF_STUDY = (  # what a study's folder holds, which is deleted before the next demo's takes its place
    *("study.json", "sections.json", "table.*", *WRITTEN, SEAL, OUTPUTS, STAGES, LOGS, PICTURES),
    *(f"{LOGS}/*.log", f"{PICTURES}/cmc_*.png", f"{PICTURES}/*_kept.png", f"{PICTURES}/*_dropped.png"),
    *(f"{PICTURES}/ranks_*", f"{PICTURES}/ranks_*/*.png", f"{PICTURES}/{OUTPUTS}", f"{PICTURES}/*/{OUTPUTS}"),
    *(f"{STAGES}/*-*", f"{STAGES}/*-*/set", f"{STAGES}/*-*/run"),
    *(f"{STAGES}/*-*/{name}" for name in ("*.json", "*.npz", "*.parquet", ".lock", ".*.tmp-*")),
)


@dataclass(frozen=True)
class Scale:
    """How much of everything; ``quick`` is a tenth, to see that everything runs."""

    train_people: int
    test_people: int
    pairs: int
    minutes: float
    study: StudyConfig


def run_demo(out: Path, *, quick: bool = False, threads: int | None = None) -> Path:
    """Run every step into ``out`` and return it; ``reposer.report.write_report`` makes the page.

    Args:
        out: folder for data, runs, tables and pictures; an earlier demo there is replaced.
        quick: a tenth of the work.
        threads: CPU threads; default: PyTorch's choice.

    Raises:
        UserError: ``out`` holds what no demo wrote.
    """
    say = Console(stderr=True, highlight=False).print
    study = demo_study().changed(data=out / SINGLE, threads=threads)
    scale = Scale(TRAIN_PEOPLE, TEST_PEOPLE, PAIRS, TRAIN_MINUTES, study)
    if quick:
        scale = Scale(6, 3, 16, 0.2, study.changed(steps=4, settings=("batch_size=16",)))
    _check_out(out)
    made_folder(out)
    say("[1/5] rendering people")
    summary = write_rendered_dataset(
        out / "people",
        identities=scale.train_people,
        test_identities=scale.test_people,
        images_per_identity=IMAGES,
        seed=SEED,
    )
    prepare_market1501(out / "people", out / "prepared")
    prepare_market1501(out / "people", out / SINGLE, single_camera=True)
    people = PackedPeople.open(out / "prepared" / "packed")
    pairs = _test_pairs(people, scale.pairs)

    say(f"[2/5] training a small SAN from scratch for {scale.minutes:.1f} minutes")
    trained = _train_from_scratch(out, scale, threads)
    runtime = setup(threads=threads)
    names = ("shipped-transport", "shipped", "shipped-rsa", "transport")
    mending, san, rsa, carried = (PoseTransfer.from_pretrained(name, runtime) for name in names)
    predictor = MapPredictor.from_pretrained("shipped-predictor", runtime)
    predicting = mending.with_predictor(predictor, "predicted")
    fresh = PoseTransfer.from_pretrained(out / "training", runtime)

    say("[3/5] re-posing people that no generator has seen")
    columns = {"mended": mending, "pose only": predicting, "SAN": san, "RSA-GAN": rsa, "scratch": fresh}
    _write_pictures(out, people, pairs, columns)

    say("[4/5] measuring")
    methods: dict[str, Method] = {
        "carried and mended (shipped)": mending,
        "carried and mended, donor's background": lambda batch: mending(batch, "donor"),
        "carried and mended, predicted maps": predicting,
        "carried alone (no weights)": carried,
        "SAN (shipped)": san,
        "RSA-GAN (shipped)": rsa,
        f"SAN trained here for {scale.minutes:.1f} minutes": fresh,
    }
    quality = evaluate_pairs(
        methods,
        people,
        pairs,
        (*DEFAULT_METRICS, "lpips_alex"),
        training=np.flatnonzero(people.splits == "train"),
    )
    quality.write(out / "evaluation")

    say("[5/5] training Re-ID networks with and without generated pictures")
    remove_tree(out / STUDY)  # an earlier demo's
    run_study(scale.study, out / STUDY)
    story = _story(summary.test_people, len(pairs), trained)
    found, *parts = _study_sections(out)
    write_sections(out, [found, *story[:2], *parts, *story[2:]])
    return out


def _check_out(out: Path) -> None:
    """Refuse, before any work, to write over or to delete what is not an earlier demo's."""
    for folder in (out / PICTURES, out / STUDY):
        refuse_others(folder, ("*",))  # a link, or no folder
    refuse_foreign(out / STUDY, _is_of_study, "an earlier demo's study")
    older = (out / "prepared" / "report.json").is_file()  # a demo's, of before outputs were listed
    claim_outputs(out / PICTURES, GRIDS, older=older)


def _is_of_study(name: str) -> bool:
    """Whether a path in a study's folder is of what is written there; all in a part of a stage is."""
    parts = name.split("/")
    known = (one for one in _OF_STUDY if one.count("/") == len(parts[:3]) - 1)
    return any(fnmatchcase("/".join(parts[:3]), one) for one in known)


def _test_pairs(people: PackedPeople, wanted: int) -> NDArray[np.int64]:
    """(P, 2) source and target of the test people: a seeded sample of all ordered pairs of one person."""
    test = np.flatnonzero(people.splits != "train")
    groups = [test[people.pids[test] == pid] for pid in np.unique(people.pids[test])]
    pairs = ordered_pairs(groups)
    chosen = np.random.default_rng(SEED).permutation(len(pairs))[:wanted]
    return pairs[np.sort(chosen)]


def _train_from_scratch(out: Path, scale: Scale, threads: int | None) -> TrainingSummary:
    config = san_demo()
    config = config.changed(data=config.data.changed(folder=out / "prepared"), threads=threads)
    return train(config, out / "training", max_minutes=scale.minutes)


def _write_pictures(
    out: Path, people: PackedPeople, pairs: NDArray[np.int64], models: Mapping[str, PoseTransfer]
) -> None:
    """Two grids: pairs with their true target by every model, and single people in the poses of others.

    Args:
        out: of the demo.
        people: all that were rendered.
        pairs: (P, 2) source and target rows.
        models: title of a column -> who makes its pictures; the first makes the second grid, too.
    """
    pictures = made_folder(out, PICTURES)
    shown = pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]
    columns = [
        list(people.images[shown[:, 0]]),
        [colorize(labels) for labels in people.parsing[shown[:, 1]]],
        *(_pictures(model, people, shown) for model in models.values()),
        list(people.images[shown[:, 1]]),
    ]
    titles = ["source", "target map", *models, "true target"]
    write_output(
        pictures / "pairs.png", encode_png(draw_grid(list(zip(*columns, strict=True)), titles, scale=2))
    )

    first_of_each = np.unique(people.pids[pairs[:, 0]], return_index=True)[1]
    rows = []
    for source in pairs[first_of_each, 0][:8]:
        others = pairs[people.pids[pairs[:, 1]] != people.pids[source], 1]
        donors = others[:: max(1, len(others) // POSES)][:POSES]
        asked = np.stack([np.full_like(donors, source), donors], axis=1)
        made = _pictures(next(iter(models.values())), people, asked, "donor")
        rows.append([people.images[source], *made])
    write_output(pictures / "poses.png", encode_png(draw_grid(rows, ["source"], scale=2)))


def _pictures(
    model: PoseTransfer, people: PackedPeople, pairs: NDArray[np.int64], background: str = "generated"
) -> list[NDArray[np.uint8]]:
    batch = people.pair_batch(pairs[:, 0], pairs[:, 1])
    return list(model(batch, background).permute(0, 2, 3, 1).numpy())


def _study_sections(out: Path) -> list[Section]:
    """Those of the study's folder, pictures named from the demo's: first what was found, then what this is
    about."""
    text = (
        "At a new site nobody has been seen by two cameras yet. Here each training person was seen by one"
        " camera, twice, and a network of such images tells people by scene and light. To each image two are"
        " added, in the scenes of other images. “pasted”: the person as it is, without any network. “san” and"
        " “mended”: in another person's pose as well, by the shipped generators. “real_repeated”: the image"
        " itself twice more. All train the same number of steps; people that nobody trained on are recognized"
        " across cameras. Minutes of training on a few rendered people are an illustration; the intervals and"
        " p-values say how much these numbers carry."
    )
    found, *sections = [
        replace(part, pictures=[replace(p, file=f"{STUDY}/{p.file}") for p in part.pictures])
        for part in read_sections(out / STUDY)
    ]
    return [found, Section("Do generated pictures help to recognize people?", [text]), *sections]


def _story(test_people: int, pairs: int, scratch: TrainingSummary) -> list[Section]:
    """What the page says before its tables."""
    pairs_text = (
        "Source and target show the same rendered person. A generator sees the source image with its mask and"
        " label map, and of the target only mask and label map. “Mended”: pixels of the source are carried to"
        " the target's pose, and a small network mends what was carried. “Pose only”: the same with maps that"
        " the shipped predictor made from the target's keypoints. SAN and RSA-GAN (reconstruction from the"
        " abstract; without a target map) invent all pixels. “Scratch” is the SAN that was trained on this"
        f" machine a moment ago, for {scratch.step} steps in {scratch.minutes:.1f} minutes."
    )
    poses_text = (
        "In use there is no true target: another person lends the pose, and here the background too. The"
        " garment classes of the donor's label map come along (a skirt where the source wears trousers);"
        " colors and patterns are the source's, as far as the source shows them."
    )
    measured_text = (
        f"{pairs} pairs of {test_people} rendered test people. The SAN from scratch was trained without the"
        " paper's perceptual term, whose VGG-19 is not part of this package; how the shipped ones were"
        " trained stands in their model cards. A metric whose network is not on this machine is not measured;"
        " no other network takes its place."
    )
    return [
        Section(
            "People re-posed", [pairs_text], [Picture("Test people, new to both.", "pictures/pairs.png")]
        ),
        Section("One person, many poses", [poses_text], [Picture("Left: the source.", "pictures/poses.png")]),
        Section("What was measured", [measured_text]),
    ]
