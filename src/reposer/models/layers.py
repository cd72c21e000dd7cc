"""Layers that generators and discriminators share: norm, convolution, up-sampling, initialization, padding.

Layer order everywhere: convolution, norm, LeakyReLU. The activation works in place, which is safe behind a
norm (its backward pass reads its own input, not its output) and saves a tensor of memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reposer.errors import UserError, find, known, unknown
from reposer.storage.paths import printable

# ---- Instance norm that leaves maps in channels-last memory as they lie.
#
# PyTorch's own copies such a map to the other layout, normalizes it as a batch norm of B x C channels, and
# the convolution behind it copies it back: on a CPU about as long as the convolution itself takes.

EPSILON = 1e-5  # added to the variance


class InstanceNorm(nn.Module):
    """(B, C, H, W) -> the same, each channel of each picture with mean 0 and variance 1; nothing learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x)

    def extra_repr(self) -> str:
        return str(self.channels)


def instance_norm(x: Tensor) -> Tensor:
    """``F.instance_norm`` of (B, C, H, W), to float tolerance, in the memory layout of ``x``.

    Raises:
        ValueError: a map of one pixel, which has no variance.
    """
    ours = (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[2] * x.shape[3] > 1
        and not torch.compiler.is_compiling()  # which fuses PyTorch's own form
    )
    if not ours:
        return F.instance_norm(x, eps=EPSILON)
    y: Tensor = _InstanceNorm.apply(x)
    return y


class _InstanceNorm(torch.autograd.Function):
    """y = (x - mean) r with r = 1 / sqrt(variance + eps); dx = r (dy - mean(dy) - y mean(dy y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.channels_last)  # no view: others may work in place on it
        places = _places(x)
        mean = places.mean(1, keepdim=True)  # (B, 1, C)
        out = torch.sub(places, mean, out=_places(y))
        inverse = (out.square().mean(1, keepdim=True) + EPSILON).rsqrt_()
        out.mul_(inverse)
        ctx.save_for_backward(x, mean, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mean, inverse = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        out, dy = _places(dx), _places(gradient.contiguous(memory_format=torch.channels_last))
        centered = _places(x) - mean
        shift = dy.mean(1, keepdim=True)
        slope = torch.mul(dy, centered, out=out).mean(1, keepdim=True) * inverse.pow(3)  # mean(dy y) r^2
        torch.addcmul(-shift * inverse, centered, slope, value=-1, out=out)
        out.addcmul_(dy, inverse)
        return dx


def _places(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B, HW, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class LayerNorm(nn.Module):
    """(B, C, H, W) -> the same: each picture less its mean, over its deviation + 1e-3; one scale, one shift.

    keras-contrib's "InstanceNormalization" as Def-GAN calls it: axis none, so over all channels and places.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            variance, mean = torch.var_mean(x.float(), (1, 2, 3), correction=0, keepdim=True)
            deviation = (variance + 1e-12).sqrt()  # the root has no slope at 0
            return (x.float() - mean) * (self.weight / (deviation + 1e-3)) + self.bias


Padding = Literal["reflect", "zeros"]

NORMS = ("batch", "instance", "layer", "none")
PADDINGS = ("reflect", "zeros")
UPSAMPLERS = ("deconv", "resize")


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise unknown(option, str(value), map(str, choices))


