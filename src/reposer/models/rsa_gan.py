"""RSA-GAN (reconstruction from the abstract): a person in a wanted pose from image, parsing and two poses.

Liu, Weng, Zhu: "Precise region semantics-assisted GAN for pose-guided person image generation", CAAI Trans.
Intell. Technol. 2023, doi 10.1049/cit2.12255. Only its abstract is public: the three modules, their order and
purpose are the authors', their form follows relatives (CoCosNet, PISE, CASD, Restormer) and ourselves;
docs/explanation/rsa-gan.md says which is which. The target's parsing map and mask are never read.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    ResidualBlock,
    UpNormAct,
    check_choice,
    conv,
    crop_to,
    init_weights,
    make_norm,
    onehot_parsing,
    pad_to_multiple,
)
from reposer.models.pose_maps import PoseConv2d, PoseMaps, pose_maps
from reposer.models.rsa_attention import GatedCrossAttention, StyleInjection
from reposer.models.rsa_fusion import LABEL_COUNTS, MERGE_TABLE, RegionalFusion, limb_prior
from reposer.structures import NUM_JOINTS, NUM_LABELS, PairBatch


class RsaParts(NamedTuple):
    """What the auxiliary losses look at."""

    warped_source: Tensor | None  # (B, 3, h, w) float32 the small source image, warped by the correspondence
    parsing_logits: Tensor | None  # (B, 20, h, w) of the target, with parsing_head


class _Inputs(NamedTuple):
    image: Tensor  # (B, 3, H, W) float
    source_pose: PoseMaps  # of (B, 18, H, W)
    target_pose: PoseMaps
    labels: Tensor  # (B, L, H, W) float
    prior: Tensor  # (B, R, H, W)


class RSAGAN(nn.Module):
    """The generator of RSA-GAN (reconstruction from the abstract)."""

    extra_terms: ClassVar = {"correspondence": "correspondence", "parsing": "parsing_head"}
    label_table: Tensor  # (256,) uint8, buffer

    def __init__(
        self,
        width: int = 256,  # C, channels of the codes; a multiple of 32
        halvings: int = 2,  # the modules work at 1/2^halvings
        blocks: int = 2,  # N, gated cross-attention blocks
        res_blocks: int = 2,  # residual blocks of the image encoder and of the decoder
        labels: str = "lip20",  # label set that the regions see: lip20 | merged8 (made from LIP-20 inside)
        partition: str = "six",  # regions: six | merged_sides | labels
        fusion: str = "gate",  # gate | film | concat
        limb_prior: bool = True,  # soft limbs tell a garment's parts apart
        keys: str = "pose",  # of the correspondence: pose | pose+semantics | pose+image
        temperature: float = 0.01,  # of the correspondence
        attention: str = "spatial",  # spatial | channel
        gate: str = "both",  # both | attn | ffn | none (ablation)
        semantics: bool = True,  # False: ablation without the source's parsing
        correspondence: bool = True,  # False: ablation, style is injected where it lies in the source
        region_tokens: bool = False,  # mean appearance of each region as further keys (CASD)
        parsing_head: bool = False,  # predict the target's parsing, for a loss in training only (CASD)
        sigma: float = 6.0,  # pixels, of the pose maps (PATN)
        norm: str = "instance",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        check_choice("labels", labels, LABEL_COUNTS)
        if width < 32 or width % 32 or min(halvings, blocks) < 1 or res_blocks < 0:
            raise UserError(
                f"width={width}, halvings={halvings}, blocks={blocks}, res_blocks={res_blocks}: impossible",
                "width is a multiple of 32, halvings and blocks at least 1",
            )
        if region_tokens and (not semantics or attention == "channel"):
            raise UserError("region_tokens needs semantics=true and attention=spatial", "set it to false")
        if keys == "pose+semantics" and not semantics:
            raise UserError("keys=pose+semantics needs semantics=true", "use keys=pose")
        self.needs = ("source_image", *(("source_parsing",) if semantics else ()))
        self.needs += ("source_keypoints", "target_keypoints")
        self.total_stride = 2**halvings
        self.sigma, self.use_prior = sigma, limb_prior
        layer: dict[str, Any] = {"norm": norm, "lrelu_slope": lrelu_slope, "padding": padding}
        widths = [min(width, width // 4 * 2**step) for step in range(halvings + 1)]

        self.register_buffer("label_table", _label_table(labels), persistent=False)  # (256,) uint8
        self.labels = LABEL_COUNTS[labels]
        bodies = [ResidualBlock(width, 0.0, **layer) for _ in range(res_blocks)]
        self.image_encoder = nn.Sequential(
            ConvNormAct(3, widths[0], 7, **layer), *_halvings(widths, **layer), *bodies
        )
        first = PoseConv2d(NUM_JOINTS, widths[0], 7, padding=3, bias=False, padding_mode=padding)
        act = nn.LeakyReLU(lrelu_slope, inplace=True)
        self.pose_encoder = nn.Sequential(
            nn.Sequential(first, make_norm(norm, widths[0]), act), *_halvings(widths, **layer)
        )
        region_channels = width * 3 // 16
        self.fusion = (
            RegionalFusion(width, region_channels, halvings, partition, labels, fusion, **layer)
            if semantics
            else None
        )
        self.injection = StyleInjection(width, width // 2, temperature, keys, correspondence, **layer)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(width, 32, attention, gate, semantics) for _ in range(blocks)
        )
        self.token = nn.Linear(width, width) if region_tokens else None
        self.parsing_head = nn.Conv2d(width, NUM_LABELS, 1) if parsing_head else None
        self.decoder = nn.Sequential(
            ConvNormAct(2 * width, width, 1, **layer),
            *(ResidualBlock(width, 0.0, **layer) for _ in range(res_blocks)),
            *(UpNormAct(a, b, "resize", **layer) for a, b in _downward(widths)),
            conv(widths[0], 3, kernel=7, padding=padding, bias=True),
        )
        self.apply(init_weights)
        self.injection.align_keys()

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W) in [-1, 1]; with ``parts`` also :class:`RsaParts`.

        Reads source image, source parsing and the keypoints of both. Any height and width. A person without
        a keypoint, or without a parsing map, gives all-zero maps and still a finite picture.
        """
        height, width = batch.source_image.shape[-2:]
        inputs = self._inputs(batch)
        appearance = self.image_encoder(inputs.image)
        source_pose, target_pose = (
            self.pose_encoder(inputs.source_pose),
            self.pose_encoder(inputs.target_pose),
        )
        semantics = None
        if self.fusion is not None:
            semantics = self.fusion(inputs.source_pose, inputs.labels, inputs.prior)
        small = F.avg_pool2d(inputs.image, self.total_stride)
        style, warped = self.injection(appearance, source_pose, target_pose, semantics, small)
        tokens = self._tokens(appearance, inputs)
        x = target_pose
        for block in self.blocks:
            x = block(x, style, semantics, tokens)
        image = crop_to(self.decoder(torch.cat((x, style), 1)).float().tanh(), height, width)
        if not parts:
            return image
        logits = self.parsing_head(x) if self.parsing_head is not None else None
        return image, RsaParts(warped, logits)

    def _inputs(self, batch: PairBatch) -> _Inputs:
        """Everything that the networks see, padded until the modules' resolution divides it."""
        height, width = batch.source_image.shape[-2:]
        source_pose, target_pose = (
            pose_maps(points, height, width, self.sigma).padded(self.total_stride)
            for points in (batch.source_keypoints, batch.target_keypoints)
        )
        labels = onehot_parsing(self.label_table[batch.source_parsing.long()], self.labels).float()
        if self.fusion is None:
            prior = labels.new_ones(())
        elif self.use_prior:
            prior = limb_prior(batch.source_keypoints, self.fusion.limbs, height, width)
        else:
            prior = labels.new_ones(len(labels), self.fusion.regions, height, width)
        image, labels, prior = (
            pad_to_multiple(x, self.total_stride) if x.dim() else x
            for x in (to_float(batch.source_image), labels, prior)
        )
        return _Inputs(image, source_pose, target_pose, labels, prior)

    def _tokens(self, appearance: Tensor, inputs: _Inputs) -> Tensor | None:
        """(B, R, C) mean appearance of each region, 0 for an empty one."""
        if self.token is None or self.fusion is None:
            return None
        inside = torch.einsum("blhw,rl,brhw->brhw", inputs.labels, self.fusion.members.float(), inputs.prior)
        weights = F.avg_pool2d(inside, self.total_stride).flatten(2)  # (B, R, hw)
        total = weights.sum(2, keepdim=True)
        means = weights.to(appearance.dtype) @ appearance.flatten(2).transpose(1, 2) / total.clamp_min(1e-6)
        tokens: Tensor = self.token(means)
        return tokens


def _halvings(widths: list[int], **layer: Any) -> list[nn.Module]:
    """A stride-2 3x3 from each width to the next."""
    return [ConvNormAct(a, b, 3, 2, **layer) for a, b in pairwise(widths)]


def _downward(widths: list[int]) -> list[tuple[int, int]]:
    """Widths of the decoder's steps: the encoder's, backwards; the last halves once more (256, 128, 64)."""
    return [(b, a) for a, b in pairwise(widths)][::-1]


def _label_table(labels: str) -> Tensor:
    """(256,) uint8 LIP-20 label -> label of the set; anything else stays and is no channel."""
    table = torch.arange(256, dtype=torch.uint8)
    if labels == "merged8":
        table[:NUM_LABELS] = torch.tensor(MERGE_TABLE, dtype=torch.uint8)
        table[NUM_LABELS:] = 255
    return table
