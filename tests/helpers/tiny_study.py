"""A study of a few steps on rendered people, for several files of tests."""

from __future__ import annotations

from pathlib import Path

from reposer.studies.config import Arm, ArmFilter, StudyConfig, StudyRecipe

ARMS = (
    Arm(name="real"),
    Arm(name="real_repeated", factor=2, repeated=True),
    Arm(name="generated", factor=2),
    Arm(name="half_weight", factor=2, settings=("generated.weight=0.5",)),
)
FILTERED = Arm(name="filtered", factor=2, filter=ArmFilter())


def tiny(prepared: Path, **changes) -> StudyConfig:
    values = {
        "data": prepared,
        "arms": ARMS,
        "recipes": (StudyRecipe(preset="reid_demo", methods=("euclidean", "kissme")),),
        "seeds": (0, 1),
        "steps": 2,
        "settings": ("batch_size=8", "data.images_per_person=2", "embedding.stripes=1"),
    }
    return StudyConfig(**{**values, **changes})
