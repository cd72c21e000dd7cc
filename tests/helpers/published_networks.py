"""PATN, XingGAN, GFLA and DPTN with the names and shapes of their authors' files, layer by layer.

What the importer and the networks of ours are compared with; slow and plain on purpose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- PATN.


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels)


class _Block(nn.Module):
    def __init__(self, first: bool, kind: str, dropout: bool) -> None:
        super().__init__()
        bias, inner = kind == "instance", 256 if first else 512

        def half(channels: int, out: int, normed: bool) -> nn.Sequential:
            steps = [
                nn.ReflectionPad2d(1),
                nn.Conv2d(channels, channels, 3, bias=bias),
                _norm(kind, channels),
            ]
            steps += [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
            steps += [nn.ReflectionPad2d(1), nn.Conv2d(channels, out, 3, bias=bias)]
            return nn.Sequential(*steps, *([_norm(kind, out)] if normed else []))

        self.conv_block_stream1 = half(256, 256, True)
        self.conv_block_stream2 = half(inner, 256, False)

    def forward(self, image: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        pose = self.conv_block_stream2(pose)
        image = image + self.conv_block_stream1(image) * torch.sigmoid(pose)
        return image, torch.cat([pose, image], 1)


class PublishedPATN(nn.Module):
    """``model.`` before every name, as its wrapper gives it."""

    def __init__(self, kind: str = "batch", dropout: bool = True) -> None:
        super().__init__()
        bias = kind == "instance"

        def down(planes: int) -> nn.Sequential:
            steps: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(planes, 64, 7, bias=bias)]
            steps += [_norm(kind, 64), nn.ReLU()]
            for channels in (64, 128):
                steps.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=bias))
                steps += [_norm(kind, 2 * channels), nn.ReLU()]
            return nn.Sequential(*steps)

        self.model = nn.Module()
        self.model.stream1_down, self.model.stream2_down = down(3), down(36)
        self.model.att = nn.ModuleList(_Block(i == 0, kind, dropout) for i in range(9))
        up: list[nn.Module] = []
        for channels in (256, 128):
            up.append(nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, 1, bias=bias))
            up += [_norm(kind, channels // 2), nn.ReLU()]
        self.model.stream1_up = nn.Sequential(*up, nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.Tanh())

    def forward(self, image: Tensor, poses: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 36, H, W) source's then target's -> (B, 3, H, W)."""
        x, y = self.model.stream1_down(image), self.model.stream2_down(poses)
        for block in self.model.att:
            x, y = block(x, y)
        return self.model.stream1_up(x)


# ---- XingGAN.


