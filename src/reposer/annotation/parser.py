"""Parsers: a segmentation network and its description, from uint8 images to LIP-20 maps.

The steps are those of the model's own recipe: fit, round to whole gray levels, normalize; afterwards the
scores are carried back to the image's size, and only then does each pixel take its best class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import AUTO, AnnotatorInfo, MaskedParser
from reposer.annotation.interfaces import Parser as HumanParser
from reposer.annotation.networks import Lanes, Network, OnnxNetwork, TransformersNetwork
from reposer.annotation.rule_parser import RuleParser
from reposer.annotation.segmentation_model import (
    MODELS,
    SIDELESS,
    SIDELESS_CODES,
    SegmentationModel,
    Sides,
    into_model,
    onto_image,
    resample,
)
from reposer.config import load_config, read_json
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError, find, with_plugins
from reposer.images import resize
from reposer.models.pose_maps import moved
from reposer.storage.files import sha256_file
from reposer.storage.paths import CHECKPOINTS, RefusedFileError
from reposer.structures import MISSING_LABEL, NUM_JOINTS
from reposer.trained.networks import PARSER, open_network
from reposer.weights.files import KNOWN, licensed_weights, require_license
from reposer.weights.network_folder import CONFIG

# ---- Left and right by keypoints: a pixel belongs to the nearer of the person's two limbs.
#
# For models that know no sides, and for those whose own sides are not to be trusted.

# Joints of a limb from the trunk outwards: (left, right), OpenPose order.
_LIMBS = {
    "arms": ((5, 6, 7), (2, 3, 4)),
    "legs": ((11, 12, 13), (8, 9, 10)),
    "shoes": ((13,), (10,)),
}
_INSTEAD = {"shoes": "legs"}  # where no ankle is known


def resolve_sides(parsing: NDArray[np.uint8], keypoints: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One map with arms, legs and shoes with their sides.

    A pixel goes to the side whose limb (line through the joints that are known) is nearer; ties go to the
    left. With one limb known everything goes to its side. With none, the person is taken to face the camera:
    what lies left of the middle of these pixels in the image is the person's right.

    Args:
        parsing: (H, W) LIP-20 with SIDELESS_CODES.
        keypoints: (18, 2) x, y in pixels, NaN for a missing joint.
    """
    resolved = parsing.copy()
    for part, (left, right) in SIDELESS.items():
        rows, columns = np.nonzero(parsing == SIDELESS_CODES[part])
        if not len(rows):
            continue
        points = np.stack([columns, rows], axis=1).astype(np.float64)
        to_left, to_right = (_distance(points, keypoints, part, side) for side in (0, 1))
        if np.isinf(to_left).all() and np.isinf(to_right).all():
            is_right = points[:, 0] < (points[:, 0].min() + points[:, 0].max()) / 2
        else:
            is_right = to_right < to_left
        resolved[rows, columns] = np.where(is_right, LIP_LABELS.index(right), LIP_LABELS.index(left))
    return resolved


def correct_sides(parsing: NDArray[np.uint8], keypoints: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One map whose arms, legs and shoes are assigned again, where both limbs have a joint that is known.

    Elsewhere the model's own sides stay: a single limb says less than they do.

    Args:
        parsing: (H, W) LIP-20.
        keypoints: (18, 2) x, y in pixels, NaN for a missing joint.
    """
    corrected = parsing.copy()
    for part, names in SIDELESS.items():
        left, right = (LIP_LABELS.index(name) for name in names)
        rows, columns = np.nonzero((parsing == left) | (parsing == right))
        points = np.stack([columns, rows], axis=1).astype(np.float64)
        to_left, to_right = (_distance(points, keypoints, part, side) for side in (0, 1))
        if not (np.isinf(to_left).any() or np.isinf(to_right).any()):
            corrected[rows, columns] = np.where(to_right < to_left, right, left)
    return corrected


def _distance(
    points: NDArray[np.float64], keypoints: NDArray[np.float32], part: str, side: int
) -> NDArray[np.float64]:
    """(P,) distance to a side's limb; infinite where none of its joints is known."""
    joints = np.asarray(keypoints, np.float64)[list(_LIMBS[part][side])]
    joints = joints[~np.isnan(joints).any(axis=1)]
    if not len(joints):
        if part in _INSTEAD:
            return _distance(points, keypoints, _INSTEAD[part], side)
        return np.full(len(points), np.inf)
    nearest = np.linalg.norm(points - joints[0], axis=1)
    for start, end in pairwise(joints):
        line = end - start
        along = ((points - start) @ line / max(float(line @ line), 1e-12)).clip(0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - start - along[:, None] * line, axis=1))
    return np.asarray(nearest)


