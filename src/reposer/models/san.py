"""SAN, the Semantic Attention Network: a person in a wanted pose from a source image, masks and label maps.

Liu, Wang, Ji, Ge: "Person Image Generation with Semantic Attention Network for Person Re-identification",
arXiv 2008.07884. The authors published no code; every gap is an option here whose default is our reading, and
docs/explanation/san.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    UpNormAct,
    check_choice,
    conv,
    crop_to,
    init_weights,
    join_planes,
    pad_to_multiple,
)
from reposer.models.pose_maps import gaussian_maps
from reposer.structures import NUM_JOINTS, PairBatch

# ---- The parts: encoder, Semantic Attention Block, U-Net-like decoder (section 3.1, else PATN's code).

GATE_SOURCES = ("semantic", "appearance", "appearance_conv")


class ConvStack(nn.Sequential):
    """``n_convs`` 3x3 convolutions with a norm and a LeakyReLU between each two; the last one is bare.

    With three it is the paper's "three convolutional layers with two normalization layers and LeakyReLU".
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        n_convs: int = 3,
        dropout: float = 0.0,
        norm: str = "batch",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        if n_convs < 1:
            raise UserError(f"n_convs={n_convs} leaves a stack without a convolution", "use 1 or more")
        steps: list[nn.Module] = []
        channels = in_channels
        for _ in range(n_convs - 1):
            steps.append(
                ConvNormAct(channels, hidden_channels, norm=norm, lrelu_slope=lrelu_slope, padding=padding)
            )
            if dropout:
                steps.append(nn.Dropout(dropout))
            channels = hidden_channels
        super().__init__(*steps, conv(channels, out_channels, padding=padding, bias=True))


