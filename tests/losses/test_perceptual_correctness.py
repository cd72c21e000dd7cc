"""GFLA's correctness of a flow and its 4x4 Gaussian against literal loops."""

from __future__ import annotations

from math import e, exp, floor

import numpy as np
import pytest
import torch

from reposer.losses.image_gan import GanNetworks, generator_loss
from reposer.losses.perceptual import correctness_loss, gaussian_sampled
from reposer.structures import PairBatch


def slow_sample(maps: np.ndarray, x: float, y: float) -> np.ndarray:
    channels, height, width = maps.shape
    total, out = 0.0, np.zeros(channels)
    for down in range(-1, 3):
        for right in range(-1, 3):
            row, column = floor(y) + down, floor(x) + right
            weight = exp(-((y - row) ** 2) / 8) * exp(-((x - column) ** 2) / 8)
            out += weight * maps[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            total += weight
    return out / total


def test_the_gaussian_is_that_of_the_loop() -> None:
    torch.manual_seed(0)
    maps, flow = torch.randn(2, 3, 5, 4), torch.randn(2, 2, 5, 4) * 3
    got = gaussian_sampled(maps, flow)
    for row in range(2):
        for y in range(5):
            for x in range(4):
                place = (x + float(flow[row, 0, y, x]), y + float(flow[row, 1, y, x]))
                wanted = slow_sample(maps[row].double().numpy(), *place)
                np.testing.assert_allclose(got[row, :, y, x], wanted, atol=1e-5)


def test_correctness_is_that_of_the_loop() -> None:
    torch.manual_seed(1)
    source, wanted, flow = torch.rand(2, 3, 4, 3), torch.rand(2, 3, 4, 3), torch.randn(2, 2, 4, 3)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    values = []
    for row in range(2):
        s, t = source[row].double().numpy(), wanted[row].double().numpy()
        for y in range(4):
            for x in range(3):
                place = (x + float(flow[row, 0, y, x]), y + float(flow[row, 1, y, x]))
                best = max(cosine(s[:, v, u], t[:, y, x]) for v in range(4) for u in range(3))
                values.append(exp(-cosine(slow_sample(s, *place), t[:, y, x]) / (best + 1e-8)) - 1 / e)
    found = correctness_loss([flow, flow], [source, source], [wanted, wanted])
    assert float(found) == pytest.approx(2 * np.mean(values), abs=1e-5)


def test_the_gradient_of_the_flow_is_that_of_differences() -> None:
    torch.manual_seed(2)
    source, wanted = torch.rand(1, 3, 4, 3), torch.rand(1, 3, 4, 3)
    flow = (torch.rand(1, 2, 4, 3) * 0.8 + 0.1).requires_grad_()
    correctness_loss([flow], [source], [wanted]).backward()
    step = torch.zeros_like(flow)
    step[0, 0, 1, 1] = 1e-2
    with torch.no_grad():
        ends = [correctness_loss([flow + sign * step], [source], [wanted]) for sign in (1, -1)]
    assert flow.grad is not None
    assert float(flow.grad[0, 0, 1, 1]) == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=1e-5)


def test_a_flow_that_leads_to_the_same_features_costs_least() -> None:
    torch.manual_seed(3)
    source = torch.nn.functional.interpolate(torch.rand(1, 8, 4, 4), scale_factor=4, mode="bicubic")
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 3.0
    wanted = source.roll(-3, 3)
    right, none = (float(correctness_loss([f], [source], [wanted])) for f in (flow, torch.zeros_like(flow)))
    assert right < none


class _Layers(torch.nn.Module):
    layers = ("fine",)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(image, 4)]


def test_the_term_compares_source_and_target_and_never_the_image() -> None:
    images = [torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    nothing = torch.zeros(2, 18, 2)
    maps = [torch.zeros(2, 32, 16, dtype=torch.uint8)] * 2 + [torch.zeros(2, 32, 16, dtype=torch.bool)] * 2
    batch = PairBatch(*images, *maps, nothing, nothing, torch.arange(2))
    flow = torch.zeros(2, 2, 8, 4)
    nets = GanNetworks(
        torch.nn.Identity(), torch.nn.Identity(), _Layers(), feature_layers={"correctness": ("fine",)}
    )
    auxiliary = type("Flows", (), {"flows": (flow,), "terms": {}})()
    image = torch.full((2, 3, 32, 16), torch.nan)
    loss, parts = generator_loss(nets, batch, image, {"correctness": 2.0}, auxiliary=auxiliary)
    pooled = [torch.nn.functional.avg_pool2d(x, 4) for x in (batch.source_image, batch.target_image)]
    assert float(loss) == pytest.approx(2 * float(correctness_loss([flow], *([p] for p in pooled))), rel=1e-5)
    assert set(parts) == {"generator/loss", "generator/correctness"}
