"""Who makes an arm's pictures: a generator, and a predictor of maps where only the pose is the donor's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reposer.data.packed import PackedPeople
from reposer.data.prepare import PACKED
from reposer.experiments.image_evaluation import open_model
from reposer.generation.augmentation import check_generator
from reposer.generation.map_prediction import MapPredictor
from reposer.generation.pose_transfer import PoseTransfer
from reposer.runtime import Runtime


@dataclass(frozen=True)
class Painter:
    """By the names that a user gives."""

    generator: str  # as open_model knows it
    predictor: str = ""  # as MapPredictor.open knows it; empty: the donor's maps are used

    def open(self, runtime: Runtime | None = None) -> PoseTransfer:
        """Ready to generate.

        Raises:
            UserError: a folder that is none, or two that do not fit.
        """
        model = open_model(self.generator, runtime)
        if not self.predictor:
            return model
        return model.with_predictor(MapPredictor.open(self.predictor, model.runtime), "predicted")

    def describe(self, data: Path) -> dict[str, str]:
        """Hashes of the weights, whatever their names; "predictor" only where there is one.

        Raises:
            UserError: as :meth:`open`; or it is of another size than the prepared folder ``data``, or was
                trained on people whom that holds out.
        """
        return dict(_describe(self, data))


@cache
def _describe(painter: Painter, data: Path) -> tuple[tuple[str, str], ...]:
    model = painter.open()
    check_generator(model, PackedPeople.open(data / PACKED))
    hashes = [("generator", model.weights_hash)]
    if model.predictor is not None:  # only then, so that sets made without one keep their names
        hashes.append(("predictor", model.predictor.weights_hash))
    return tuple(hashes)
