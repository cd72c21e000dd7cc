"""The demo: the whole story on rendered people, without data, network or GPU, in about five minutes.

Render people, prepare them, train a small SAN from scratch for a short while to see it learn, re-pose people
that no generator has seen, and measure that beside the trivial baselines; then enlarge the training set three
times with the shipped SAN, train Re-ID networks with and without its pictures, and say whether it helped.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from reposer.studies.report import PICTURES
from reposer.studies.study import demo as demo_study
from reposer.studies.study import run_study
from reposer.training.loop import train
from reposer.training.run_writer import TrainingSummary
from reposer.workflows.gan_presets import san_demo

SEED = 2024  # of the demo's people; the shipped generator was trained on people of another seed
TRAIN_PEOPLE, TEST_PEOPLE, IMAGES = 32, 12, 12
PAIRS = 192  # test pairs that are measured
TRAIN_MINUTES = 1.75  # of training from scratch
STUDY = "study"  # folder in the demo's
SHOWN = 10  # pairs in the first grid, one a row: its pictures stand at twice their size on the page
POSES = 7  # donors of the one-person-in-many-poses grid
GRIDS = ("pairs.png", "poses.png")  # in PICTURES
_OF_STUDY = (  # what a study's folder holds, which is deleted before the next demo's takes its place
    *("study.json", "sections.json", "table.*", "mistakes.*", SEAL, OUTPUTS, STAGES, LOGS, PICTURES),
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
    study = demo_study().changed(data=out / "prepared", threads=threads)
    scale = Scale(TRAIN_PEOPLE, TEST_PEOPLE, PAIRS, TRAIN_MINUTES, study)
    if quick:
        scale = Scale(6, 3, 16, 0.2, study.changed(steps=4, settings=("batch_size=16",)))
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    say("[1/5] rendering people")
    summary = write_rendered_dataset(
        out / "people",
        identities=scale.train_people,
        test_identities=scale.test_people,
        images_per_identity=IMAGES,
        seed=SEED,
    )
    prepare_market1501(out / "people", out / "prepared")
    people = PackedPeople.open(out / "prepared" / "packed")
    pairs = _test_pairs(people, scale.pairs)

    say(f"[2/5] training a small SAN from scratch for {scale.minutes:.1f} minutes")
    trained = _train_from_scratch(out, scale, threads)
    runtime = setup(threads=threads)
    names = ("shipped", "shipped-rsa", "transport")
    shipped, rsa, carried = (PoseTransfer.from_pretrained(name, runtime) for name in names)
    predicting = PoseTransfer.from_pretrained("shipped", runtime).with_predictor(
        MapPredictor.from_pretrained("shipped-predictor", runtime), "predicted"
    )
    fresh = PoseTransfer.from_pretrained(out / "training", runtime)

    say("[3/5] re-posing people that no generator has seen")
    _write_pictures(out, people, pairs, [shipped, predicting, rsa, fresh, carried])

    say("[4/5] measuring")
    methods: dict[str, Method] = {
        "SAN (shipped)": shipped,
        "SAN (shipped), donor's background": lambda batch: shipped(batch, "donor"),
        "SAN (shipped), predicted maps": predicting,
        "RSA-GAN (shipped)": rsa,
        "texture transport (no weights)": carried,
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
    out: Path, people: PackedPeople, pairs: NDArray[np.int64], models: Sequence[PoseTransfer]
) -> None:
    """Two grids: pairs with their true target by every model, and single people in the poses of others.

    Args:
        out: of the demo.
        people: all that were rendered.
        pairs: (P, 2) source and target rows.
        models: shipped SAN, the same with predicted maps, RSA-GAN, the SAN from scratch, and texture
            transport.
    """
    *learned, carried = models
    shipped, pictures = models[0], made_folder(out, PICTURES)
    shown = pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]
    columns = [
        list(people.images[shown[:, 0]]),
        [colorize(labels) for labels in people.parsing[shown[:, 1]]],
        *(_pictures(model, people, shown) for model in learned),
        _pictures(carried, people, shown, "donor"),
        list(people.images[shown[:, 1]]),
    ]
    titles = ["source", "target map", "SAN", "pose only", "RSA-GAN", "scratch", "carried", "true target"]
    write_output(
        pictures / "pairs.png", encode_png(draw_grid(list(zip(*columns, strict=True)), titles, scale=2))
    )

    first_of_each = np.unique(people.pids[pairs[:, 0]], return_index=True)[1]
    rows = []
    for source in pairs[first_of_each, 0][:8]:
        others = pairs[people.pids[pairs[:, 1]] != people.pids[source], 1]
        donors = others[:: max(1, len(others) // POSES)][:POSES]
        asked = np.stack([np.full_like(donors, source), donors], axis=1)
        rows.append([people.images[source], *_pictures(shipped, people, asked, "donor")])
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
        "The training set is enlarged three times with the shipped SAN. Small Re-ID networks are trained on"
        " the real images alone, on each real image three times, and on real and generated images: the same"
        " number of steps for all. Minutes of training on a few rendered people are an illustration, no"
        " evidence; the intervals and p-values say how little or much these numbers carry."
    )
    found, *sections = [
        replace(part, pictures=[replace(p, file=f"{STUDY}/{p.file}") for p in part.pictures])
        for part in read_sections(out / STUDY)
    ]
    return [found, Section("Do generated pictures help to recognize people?", [text]), *sections]


def _story(test_people: int, pairs: int, scratch: TrainingSummary) -> list[Section]:
    """What the page says before its tables."""
    pairs_text = (
        "Source and target show the same rendered person. SAN sees the source image with its mask and label"
        " map, and of the target only mask and label map. “Pose only”: the same SAN with maps that the"
        " shipped predictor made from the target's keypoints. “RSA-GAN” (reconstruction from the abstract)"
        " gets no target map either. “Scratch” is the SAN that was trained on this machine a moment ago, for"
        f" {scratch.step} steps in {scratch.minutes:.1f} minutes. “Carried” is no network: the source's"
        " pixels taken to the target's pose, and where it shows none the garment's median color, over the"
        " target image's own background."
    )
    poses_text = (
        "In use there is no true target: another person lends the pose, and here the background too. The"
        " garment classes of the donor's label map come along (a skirt where the source wears trousers); the"
        " colors are the source's. Patterns are beyond a generator of this size."
    )
    measured_text = (
        f"{pairs} pairs of {test_people} rendered test people. The SAN from scratch was trained without the"
        " paper's perceptual term, whose VGG-19 is not part of this package; how the shipped one was trained"
        " stands in its model card. A metric whose network is not on this machine is not measured; no other"
        " network takes its place."
    )
    return [
        Section(
            "People re-posed", [pairs_text], [Picture("Test people, new to both.", "pictures/pairs.png")]
        ),
        Section("One person, many poses", [poses_text], [Picture("Left: the source.", "pictures/poses.png")]),
        Section("What was measured", [measured_text]),
    ]
