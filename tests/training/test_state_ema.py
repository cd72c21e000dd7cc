"""The averaged network against the average written out as a loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reposer.training.state import build_ema, warmed_up_decay


def test_the_decay_grows_to_its_value():
    assert [warmed_up_decay(0.9, n) for n in (0, 1, 8)] == pytest.approx([0.1, 2 / 11, 0.5])
    assert warmed_up_decay(0.9, 1000) == 0.9


def test_weights_and_batch_norm_statistics_follow_the_formula():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema = build_ema(network, 0.8)
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.module.training
    by_hand: dict[str, torch.Tensor] = {}
    for update in range(30):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        network(torch.randn(4, 3, 5, 5) * 3 + 1)
        ema.update_parameters(network)
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            if update == 0:
                by_hand[name] = value.clone()
            else:
                decay = min(0.8, (1 + update) / (10 + update))
                by_hand[name] = decay * by_hand[name] + (1 - decay) * value
    averaged = ema.module.state_dict()
    for name, expected in by_hand.items():
        torch.testing.assert_close(averaged[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    assert "1.running_mean" in by_hand
