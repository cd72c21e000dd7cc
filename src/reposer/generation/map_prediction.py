"""Target label maps where there are none: predicted from what the source wears and the target's keypoints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.models.parsing_predictor import decide_maps
from reposer.runtime import Runtime, setup
from reposer.structures import MISSING_LABEL, PairBatch
from reposer.trained.networks import PREDICTOR, GeneratorConfig, open_network, save_generator
from reposer.weights.network_folder import weights_hash


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
