"""PoseTransfer: a trained generator in use. Source person + donor's pose in, picture out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.data.packed import PackedPeople, has_maps
from reposer.data.sources import check_sources
from reposer.errors import UserError, known
from reposer.generation.camera_colors import recolor
from reposer.generation.pictures import Person, people_batch, resize_array
from reposer.generation.stitching import stitch
from reposer.images import to_uint8
from reposer.models.parsing_networks import ParsingPredictor, decide_maps
from reposer.runtime import Runtime, setup
from reposer.structures import MISSING_LABEL, PairBatch
from reposer.trained.networks import GENERATOR, PREDICTOR, GeneratorConfig, open_network, save_generator
from reposer.weights.network_folder import weights_hash

# ---- Target label maps where there are none: predicted from what the source wears and the target's
# keypoints.


class MapPredictor:
    """A predictor of label maps in eval mode on its device.

    Args:
        network: ``forward(PairBatch) -> PredictedMaps``.
        config: what it is and where it comes from; ``config.generator`` is a key of PREDICTORS.
        runtime: device and precision; None: ``runtime.setup()``.
    """

    def __init__(self, network: nn.Module, config: GeneratorConfig, runtime: Runtime | None = None) -> None:
        self.config = config
        self.runtime = runtime or setup()
        self.network = network.eval().requires_grad_(False).to(self.runtime.device)
        self.network.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(cls, name: str | Path, runtime: Runtime | None = None) -> Self:
        """By a run folder of ``reposer train predictor_small``, an export, a hub id, or "shipped-predictor".

        Raises:
            UserError: no such folder, nothing trained in it yet, a damaged file, or no predictor.
        """
        found = open_network(PREDICTOR, name)
        return cls(found.network, found.info, runtime)

    def save_pretrained(
        self, folder: str | Path, *, half: bool = False, trained_on: str = "", card: str = ""
    ) -> None:
        """As ``PoseTransfer.save_pretrained``."""
        config = self.config.changed(trained_on=trained_on) if trained_on else self.config
        save_generator(folder, self.network, config, half=half, card=card)

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the weights, whatever file they came from."""
        return weights_hash(self.network)

    @torch.inference_mode()
    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Parsing (B, H, W) uint8 LIP-20 and mask (B, H, W) bool of the targets, on the predictor's device.

        Of the target only the keypoints are read.
        """
        with self.runtime.autocast():
            scores = self.network(batch.to(self.runtime.device))
        return decide_maps(scores)


def lacks_maps(batch: PairBatch) -> Tensor:
    """(B,) whether nothing is known of the target's parsing map."""
    return (batch.target_parsing == MISSING_LABEL).flatten(1).all(1)


def complete_targets(
    batch: PairBatch, needs: Collection[str], predictor: MapPredictor | None, *, always: bool = False
) -> PairBatch:
    """The batch with target maps where ``needs`` names them.

    Args:
        batch: a target whose parsing map is MISSING_LABEL everywhere has none.
        needs: fields that will be read.
        predictor: supplies missing maps; None where all must be there.
        always: predict all of them, and use none of the given ones.

    Raises:
        UserError: a map that is needed is missing, and there is no predictor or no keypoint to predict from.
    """
    if not {"target_parsing", "target_mask"} & set(needs):
        return batch
    wanted = torch.ones(len(batch), dtype=torch.bool) if always else lacks_maps(batch).cpu()
    if not wanted.any():
        return batch
    if predictor is None:
        raise UserError(
            f"{int(wanted.sum())} of {len(batch)} targets have no parsing map and mask, which are needed",
            "name a predictor of label maps (--predictor), or use a generator driven by keypoints"
            " without another background",
        )
    blind = wanted & batch.target_keypoints.isnan().flatten(1).all(1).cpu()
    if blind.any():
        raise UserError(
            f"{int(blind.sum())} of {len(batch)} targets have no keypoint to predict their label maps from",
            "give keypoints, or the label maps",
        )
    parsing, mask = predictor(batch)
    rows = wanted.to(parsing.device)[:, None, None]
    return replace(
        batch,
        target_parsing=torch.where(rows, parsing, batch.target_parsing.to(parsing.device)),
        target_mask=torch.where(rows, mask, batch.target_mask.to(mask.device)),
    )


