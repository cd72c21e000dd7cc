"""Studies by name: functions that return a full configuration; arms that several of them share."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from reposer.errors import UserError
from reposer.experiments.study.config import STUDYS, Arm, ArmFilter, Budget, StudyConfig, StudyRecipe

REAL = Arm(name="real")
REPEATED = Arm(name="real_repeated", factor=2, repeated=True)
CLASSICAL = (  # the recipe's own flip, crop and erasing, taken away and put back
    Arm(name="real_plain", settings=("augment.flip=false", "augment.pad=0", "augment.erase=0")),
    Arm(name="real_flip_crop", settings=("augment.flip=true", "augment.pad=5", "augment.erase=0")),
    Arm(name="real_erasing", settings=("augment.flip=true", "augment.pad=5", "augment.erase=0.5")),
)
GENERATED = (
    Arm(name="x2_any", factor=2),
    Arm(name="x2_compatible", factor=2, policy="compatible"),
    Arm(name="x2_coverage", factor=2, policy="coverage"),
    Arm(name="x2_filtered", factor=2, filter=ArmFilter(identity_quantile=0.99)),
    Arm(name="x2_donor_background", factor=2, background="donor"),
    Arm(name="x4_any", factor=4),
)
POLICIES = tuple(
    Arm(name=f"x2_{policy}", factor=2, policy=policy)
    for policy in ("same_camera", "other_camera", "same_identity", "canonical")
)
_MOSTLY_REAL = ("generated.real_share=0.75",)  # of every batch
LABELS = (  # how generated images enter the loss; all of them share the pictures of x2_any
    Arm(name="x2_smoothed", factor=2, settings=("generated.label=smoothed",)),
    Arm(name="x2_uniform", factor=2, settings=("generated.label=uniform",)),
    Arm(name="x2_half_weight", factor=2, settings=("generated.weight=0.5",)),
    Arm(name="x2_three_quarters_real", factor=2, settings=_MOSTLY_REAL),
)
LEVERS = (  # what raised the pictures of real people most, alone and with a milder use
    Arm(name="x2_compatible_smoothed", factor=2, policy="compatible", settings=("generated.label=smoothed",)),
    Arm(name="x2_compatible_three_quarters_real", factor=2, policy="compatible", settings=_MOSTLY_REAL),
    Arm(name="x2_same_identity_three_quarters_real", factor=2, policy="same_identity", settings=_MOSTLY_REAL),
    Arm(name="x2_filtered_strict", factor=2, filter=ArmFilter(identity_quantile=0.8)),
    Arm(name="x2_filtered_pose", factor=2, filter=ArmFilter(identity=False, pose="merged8")),
)
PREDICTED = (  # the donor lends its pose only: target maps are the predictor's, from what the source wears
    Arm(name="x2_predicted", factor=2, predictor=STUDYS),
    Arm(name="x2_predicted_three_quarters_real", factor=2, predictor=STUDYS, settings=_MOSTLY_REAL),
)


def augmentation() -> StudyConfig:
    """Every kind of arm on rendered people, small enough for an hour on two cores."""
    return StudyConfig(
        data=Path("prepared/rendered"),
        arms=(REAL, REPEATED, *CLASSICAL, *GENERATED, *POLICIES),
        recipes=(StudyRecipe(preset="reid_demo"),),
        steps=150,
    )


def market_dev() -> StudyConfig:
    """Market-1501's development split: IDE on MobileNetV2, 8 arms, two budgets, 3 seeds, 300 steps each.

    Wants ``--set 'settings=["initial_path=FILE"]'``, the weights of ``ide_small``.
    """
    return StudyConfig(
        data=Path("prepared/market1501"),
        arms=(REAL, REPEATED, *GENERATED),
        recipes=(StudyRecipe(preset="ide_small"),),
        budgets=(Budget(), Budget(share=0.2)),
        steps=300,
    )


def san_table() -> StudyConfig:
    """The paper's table: IDE with three distances and Siamese, ResNet-50, by factor; for a GPU.

    Ours: real_repeated, three seeds, equal steps for every factor (the 50,000 of IDE's).
    """
    return StudyConfig(
        data=Path("prepared/market1501"),
        arms=(REAL, REPEATED, *(Arm(name=f"x{factor}", factor=factor) for factor in (2, 4, 8))),
        recipes=(
            StudyRecipe(preset="ide2016"),
            StudyRecipe(preset="siamese2017", methods=("euclidean",)),
        ),
        steps=50_000,
    )


def demo() -> StudyConfig:
    """What ``make demo`` runs: two trainings of each of three arms, a minute or two."""
    return StudyConfig(
        data=Path("prepared/rendered"),
        arms=(REAL, Arm(name="real_repeated", factor=3, repeated=True), Arm(name="generated", factor=3)),
        recipes=(StudyRecipe(preset="reid_demo"),),
        seeds=(0, 1),
        steps=60,
        settings=("batch_size=32",),
        threads=None,
    )


STUDIES: dict[str, Callable[[], StudyConfig]] = {
    "augmentation": augmentation,
    "market_dev": market_dev,
    "san_table": san_table,
}
EXTRA_ARMS = (*CLASSICAL, *GENERATED, *POLICIES, *LABELS, *LEVERS, *PREDICTED)  # of any study, by name


def find_study(name: str) -> StudyConfig:
    """The study of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, [*STUDIES, "ablations"], n=1, cutoff=0.0)
        known = ", ".join([*STUDIES, "ablations"])
        raise UserError(f"there is no study {name}", f"did you mean {near[0]}? known: {known}")
    return STUDIES[name]()