DESCRIPTION = "parser.json"  # in a folder that transformers wrote
_WEIGHTS = "model.safetensors"


class SegmentationParser:
    """A network with its description.

    Args:
        network: from (B, 3, h, w) float32 to what the description says.
        description: of the network.
        info: what to write beside its maps.
    """

    def __init__(self, network: Network, description: SegmentationModel, info: AnnotatorInfo) -> None:
        self.info = info
        self.description = description
        self.needs_keypoints = description.needs_keypoints
        self._network = network
        self._lookup = torch.from_numpy(description.lookup())
        self._mean = torch.tensor(description.mean).view(3, 1, 1)
        self._std = torch.tensor(description.std).view(3, 1, 1)

    def __call__(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> (B, H, W) uint8 LIP-20, on the CPU.

        Args:
            images: of one size.
            keypoints: (B, 18, 2) pixels, NaN for a missing joint; they tell left from right where the model
                cannot, or its description says so. None counts as all missing (this file says what happens
                then).

        Raises:
            RefusedFileError: rule ``outputs``: the network's answer is not what its description says.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        scores = self.scores(images)
        model = self.description
        matrices = onto_image(
            model.fit, (scores.shape[2], scores.shape[3]), model.size, size, model.align_corners
        )
        best = best_class(resample(scores.float(), matrices)).cpu()
        parsing = self._lookup[best.int()]
        if not self.needs_keypoints:
            return parsing
        poses = np.full((len(parsing), NUM_JOINTS, 2), np.nan, np.float32)
        if keypoints is not None:
            poses = keypoints.cpu().numpy()
        maps = [resolve_sides(m, pose) for m, pose in zip(parsing.numpy(), poses, strict=True)]
        if self.description.sides == "keypoints":
            maps = [correct_sides(m, pose) for m, pose in zip(maps, poses, strict=True)]
        return torch.from_numpy(np.stack(maps))

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> (B, 3, h, w) float32, what the network sees."""
        model = self.description
        matrices = into_model(model.fit, (int(images.shape[2]), int(images.shape[3])), model.size)
        pixels = resample(images.float(), matrices).round_().clamp_(0, 255)
        if model.color == "bgr":
            pixels = pixels.flip(1)
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.div_(255).sub_(mean).div_(std)

    def scores(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> (B, L, h', w') scores, at the network's own resolution."""
        output = self._network(self.prepare(images))
        classes = len(self._lookup)
        if self.description.layout == "labels":
            labels = output.squeeze(1) if output.dim() == 4 else output
            if labels.dim() == 3 and (labels >= 0).all() and (labels < classes).all():
                return torch.nn.functional.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()
        elif output.dim() == 4:
            scores = output.permute(0, 3, 1, 2) if self.description.layout == "nhwc" else output
            if scores.shape[:2] == (len(images), classes):
                return scores
        shape = f"{tuple(output.shape)} {output.dtype}"
        problem = f"answers {shape}, its description says {classes} classes as {self.description.layout}"
        raise RefusedFileError(
            self.info.name, "outputs", problem, "correct its fields labels, layout or output"
        )


# ---- A guided parser of this program's own (models/parsing_networks.py).


class GuidedPersonParser:
    """Image, and what is known of mask and joints, to a map.

    Where a mask is known the map keeps to it: beside it background, inside it the best other label. The
    network has learned so (data/randomization.py).

    Args:
        network: a ``GuidedParser`` in eval mode.
        size: (H, W) it was trained at; images are brought to it, scores back.
        info: what to write beside its maps.
        sides: "keypoints": they decide where they know both limbs, the network elsewhere.
    """

    needs_keypoints = True  # where there are any: a missing one is NaN
    needs_masks = False

    def __init__(
        self, network: nn.Module, size: tuple[int, int], info: AnnotatorInfo, sides: Sides = "model"
    ) -> None:
        self.info = info
        self._network, self._size, self._sides = network, size, sides
        on_cpu = next(network.parameters()).device.type == "cpu"
        self._lanes = Lanes(None if on_cpu else 1)

    def __call__(
        self, images: Tensor, keypoints: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> (B, H, W) uint8 LIP-20, on the CPU.

        Args:
            images: of one size.
            keypoints: (B, 18, 2) pixels, NaN for a missing joint; None: all are missing.
            masks: (B, H, W) bool, False everywhere where no person is known; None: nowhere.
        """
        size, count = (int(images.shape[2]), int(images.shape[3])), len(images)
        known = torch.full((count, *size), MISSING_LABEL, dtype=torch.uint8)
        if masks is not None:
            found = masks.cpu().flatten(1).any(1)
            known[found] = masks.cpu()[found].to(torch.uint8)
        joints = torch.full((count, NUM_JOINTS, 2), torch.nan)
        if keypoints is not None:
            joints = moved(keypoints.cpu(), size, self._size)
        small = F.interpolate(known[:, None], self._size, mode="nearest-exact")[:, 0]
        parts = (one.tensor_split(min(self._lanes.count, count)) for one in (images, known, small, joints))
        parsing = torch.cat(self._lanes.map(lambda part: self._maps(*part), zip(*parts, strict=True)))
        if self._sides == "keypoints" and keypoints is not None:
            pairs = zip(parsing.numpy(), keypoints.cpu().numpy(), strict=True)
            parsing = torch.from_numpy(np.stack([correct_sides(one, pose) for one, pose in pairs]))
        return parsing

    def _maps(self, images: Tensor, known: Tensor, masks: Tensor, joints: Tensor) -> Tensor:
        """(B, H, W) maps of some images; ``known`` are masks of their size, ``masks`` of the network's."""
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            inputs = (resize(images.to(device), self._size), masks.to(device), joints.to(device))
            size = (int(images.shape[2]), int(images.shape[3]))
            scores = F.interpolate(self._network(*inputs), size, mode="bilinear", align_corners=False).cpu()
            scores[:, 0].masked_fill_(known == 1, -torch.inf)
            parsing = best_class(scores).masked_fill_(known == 0, 0)
        return parsing.clone()  # for use outside inference mode


def _open_guided(
    name: str | Path,
    weights: str | Path | None = None,
    sides: Sides | None = None,
    *,
    device: str,
    **how: Any,
) -> GuidedPersonParser:
    """A network that this program trained: shipped with it, a run folder, or an exported one."""
    del how  # what comes with the program, or from the user, has no terms to accept and is never fetched
    trained = open_network(PARSER, name if weights is None else weights)
    if trained.info.generator != "guided_parser":
        problem = (
            f"{name if weights is None else weights}: a {trained.info.generator}, which sees images only"
        )
        raise UserError(problem, "write it as .onnx with export-parser, and name that file")
    info = AnnotatorInfo(str(name), trained.weights_hash, "Apache-2.0" if weights is None else "")
    return GuidedPersonParser(trained.network.to(device), trained.info.size, info, sides or "model")


def best_class(scores: Tensor) -> Tensor:
    """(B, L, H, W) -> (B, H, W) uint8, the class with the highest score, the first of equal ones.

    ``argmax`` along a side that is not the last takes three times as long on a CPU.
    """
    highest = scores[:, 0].clone()
    best = torch.zeros(highest.shape, dtype=torch.uint8, device=scores.device)
    for number in range(1, scores.shape[1]):
        plane = scores[:, number]
        best.masked_fill_(plane > highest, number)
        torch.maximum(highest, plane, out=highest)
    return best


def open_parser(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    accept_license: bool = False,
    may_download: bool | None = None,
    device: str = "cpu",
    sides: Sides | None = None,
) -> HumanParser | MaskedParser:
    """A parser by name, or from a file or folder of the user's.

    Args:
        model: a key of PARSERS; or ``x.onnx`` with its description ``x.json`` beside it; or a folder of
            transformers with the description ``parser.json`` in it; or a run folder of
            `reposer train rendered_parser`, or an export of it.
        weights: for a name: the file (.onnx) or folder (transformers) to use instead of the official one.
        accept_license: the user has accepted the terms of the weights.
        may_download: get official weights that are not on this machine.
        device: "cpu" or "cuda".
        sides: instead of the description's.

    Raises:
        LicenseError: the terms are not accepted yet; shows them.
        MissingWeightsError: they are not here; says what to put where.
        RefusedFileError: a file is not what it should be; its ``rule`` says why.
        UserError: unknown name, missing package or description.
    """
    name = str(model)
    if name in PARSERS:
        made = PARSERS[name]
        return made(weights, sides, accept_license=accept_license, may_download=may_download, device=device)
    path = Path(model)
    if path.is_dir() and _is_own(path):
        return _open_guided(path.name, path, sides, device=device)
    if path.is_dir():
        place = path / DESCRIPTION
    elif path.suffix.lower() == ".onnx":
        place = path.with_suffix(".json")
    else:
        find("parser", name, PARSERS, "FILE.onnx", "FOLDER")
    if path.exists() and not place.exists():
        raise UserError(
            f"{place}: missing, it must describe {path.name}",
            'write for example {"size": [512, 512], "labels": "atr18"}'
            " (docs/explanation/parsers.md lists all fields)",
        )
    if not path.exists():
        raise UserError(f"{path}: no such file", "check the path")
    description = _with_sides(load_config(SegmentationModel, place, named=True), path.name, sides)
    return _build(path.stem, path, description, accept_license, device)


def _is_own(folder: Path) -> bool:
    """Whether a folder is a run of this program or an export of one, and no description lies in it."""
    if (folder / DESCRIPTION).exists():
        return False
    return (folder / CHECKPOINTS).is_dir() or (
        (folder / CONFIG).is_file() and "weights_sha256" in read_json(folder / CONFIG)
    )


def _with_sides(description: SegmentationModel, name: str, sides: Sides | None) -> SegmentationModel:
    if sides == "model" and description.is_sideless:
        raise UserError(f"{name}: knows no left and right", "leave --sides away, or use --sides keypoints")
    return description if sides is None else description.changed(sides=sides)


def _open_known(
    name: str,
    weights: str | Path | None,
    sides: Sides | None,
    *,
    accept_license: bool,
    may_download: bool | None,
    device: str,
) -> SegmentationParser:
    description = _with_sides(MODELS[name], name, sides)
    if name in KNOWN:
        known = KNOWN[name]
        description = description.changed(license=known.license, non_commercial=known.non_commercial)
    if weights is None:
        require_license(
            name,
            description.license,
            non_commercial=description.non_commercial,
            accept=accept_license,
        )
        if name not in KNOWN:
            raise UserError(
                f"{name}: has no pinned file to download",
                f"save it with transformers (config.json, {_WEIGHTS}) and give that folder as its weights",
            )
        weights = licensed_weights(name, may_download=may_download)
    return _build(name, Path(weights), description, accept_license, device)


def _build(
    name: str, path: Path, description: SegmentationModel, accept_license: bool, device: str
) -> SegmentationParser:
    require_license(
        name, description.license, non_commercial=description.non_commercial, accept=accept_license
    )
    network: Network
    if path.is_dir():
        network, file = TransformersNetwork(path, device), path / _WEIGHTS
    else:
        network, file = OnnxNetwork(path, description, device), path
    info = AnnotatorInfo(name, sha256_file(file), description.license, description.non_commercial)
    return SegmentationParser(network, description, info)


def _open_rule(weights: str | Path | None, sides: Sides | None, **how: Any) -> RuleParser:
    del how  # it has no weights to accept, to fetch or to put on a device
    if weights is not None:
        raise UserError("--parser rule: has no weights", "leave the =FILE away")
    if sides is not None:
        raise UserError("--parser rule: keypoints tell left from right", "leave --sides away")
    return RuleParser()


# Each is called with the user's weights and sides (or None), accept_license, may_download and device.
PARSERS: dict[str, Callable[..., HumanParser | MaskedParser]] = {
    **{name: partial(_open_known, name) for name in MODELS},
    "rule": _open_rule,
    **{name: partial(_open_guided, name) for name in PARSER.shipped},
}
PARSERS.update(with_plugins("reposer.parsers", PARSERS))
SHIPPED = "rendered_parser"  # of PARSERS: the one that the package brings


def _open_auto(weights: str | Path | None, sides: Sides | None, **how: Any) -> HumanParser | MaskedParser:
    """The shipped one where this installation has it, else the rule."""
    best: Callable[..., HumanParser | MaskedParser] = PARSERS.get(SHIPPED, _open_rule)
    return best(weights, sides, **how)


PARSERS[AUTO] = _open_auto