def with_read_maps(
    model: PoseTransfer, people: PackedPeople, rows: NDArray[np.int64], background: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images that pictures can be made from, and those that can be targets, as far as label maps go.

    As in augmented sets and lists of pairs, one whose map is read and missing is left out. Where none can be
    a target, all stay: the model says what it lacks.

    Args:
        model: what it reads with ``background``, and of whom its predictor makes missing target maps.
        people: the packed people.
        rows: (N,) images; both results keep their order.
    """
    predictor, given = getattr(model, "predictor", None), getattr(model, "maps", "given") == "given"
    read = {*getattr(model, "needs", lambda _: ())(background)}
    read |= {*ParsingPredictor.needs} if predictor else set()
    of_source = bool(read & {"source_parsing", "source_mask"})
    of_target = given and bool(read & {"target_parsing", "target_mask"})
    if not of_source and not of_target:
        return rows, rows
    mapped = has_maps(people, rows)
    makes, lends = (mapped if reads else np.ones_like(mapped) for reads in (of_source, of_target))
    if predictor and background != "donor":
        lends = lends | ~np.isnan(people.keypoints[rows]).all(axis=(1, 2))
    return (rows[makes], rows[lends]) if lends.any() else (rows, rows)


MAPS = ("given", "predicted")
_EVERYTHING = tuple(field.name for field in fields(PairBatch))


class PoseTransfer:
    """A generator in eval mode on its device; a picture does not depend on the others of its batch.

    BatchNorm uses its running statistics, so a picture differs by at most 1/255 between batch sizes (the
    kernels of convolutions may sum in another order).

    Args:
        generator: ``forward(PairBatch) -> (B, 3, H, W)`` in [-1, 1].
        config: what it is and where it comes from.
        runtime: device and precision; None: ``runtime.setup()``, which also seeds this process.
        predictor: supplies target maps that the generator or the background needs and a target lacks.
        maps: "given": those of the target, where it has any; "predicted": always the predictor's, so that
            only the pose is the donor's.

    Raises:
        UserError: ``maps`` is neither, or "predicted" without a predictor; or that is of another size.
    """

    def __init__(
        self,
        generator: nn.Module,
        config: GeneratorConfig,
        runtime: Runtime | None = None,
        predictor: MapPredictor | None = None,
        maps: str = "given",
    ) -> None:
        if known("maps", maps, MAPS) == "predicted" and predictor is None:
            raise UserError("label maps predicted: by what is not said", "name a predictor of label maps")
        if predictor is not None and tuple(predictor.config.size) != tuple(config.size):
            raise UserError(
                f"the predictor works at {predictor.config.size}, the generator at {config.size}",
                "use two that were trained at one size",
            )
        self.predictor, self.maps = predictor, maps
        self.config = config
        self.runtime = runtime or setup()
        self.generator = generator.eval().requires_grad_(False).to(self.runtime.device)
        self.generator.to(memory_format=torch.channels_last)  # in place; half the time of NCHW on CPUs

    @classmethod
    def from_pretrained(cls, name: str | Path = "shipped", runtime: Runtime | None = None) -> Self:
        """By what a user calls it.

        Args:
            name: a run folder of ``reposer train`` (the averaged generator of its newest good checkpoint), a
                folder written by :meth:`save_pretrained`, ``hub:owner/name``, or a generator of the package,
                trained on the built-in rendered people: "shipped", SAN, "shipped-rsa", RSA-GAN
                (reconstruction from the abstract), or "shipped-transport", which mends carried texture; or
                one that learns nothing, a key of ``models.generators.CONTROLS``.
            runtime: device and precision; None: ``runtime.setup()``.

        Raises:
            UserError: there is none of that name, nothing is trained in it yet, the hub cannot be reached, or
                a file is damaged.
        """
        found = open_network(GENERATOR, name)
        return cls(found.network, found.info, runtime)

    def save_pretrained(
        self, folder: str | Path, *, half: bool = False, trained_on: str = "", card: str = ""
    ) -> None:
        """Write model.safetensors, config.json and README.md, the layout of the Hugging Face hub.

        Args:
            folder: made if missing.
            half: float16 weights, half the size.
            trained_on: the training data in words; default: what the generator came with.
            card: text of README.md below its front matter; default: written from the configuration.

        Raises:
            UserError: a weight is not finite or too large for float16, or the disk refuses.
        """
        config = self.config.changed(trained_on=trained_on) if trained_on else self.config
        save_generator(folder, self.generator, config, half=half, card=card)

    def with_predictor(self, predictor: MapPredictor | None, maps: str = "given") -> PoseTransfer:
        """The same generator, completed by a predictor; without weights it works at the predictor's size."""
        bare = PoseTransfer(self.generator, self.config, self.runtime)
        config = bare.at_size(predictor.config.size).config if predictor else bare.config
        return PoseTransfer(self.generator, config, self.runtime, predictor, maps)

    @property
    def learned(self) -> bool:
        """Whether it has weights; controls have none."""
        return any(True for _ in self.generator.parameters())

    def at_size(self, size: tuple[int, int]) -> PoseTransfer:
        """The same, at the size of the people; a generator with weights keeps its own."""
        if self.learned or tuple(size) == tuple(self.size):
            return self
        config = self.config.changed(size=tuple(size))
        return PoseTransfer(self.generator, config, self.runtime, self.predictor, self.maps)

    def needs(self, background: str = "generated") -> tuple[str, ...]:
        """Fields of the batch that a picture depends on, its background included."""
        own = getattr(self.generator, "needs", _EVERYTHING)
        return own if background == "generated" else (*own, "target_mask")

    def provenance(self, background: str = "generated") -> str:
        """What pictures are made from, for reports: how a control makes them, and where target maps come
        from; empty for a trained generator that uses the given ones as they are.
        """
        own = getattr(self.generator, "provenance", "")
        return "; ".join(text for text in (own, self._origin_of_maps(background)) if text)

    def _origin_of_maps(self, background: str) -> str:
        needs = set(self.needs(background))
        if not {"target_parsing", "target_mask"} & needs:
            driven = "target maps are not read: the generator is driven by keypoints"
            return driven if "target_keypoints" in needs else ""
        if self.predictor is None:
            return ""
        missing = "" if self.maps == "predicted" else " where a target has none"
        config = self.predictor.config
        origin = f"{config.generator}, step {config.step:,}, {self.predictor.weights_hash[:12]}"
        return f"target maps are predicted from what the source wears and the keypoints{missing} ({origin})"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that the generator was trained at."""
        return self.config.size

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the weights, whatever file they came from; the manifest's "checkpoint"."""
        return weights_hash(self.generator)

    def __call__(self, batch: PairBatch, background: str = "generated") -> Tensor:
        """Generate.

        Args:
            batch: B pairs on any device, images uint8.
            background: "generated", "donor" or "source"; see :func:`reposer.generation.stitching.stitch`.

        Returns:
            (B, 3, H, W) uint8 RGB on the CPU.

        Raises:
            UserError: a target lacks maps that are needed, and they cannot be predicted.
        """
        return self.paint(self.completed(batch, background), background)

    @torch.inference_mode()
    def paint(
        self, batch: PairBatch, background: str = "generated", colors: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """As :meth:`__call__` for a batch of :meth:`completed`.

        Args:
            colors: gain and offset (B, 3) of the generated people's channels, on values in [0, 255]; see
                :mod:`reposer.generation.camera_colors`. None: as generated.
        """
        batch = batch.to(self.runtime.device, non_blocking=True)
        with self.runtime.autocast():
            generated = to_uint8(self.generator(batch))
        if colors is not None:
            generated = recolor(generated, *colors)
        own = getattr(self.generator, "person", "target") == "source"
        return stitch(generated, batch, background, batch.source_mask if own else None).cpu()

    def completed(self, batch: PairBatch, background: str = "generated") -> PairBatch:
        """The batch that pictures are made from, with predicted target maps where they are needed.

        Raises:
            UserError: a target lacks maps that are needed, and they cannot be predicted.
        """
        always = self.maps == "predicted"
        if background == "donor" and (always or lacks_maps(batch).any()):
            problem = "background donor: cuts the donor out by its own mask, which is not used or not known"
            raise UserError(problem, "use the background generated or source")
        return complete_targets(batch, self.needs(background), self.predictor, always=always)

    def transfer(
        self,
        source: Person | Sequence[Person],
        donor: Person,
        background: str = "generated",
        *,
        original_size: bool = False,
    ) -> NDArray[np.uint8]:
        """The source person in the donor's pose; people come from
        :func:`reposer.generation.pictures.load_person`.

        Args:
            source: who; or several images of one person, the best first, for generators that take several.
            donor: in which pose.
            background: as in :meth:`__call__`.
            original_size: enlarge the picture to the size of the source's image file.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            UserError: a person is not of the size of the model.
        """
        views = [source] if isinstance(source, Person) else list(source)
        check_sources(len(views))
        for person in (*views, donor):
            if person.image.shape[:2] != self.size:
                shape, wanted = (
                    "x".join(str(side) for side in size) for size in (person.image.shape[:2], self.size)
                )
                raise UserError(
                    f"{person.name}: is {shape}, the model {wanted}", f"load it with size={self.size}"
                )
        generated = self(people_batch([views], [donor]), background)[0].permute(1, 2, 0).contiguous().numpy()
        return resize_array(generated, views[0].original_size) if original_size else generated


def with_predicted_maps(model: PoseTransfer, predictor: MapPredictor | None) -> PoseTransfer | None:
    """The model with maps of the predictor; None without one, or where the model reads no target maps."""
    if predictor is None or not {"target_parsing", "target_mask"} & set(model.needs()):
        return None
    return model.with_predictor(predictor, "predicted").at_size(model.size)