class _Crossing(_Block):
    def __init__(self, first: bool, kind: str) -> None:
        super().__init__(first, kind, True)
        self.query_conv, self.key_conv = nn.Conv2d(256, 32, 1), nn.Conv2d(256, 32, 1)
        self.value_conv = nn.Conv2d(256, 256, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def looked(self, a: Tensor, b: Tensor) -> Tensor:
        """For every place of a: the values of a, weighted by softmax over the places of b."""
        values = self.value_conv(a).flatten(2)
        energy = torch.einsum("bci,bcj->bij", self.query_conv(a).flatten(2), self.key_conv(b).flatten(2))
        weight = (energy - energy.amax(2, keepdim=True)).exp()
        weight = weight / weight.sum(2, keepdim=True)
        return a + self.gamma * torch.einsum("bij,bcj->bci", weight, values).view(a.shape)

    def forward(self, image: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.conv_block_stream1(image), self.conv_block_stream2(pose)
        image = self.looked(x, y)
        return image, torch.cat([image, self.looked(y, x)], 1)


class PublishedXingGAN(PublishedPATN):
    """PATN's names, and more of them."""

    def __init__(self, kind: str = "batch") -> None:
        super().__init__(kind)
        bias, m = kind == "instance", self.model
        m.att = nn.ModuleList(_Crossing(i == 0, kind) for i in range(9))

        def up() -> nn.Sequential:
            steps: list[nn.Module] = []
            for channels in (256, 128):
                steps.append(nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, 1, bias=bias))
                steps += [_norm(kind, channels // 2), nn.ReLU()]
            return nn.Sequential(*steps, nn.ReflectionPad2d(3), nn.Conv2d(64, 30, 7), nn.Tanh())

        m.stream1_up, m.stream2_up = up(), up()
        m.x2_con, m.x2_norm = nn.ConvTranspose2d(512, 256, 1, bias=bias), _norm(kind, 256)
        m.atte_con, m.atte_norm = nn.ConvTranspose2d(768, 256, 3, 2, 1, 1, bias=bias), _norm(kind, 256)
        m.atte_con1, m.atte_norm1 = nn.ConvTranspose2d(256, 128, 3, 2, 1, 1, bias=bias), _norm(kind, 128)
        m.atte_con2 = nn.ConvTranspose2d(128, 21, 1, bias=bias)

    def forward(self, image: Tensor, poses: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 36, H, W) source's then target's -> (B, 3, H, W)."""
        m = self.model
        x, y = m.stream1_down(image), m.stream2_down(poses)
        for block in m.att:
            x, y = block(x, y)
        z = m.atte_norm(m.atte_con(torch.cat([x, y], 1))).relu()
        share = m.atte_con2(m.atte_norm1(m.atte_con1(z)).relu()).softmax(1)
        first, second = m.stream1_up(x), m.stream2_up(m.x2_norm(m.x2_con(y)).relu())
        total = image * share[:, 20:21]
        for i in range(10):
            total = total + first[:, 3 * i : 3 * i + 3] * share[:, i : i + 1]
            total = total + second[:, 3 * i : 3 * i + 3] * share[:, 10 + i : 11 + i]
        return total


# ---- GFLA.


def _in(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _act() -> nn.Module:
    return nn.LeakyReLU(0.1)


class _Encoder(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        down, after = nn.Conv2d(i, o, 4, 2, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.model = nn.Sequential(_in(i), _act(), down, _in(o), _act(), after)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(c, c, 3, 1, 1) for _ in range(2)]
        self.model = nn.Sequential(_in(c), _act(), convs[0], _in(c), _act(), convs[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + x


class _Wrapped(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.model = nn.Sequential(_Residual(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Up(nn.Module):
    def __init__(self, i: int, o: int, h: int) -> None:
        super().__init__()
        conv, up = nn.Conv2d(i, h, 3, 1, 1), nn.ConvTranspose2d(h, o, 3, 2, 1, 1)
        self.model = nn.Sequential(_in(i), _act(), conv, _in(h), _act(), up)
        self.shortcut = nn.Sequential(nn.ConvTranspose2d(i, o, 3, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.shortcut(x)


class _Out(nn.Module):
    """A convolution under two names."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3)
        self.model = nn.Sequential(_act(), nn.ReflectionPad2d(1), self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Attention(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.fully_connect_layer = nn.Sequential(
            nn.Conv2d(2 * c, 128, k, stride=k), _act(), nn.Conv2d(128, k * k, 1)
        )

    def laid(self, maps: Tensor, flow: Tensor) -> Tensor:
        """Every k x k block about where the flow leads, laid out side by side."""
        k, (height, width) = self.k, maps.shape[2:]
        y, x = torch.meshgrid(torch.arange(k * height), torch.arange(k * width), indexing="ij")
        at = flow.repeat_interleave(k, 2).repeat_interleave(k, 3)
        px = (x // k + x % k - k // 2 + at[:, 0]).clamp(0, width - 1)
        py = (y // k + y % k - k // 2 + at[:, 1]).clamp(0, height - 1)
        left, top = px.floor().long(), py.floor().long()
        r, d = (px - left)[:, None], (py - top)[:, None]

        def pick(row: Tensor, column: Tensor) -> Tensor:
            row, column = row.clamp(max=height - 1), column.clamp(max=width - 1)
            return torch.stack([m[:, i, j] for m, i, j in zip(maps, row, column, strict=True)])

        upper = pick(top, left) * (1 - r) + pick(top, left + 1) * r
        return upper * (1 - d) + (pick(top + 1, left) * (1 - r) + pick(top + 1, left + 1) * r) * d

    def forward(self, source: Tensor, target: Tensor, flow: Tensor) -> Tensor:
        ours, theirs = self.laid(target, torch.zeros_like(flow)), self.laid(source, flow)
        share = self.fully_connect_layer(torch.cat([ours, theirs], 1)).softmax(1)
        return F.avg_pool2d(F.pixel_shuffle(share, self.k) * theirs, self.k)


class PublishedGFLA(nn.Module):
    """Market-1501's (attention at 1/4, kernel 3) or DeepFashion's (kernel 5, and 3 at 1/8)."""

    def __init__(self, fashion: bool = False) -> None:
        super().__init__()
        self.fashion = fashion
        self.source, self.target, self.flow_net = nn.Module(), nn.Module(), nn.Module()
        for net, planes in ((self.source, 3), (self.target, 18)):
            for name, i, o in (("block0", planes, 64), ("encoder0", 64, 128), ("encoder1", 128, 256)):
                net.add_module(name, _Encoder(i, o))
        for i, (before, after) in enumerate(((256, 128), (128, 64), (64, 64))):
            self.target.add_module(f"decoder{i}", nn.Sequential(_Wrapped(before), _Up(before, after, before)))
        self.target.attn1 = _Attention(128, 5 if fashion else 3)
        if fashion:
            self.target.attn0 = _Attention(256, 3)
        self.target.outconv = _Out(64, 3)
        widths = (39, 32, 64, 128, 256, 256)
        for i in range(5):
            self.flow_net.add_module(
                "block0" if i == 0 else f"encoder{i - 1}", _Encoder(widths[i], widths[i + 1])
            )
        for i, (before, after) in enumerate(((256, 256), (256, 128), (128, 64))):
            self.flow_net.add_module(f"decoder{i}", _Up(before, after, after))
            self.flow_net.add_module(f"jump{i}", _Out(after, after))
        for i, channels in ((1, 128), (2, 64)):
            if fashion or i == 2:
                self.flow_net.add_module(f"output{i}", nn.Conv2d(channels, 2, 3, 1, 1))
                self.flow_net.add_module(
                    f"mask{i}", nn.Sequential(nn.Conv2d(channels, 1, 3, 1, 1), nn.Sigmoid())
                )

    def forward(self, image: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 18, H, W) twice -> (B, 3, H, W)."""
        flow, x, kept = self.flow_net, torch.cat([image, source_pose, target_pose], 1), []
        for name in ("block0", "encoder0", "encoder1", "encoder2", "encoder3"):
            x = getattr(flow, name)(x)
            kept.append(x)
        flows, masks = {}, {}
        for i in range(3):
            x = getattr(flow, f"decoder{i}")(x) + getattr(flow, f"jump{i}")(kept[3 - i])
            if hasattr(flow, f"output{i}"):
                flows[i], masks[i] = getattr(flow, f"output{i}")(x), getattr(flow, f"mask{i}")(x)
        features, y = [], image
        for name in ("block0", "encoder0", "encoder1"):
            y = getattr(self.source, name)(y)
            features.insert(0, y)
        out = target_pose
        for name in ("block0", "encoder0", "encoder1"):
            out = getattr(self.target, name)(out)
        for i in range(3):
            if i + 1 in flows:
                found = getattr(self.target, f"attn{i}")(features[i], out, flows[i + 1])
                out = (1 - masks[i + 1]) * out + masks[i + 1] * found
            out = getattr(self.target, f"decoder{i}")(out)
        return torch.tanh(self.target.outconv(out))


# ---- DPTN.


class _Start(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(i, o, 4, 2, 1), _in(o), _act(), nn.Conv2d(o, o, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Bypassed(nn.Module):
    """Three convolutions, each under two names."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)
        self.bypass = nn.Conv2d(c, c, 1)
        self.model = nn.Sequential(_in(c), _act(), self.conv1, _in(c), _act(), self.conv2)
        self.shortcut = nn.Sequential(self.bypass)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.shortcut(x)


class _Layer(nn.Module):
    """(N, B, C), as torch's own attention takes it."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(256, 2)
        if asks:
            self.multihead_attn = nn.MultiheadAttention(256, 2)
        self.linear1, self.linear2 = nn.Linear(256, 256), nn.Linear(256, 256)
        for i in range(3 if asks else 2):
            self.add_module(f"norm{i + 1}", nn.InstanceNorm1d(256, affine=True))

    def forward(self, x: Tensor, memory: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        def normed(i: int, y: Tensor) -> Tensor:
            return getattr(self, f"norm{i}")(y.permute(1, 2, 0)).permute(2, 0, 1)

        x, last = normed(1, x + self.self_attn(x, x, x)[0]), 2
        if memory is not None:
            x, last = normed(2, x + self.multihead_attn(x, memory, values)[0]), 3
        return normed(last, x + self.linear2(_act()(self.linear1(x))))


class PublishedDPTN(nn.Module):
    """Both data sets'."""

    def __init__(self) -> None:
        super().__init__()
        self.source_encoder = nn.Module()
        for net, planes in ((self, 39), (self.source_encoder, 3)):
            for name, made in (
                ("block0", _Start(planes, 64)),
                ("encoder0", _Encoder(64, 128)),
                ("encoder1", _Encoder(128, 256)),
            ):
                net.add_module(name, made)
        for i in range(3):
            self.add_module(f"mblock{i}", _Bypassed(256))
        self.PTM = nn.Module()
        self.PTM.encoder, self.PTM.decoder = nn.Module(), nn.Module()
        self.PTM.encoder.layers = nn.ModuleList(_Layer(False) for _ in range(2))
        self.PTM.decoder.layers = nn.ModuleList(_Layer(True) for _ in range(2))
        self.PTM.decoder.norm = nn.InstanceNorm1d(256, affine=True)
        for i, (before, after) in enumerate(((256, 128), (128, 64), (64, 64))):
            self.add_module(f"decoder{i}", _Up(before, after, after))
        self.outconv = _Out(64, 3)

    def encoded(self, *planes: Tensor) -> Tensor:
        x = torch.cat(planes, 1)
        for name in ("block0", "encoder0", "encoder1", "mblock0", "mblock1", "mblock2"):
            x = getattr(self, name)(x)
        return x

    def forward(self, image: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 18, H, W) twice -> (B, 3, H, W)."""
        values = image
        for name in ("block0", "encoder0", "encoder1"):
            values = getattr(self.source_encoder, name)(values)
        maps = (
            self.encoded(image, source_pose, source_pose),
            self.encoded(image, source_pose, target_pose),
            values,
        )
        size = values.shape
        memory, x, v = (one.flatten(2).permute(2, 0, 1) for one in maps)
        for layer in self.PTM.encoder.layers:
            memory = layer(memory)
        for layer in self.PTM.decoder.layers:
            x = layer(x, memory, v)
        out = self.PTM.decoder.norm(x.permute(1, 2, 0)).view(size)
        for i in range(3):
            out = getattr(self, f"decoder{i}")(out)
        return torch.tanh(self.outconv(out))
