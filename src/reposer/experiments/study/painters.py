"""The networks behind an arm's pictures: generator and predictor of maps paint, a parser judges poses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from reposer.annotation.parser import SegmentationParser, open_parser
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.experiments.image_evaluation import open_model
from reposer.experiments.reid_rows import check_data
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


@dataclass(frozen=True)
class ParserChoice:
    """The parser that the poses of pictures are judged by."""

    name: str  # as open_parser knows it: an .onnx file of `reposer export-parser`, a folder, or a known name
    accept_licence: bool = False  # of its weights

    def open(self) -> SegmentationParser:
        """Ready to parse.

        Raises:
            UserError: as ``open_parser``.
        """
        return open_parser(self.name, accept_licence=self.accept_licence)

    def describe(self) -> dict[str, Any]:
        """Its weights by their hash, and how they are used.

        Raises:
            UserError: as ``open_parser``.
        """
        return _describe_parser(self)


@cache
def _describe_parser(choice: ParserChoice) -> dict[str, Any]:
    parser = choice.open()
    return {"sha256": parser.info.sha256, **parser.description.model_dump(mode="json")}


@cache
def _describe(painter: Painter, data: Path) -> tuple[tuple[str, str], ...]:
    people = PackedPeople.open(data / PACKED)
    check_data(people, painter.generator, painter.predictor or None)
    model = painter.open()
    check_generator(model, people)
    hashes = [("generator", model.weights_hash)]
    if model.predictor is not None:  # only then, so that sets made without one keep their names
        hashes.append(("predictor", model.predictor.weights_hash))
    return tuple(hashes)