def build(
    kind: str, table: Mapping[str, Callable[..., nn.Module]], name: str, args: Mapping[str, Any]
) -> nn.Module:
    """The module of that name in a registry, its constructor called with ``args``.

    Raises:
        UserError: no such name or argument (the nearest is named), a value of another type than the
            constructor names, or values that are impossible, alone or together.
    """
    made = find(kind, name, table)
    options = inspect.signature(made, eval_str=True).parameters
    for arg, value in args.items():
        known(f"{kind} {name}: argument", arg, options)
        if not _is_of(options[arg].annotation, value):
            shown = printable(repr(value)[:60])
            raise UserError(f"the {kind} {name}: {arg} cannot be {shown}", _advice(options[arg]))
    check_arguments(args)
    try:
        return made(**args)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # values that are wrong together
        reason = printable(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
        raise UserError(f"no such {kind} {name} can be built: {reason}", "change its arguments") from error


def _is_of(annotation: Any, value: object) -> bool:
    """Whether the value is of the type that a constructor names; any is, where it names none."""
    if annotation is inspect.Parameter.empty:
        return True
    try:
        TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _advice(option: inspect.Parameter) -> str:
    return f"its default is {option.default!r}" if option.default is not option.empty else ""


_COUNTS = ("blocks", "convs", "halvings", "stripes")  # arguments that count layers or parts
MAX_SIDE = 1024  # pixels of a network's input; memory grows with its square
_MOST_LAYERS, _MOST_CHANNELS = 64, 8192


def check_arguments(args: Mapping[str, object]) -> None:
    """Refuse sizes and depths, of a configuration perhaps by somebody else, that no network here can mean.

    A loop over 10^9 blocks takes all memory before any weight is there to compare shapes with.

    Raises:
        UserError: names the argument and its bound: 64 for numbers and lists of layers, 1024 pixels for the
            sides of an input (``size``), 8192 for all others; or a number is none, or negative; or ``sigma``
            or ``temperature``, which are divided by, is 0.
    """
    for name, value in args.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        most = MAX_SIDE if name == "size" else _MOST_CHANNELS
        if any(name.endswith(count) for count in _COUNTS):
            most = _MOST_LAYERS
        numbers = [v for v in values if isinstance(v, int | float)]
        if any(number != number or number < 0 for number in numbers):
            raise UserError(f"{name} is negative or no number", "give another number")
        if len(values) > _MOST_LAYERS or not all(abs(number) <= most for number in numbers):
            raise UserError(f"{name} is larger than any network here can use", f"the most is {most:,}")
        if name in ("sigma", "temperature") and 0 in numbers:
            raise UserError(f"{name}=0 is divided by", "give a number above 0")
        if isinstance(value, Mapping):
            check_arguments(value)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Batch norm, layer norm, instance norm (the last learns nothing, as PATN's on DeepFashion), or none."""
    check_choice("norm", kind, NORMS)
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return LayerNorm()
    return nn.BatchNorm2d(channels) if kind == "batch" else InstanceNorm(channels)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: Padding = "reflect",
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution that keeps the size or divides it by the stride; without bias: a norm would cancel it."""
    check_choice("padding", padding, PADDINGS)
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias, padding_mode=padding
    )


class ConvNormAct(nn.Sequential):
    """Convolution, norm, LeakyReLU: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        norm: str = "batch",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__(
            conv(in_channels, out_channels, kernel, stride, padding, bias=norm == "none"),
            make_norm(norm, out_channels),
            nn.LeakyReLU(lrelu_slope, inplace=True),
        )


class ResidualBlock(nn.Module):
    """x + conv-norm-LeakyReLU-conv-norm(x), (B, C, H, W) -> the same."""

    def __init__(
        self,
        channels: int,
        dropout: float = 0.0,
        norm: str = "batch",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvNormAct(channels, channels, norm=norm, lrelu_slope=lrelu_slope, padding=padding),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            conv(channels, channels, padding=padding, bias=norm == "none"),
            make_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return branch.add_(x)  # in place: neither a norm nor a convolution reads its output on the way back


class DoublingConv2d(nn.Conv2d):
    """Nearest up-sampling by 2, then a 3x3 convolution: (B, in, H, W) -> (B, out, 2H, 2W).

    Two of three taps see the same small pixel. So it is computed as a transposed 4x4 convolution of the small
    map with stride 2, with the taps added up: 4/9 of the work, and no large map in between.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: Padding = "reflect") -> None:
        check_choice("padding", padding, PADDINGS)
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False, padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        kernel = F.pad(self.weight, (1, 1, 1, 1))
        kernel = kernel[:, :, :-1] + kernel[:, :, 1:]
        kernel = kernel[..., :-1] + kernel[..., 1:]  # (out, in, 4, 4)
        kernel = kernel.flip(2, 3).transpose(0, 1)
        if self.padding_mode == "reflect":  # the border of the large map repeats that of the small one
            return F.conv_transpose2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, padding=3)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


class UpNormAct(nn.Sequential):
    """(B, in, H, W) -> (B, out, 2H, 2W), by a 4x4 transposed convolution or by resizing and a 3x3."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        up: str = "deconv",
        norm: str = "batch",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        check_choice("up", up, UPSAMPLERS)
        steps: list[nn.Module]
        if (
            up == "deconv"
        ):  # 4x4 with stride 2: every output pixel sees the same number of taps, no checkerboard
            steps = [nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)]
        else:
            # nothing first: saved weights are named by their place behind what was a module of its own
            steps = [nn.Identity(), DoublingConv2d(in_channels, out_channels, padding)]
        super().__init__(*steps, make_norm(norm, out_channels), nn.LeakyReLU(lrelu_slope, inplace=True))


def init_weights(module: nn.Module) -> None:
    """For ``Module.apply``: convolutions N(0, 0.02), norm scales N(1, 0.02), all shifts 0 (DCGAN; PATN)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def init_orthogonal(module: nn.Module, gain: float = 0.02) -> None:
    """For ``Module.apply``: convolutions orthogonal times ``gain``, their shifts 0 (0.02: GFLA; DPTN)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.orthogonal_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the border, as evenly on both sides as can be, until both sizes divide by ``multiple``.

    A tensor whose sizes divide already comes back untouched.
    """
    height, width = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (height or width):
        return x
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, sides, mode="replicate")


def crop_to(x: Tensor, height: int, width: int) -> Tensor:
    """Undo ``pad_to_multiple``: the middle (B, C, height, width) of ``x``."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


# ---- The inputs of networks: a parsing map as planes, beside other planes.


def onehot_parsing(parsing: Tensor, labels: int) -> Tensor:
    """(B, H, W) label indices -> (B, labels, H, W) bool, channels last in memory.

    A label outside the schema (MISSING_LABEL above all) is zero in every channel.
    """
    index = torch.arange(labels, dtype=parsing.dtype, device=parsing.device)
    return (parsing.unsqueeze(-1) == index).permute(0, 3, 1, 2)


def join_planes(planes: Sequence[Tensor], parsing: Tensor, labels: int) -> Tensor:
    """Planes (B, C, H, W) and the one-hot parsing -> (B, sum of C + labels, H, W) float32, channels last.

    Everything is written once, into its place: one-hot, conversion and concatenation in one pass over memory.
    """
    batch, height, width = parsing.shape
    channels = sum(plane.shape[1] for plane in planes)
    size = (batch, channels + labels, height, width)
    joined = torch.empty(size, device=parsing.device, memory_format=torch.channels_last)
    start = 0
    for plane in planes:
        joined[:, start : start + plane.shape[1]] = plane
        start += plane.shape[1]
    joined[:, start:] = onehot_parsing(parsing, labels)
    return joined