class SemanticAttentionBlock(nn.Module):
    """One SAB: updates the appearance code F_s and the semantic code F_t, both (B, C, H, W).

    A   = sigmoid(mask_conv(F_t))            eq. 1
    F_s = A * F_t + F_s                      eq. 2, as printed
    F_t = update_conv([F_t ; F_s])           eq. 3, with the new F_s
    """

    def __init__(
        self,
        channels: int,
        n_convs: int = 3,  # convolutions of the mask and of the update branch
        mask_channels: str
        | int = "full",  # attention: "full" one value per channel and position, 1 per position
        share_conv: bool = False,  # PATN: the mask logits go on as the semantic code; one 3x3 merges
        gate_source: str = "semantic",  # what A multiplies: F_t (printed), F_s (typo), conv(F_s) (PATN)
        **layer_args: Any,  # dropout, norm, lrelu_slope, padding
    ) -> None:
        super().__init__()
        check_choice("mask_channels", mask_channels, ("full", 1))
        check_choice("gate_source", gate_source, GATE_SOURCES)
        if share_conv and mask_channels != "full":
            raise UserError(
                "share_conv=True needs as many mask channels as the code has", "use mask_channels=full"
            )
        gate_channels = channels if mask_channels == "full" else 1
        self.share_conv = share_conv
        self.gate_source = gate_source
        self.mask_conv = ConvStack(channels, channels, gate_channels, n_convs, **layer_args)
        self.appearance_conv: nn.Module | None = None
        if gate_source == "appearance_conv":
            self.appearance_conv = ConvStack(channels, channels, channels, n_convs, **layer_args)
        update_convs = 1 if share_conv else n_convs
        self.update_conv = ConvStack(2 * channels, channels, channels, update_convs, **layer_args)

    def forward(self, appearance: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.mask_conv(semantic)
        attention = logits.sigmoid()
        gated = semantic
        if self.appearance_conv is not None:
            gated = self.appearance_conv(appearance)
        elif self.gate_source == "appearance":
            gated = appearance
        appearance = torch.addcmul(appearance, attention, gated)  # one pass over memory
        carried = logits if self.share_conv else semantic
        return appearance, self.update_conv(torch.cat([carried, appearance], dim=1))


class _Stages(nn.Module):
    """Stages one after the other; gives the map of every one."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Encoder(_Stages):
    """7x7, then 3x3 convolutions, widths ngf, 2 ngf, 4 ngf; returns the map of every stage, the code last."""

    def __init__(self, in_channels: int, ngf: int, strides: Sequence[int], **layer_args: Any) -> None:
        super().__init__()
        for i, stride in enumerate(strides):
            width = ngf * 2**i
            self.stages.append(ConvNormAct(in_channels, width, 3 if i else 7, stride, **layer_args))
            in_channels = width


class DeepEncoder(_Stages):
    """Conv_A or Conv_S: three halvings of a final code; returns the map of every one."""

    def __init__(self, in_channels: int, widths: Sequence[int], convs: int, **layer_args: Any) -> None:
        super().__init__()
        for width in widths:
            stage = nn.Sequential(ConvNormAct(in_channels, width, stride=2, **layer_args))
            stage.extend(ConvNormAct(width, width, **layer_args) for _ in range(convs - 1))
            self.stages.append(stage)
            in_channels = width


class Decoder(nn.Module):
    """Up from the deepest maps to the image's size, a skip joined after each doubling where there is one.

    Args:
        bottleneck: channels of the deepest map.
        widths: output channels of each doubling.
        skips: channels of the map joined after each doubling, 0 for none.
    """

    def __init__(
        self, bottleneck: int, widths: Sequence[int], skips: Sequence[int], up: str, **layer_args: Any
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = bottleneck
        for width, skip in zip(widths, skips, strict=True):
            self.stages.append(UpNormAct(channels, width, up, **layer_args))
            channels = width + skip
        self.out_channels = channels

    def forward(self, x: Tensor, skips: Sequence[Sequence[Tensor]]) -> Tensor:
        for stage, joined in zip(self.stages, skips, strict=True):
            x = stage(x)
            if joined:
                x = torch.cat([x, *joined], dim=1)
        return x


# ---- The whole network.

SCHEMA_LABELS = {"lip20": 20, "atr18": 18, "cihp20": 20, "pascal7": 7, "merged8": 8}
POSES = ("maps", "keypoints", "both")
MASK_MODES = ("concat", "multiply_source", "multiply_both")

_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "lean": {"deep_channels": (256, 256, 256)},
    "small": {
        "ngf": 24,
        "enc_strides": (2, 2, 1),
        "blocks": 3,
        "n_convs": 2,
        "deep_channels": (96, 96, 96),
        "padding": "zeros",
    },
}


def san_size(name: str) -> dict[str, Any]:
    """Arguments of ``SAN`` for a named size.

    Args:
        name: "paper" (62.3 M parameters, 15.3 GMAC at 128x64), "lean" (35.2 M, 14.2 GMAC), "small" (3.3 M,
            1.1 GMAC) for CPUs.

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class SAN(nn.Module):
    """The generator of SAN.

    Two encoders turn (source image, source mask, source parsing) into the appearance code and (target mask,
    target parsing) into the semantic code; ``blocks`` Semantic Attention Blocks update both in turn; Conv_A
    and Conv_S take them down to 1/32, and a U-Net-like decoder goes up to the image. The target image is
    never read.
    """

    def __init__(
        self,
        ngf: int = 64,  # channels of the first layer; codes have 4 ngf
        enc_strides: Sequence[int] = (1, 2, 2),  # of the encoders' 7x7, 3x3, 3x3
        blocks: int = 5,  # T, Semantic Attention Blocks
        n_convs: int = 3,  # convolutions of the attention and of the update branch
        mask_channels: str | int = "full",  # attention per channel and position ("full") or per position (1)
        share_conv: bool = False,  # attention logits go on as semantic code, as in PATN
        gate_source: str = "semantic",  # attention times: semantic | appearance | appearance_conv
        deep_channels: Sequence[int] = (512, 512, 512),  # Conv_A and Conv_S, one per halving
        deep_convs: int = 1,  # convolutions per halving
        up: str = "deconv",  # deconv (4x4, stride 2) | resize (nearest, then 3x3)
        skip_body: bool = True,  # join the final codes in the decoder
        skip_encoder: bool = False,  # join the encoders' maps too, above the codes' resolution
        norm: str = "batch",  # batch | instance
        lrelu_slope: float = 0.2,  # slope of every LeakyReLU below zero
        dropout: float = 0.0,  # inside the blocks, after each activation
        padding: Padding = "reflect",  # reflect | zeros, of every convolution but the transposed ones
        pose: str = "maps",  # what tells the poses: maps (mask and parsing) | keypoints (18 Gaussians) | both
        use_mask: bool = True,  # False: the paper's ablation without masks
        mask_mode: str = "concat",  # concat | multiply_source (background 0, gray) | multiply_both
        schema: str = "lip20",  # label set of the parsing maps
    ) -> None:
        super().__init__()
        check_choice("schema", schema, SCHEMA_LABELS)
        check_choice("pose", pose, POSES)
        check_choice("mask_mode", mask_mode, MASK_MODES)
        _check_numbers(ngf, enc_strides, blocks, deep_channels, deep_convs)
        if not 0 <= dropout < 1:
            raise UserError(
                f"dropout={dropout} is not a probability below 1", "use 0 or more and less than 1"
            )
        if not (use_mask and pose != "keypoints") and mask_mode != "concat":
            raise UserError(
                f"mask_mode={mask_mode} uses the mask that use_mask=false or pose=keypoints leaves out",
                "set one of them",
            )
        self.labels = SCHEMA_LABELS[schema] if pose != "keypoints" else 0
        self.use_mask = use_mask and pose != "keypoints"
        self.use_keypoints = pose != "maps"
        self.mask_mode = mask_mode
        self.skip_body = skip_body
        kinds = (
            ["parsing"] * bool(self.labels) + ["mask"] * self.use_mask + ["keypoints"] * self.use_keypoints
        )
        self.needs = ("source_image", *(f"{side}_{kind}" for side in ("source", "target") for kind in kinds))
        halved = list(accumulate(int(stride == 2) for stride in enc_strides))  # after each encoder stage
        halvings = halved[-1]
        self.total_stride = 2 ** (halvings + len(deep_channels))

        layer: dict[str, Any] = {"norm": norm, "lrelu_slope": lrelu_slope, "padding": padding}
        code = 4 * ngf
        shape = self.use_mask + self.labels + NUM_JOINTS * self.use_keypoints  # planes that tell a pose
        self.appearance_encoder = Encoder(3 + shape, ngf, enc_strides, **layer)
        self.semantic_encoder = Encoder(shape, ngf, enc_strides, **layer)
        self.blocks = nn.ModuleList(
            SemanticAttentionBlock(
                code, n_convs, mask_channels, share_conv, gate_source, dropout=dropout, **layer
            )
            for _ in range(blocks)
        )
        self.conv_a = DeepEncoder(code, deep_channels, deep_convs, **layer)
        self.conv_s = DeepEncoder(code, deep_channels, deep_convs, **layer)

        shallow = [ngf * 2**i for i in reversed(range(halvings))]  # by resolution: ngf * 2^k at 1/2^k
        widths = [*reversed(deep_channels[:-1]), code, *shallow]
        skips = [2 * width for width in reversed(deep_channels[:-1])]
        skips.append(2 * code if skip_body else 0)
        last_stage = {k: i for i, k in enumerate(halved)} if skip_encoder else {}
        self.encoder_skips = [last_stage.get(k) for k in reversed(range(halvings))]  # stage joined at 1/2^k
        skips += [2 * ngf * 2**i if i is not None else 0 for i in self.encoder_skips]
        self.decoder = Decoder(2 * deep_channels[-1], widths, skips, up, **layer)
        self.to_image = conv(self.decoder.out_channels, 3, kernel=7, padding=padding, bias=True)
        self.apply(init_weights)

    def network_inputs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """X_a (B, 3 + K, H, W): source image and pose; X_t (B, K, H, W): target pose.

        K planes tell a pose: mask and one-hot parsing (1 + L), or 18 keypoint maps, or both.
        """
        image = to_float(batch.source_image)
        if self.mask_mode != "concat":
            image = image * batch.source_mask.unsqueeze(1)
        source = self._pose_planes(batch.source_mask, batch.source_keypoints)
        target = self._pose_planes(batch.target_mask, batch.target_keypoints)
        return (
            join_planes([image, *source], batch.source_parsing, self.labels),
            join_planes(target, batch.target_parsing, self.labels),
        )

    def _pose_planes(self, mask: Tensor, keypoints: Tensor) -> list[Tensor]:
        """Everything that tells a pose but the parsing."""
        planes = [mask.unsqueeze(1)] if self.use_mask else []
        return planes + ([gaussian_maps(keypoints, *mask.shape[1:])] if self.use_keypoints else [])

    def training_target(self, batch: PairBatch) -> Tensor:
        """What the losses compare the output with: the target image (B, 3, H, W) in [-1, 1].

        With mask_mode multiply_both it is 0 (gray) off the person.
        """
        image = to_float(batch.target_image)
        return image * batch.target_mask.unsqueeze(1) if self.mask_mode == "multiply_both" else image

    def forward(self, batch: PairBatch) -> Tensor:
        """The generated images (B, 3, H, W) in [-1, 1].

        Any height and width: those that do not divide by the total stride (32) are padded inside. In
        training, instance norm needs more than one such square.
        """
        height, width = batch.source_image.shape[-2:]
        x_a, x_t = (pad_to_multiple(x, self.total_stride) for x in self.network_inputs(batch))
        maps_a, maps_t = self.appearance_encoder(x_a), self.semantic_encoder(x_t)
        appearance, semantic = maps_a[-1], maps_t[-1]
        for block in self.blocks:
            appearance, semantic = block(appearance, semantic)
        deep_a, deep_s = self.conv_a(appearance), self.conv_s(semantic)

        pairs = list(zip(deep_a, deep_s, strict=True))
        skips: list[tuple[Tensor, ...]] = list(reversed(pairs[:-1]))
        skips.append((appearance, semantic) if self.skip_body else ())
        skips += [(maps_a[i], maps_t[i]) if i is not None else () for i in self.encoder_skips]
        x = self.decoder(torch.cat(pairs[-1], dim=1), skips)
        image = self.to_image(x).float().tanh()  # float32 under autocast too: bfloat16 is coarse near 1
        return crop_to(image, height, width)


def _check_numbers(
    ngf: int, enc_strides: Sequence[int], blocks: int, deep_channels: Sequence[int], deep_convs: int
) -> None:
    """Raise UserError for sizes of which no network can be made."""
    if len(enc_strides) != 3 or any(stride not in (1, 2) for stride in enc_strides):
        raise UserError(f"enc_strides={list(enc_strides)} is not possible", "give three numbers, each 1 or 2")
    positive = {
        "ngf": ngf,
        "blocks": blocks,
        "deep_convs": deep_convs,
        "deep_channels": min(deep_channels, default=0),
    }
    for option, value in positive.items():
        if value < 1:
            raise UserError(f"{option}={value} is not possible", "use 1 or more")
