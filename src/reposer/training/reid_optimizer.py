"""The optimizer of a Re-ID training: groups of parameters with their factors, and the rate of a step."""

from __future__ import annotations

import math
from bisect import bisect_right

import torch

from reposer.models.reid_network import ReidNetwork
from reposer.training.reid_config import ReidConfig, ReidOptimizerConfig


def build_optimizer(network: ReidNetwork, config: ReidOptimizerConfig) -> torch.optim.Optimizer:
    """SGD or Adam over four groups: backbone and heads, weights and (biases, norms) or the classifier's bias.

    Each group carries its "factor": its rate is the schedule's times that.
    """
    groups = []
    alone = id(network.classifier.bias)
    backbone = {id(p) for p in network.embedding.backbone.parameters()}
    for in_backbone in (True, False):
        for small in (False, True):  # vectors are biases and norms
            own_rate = (
                (lambda p: id(p) == alone) if config.biases == "classifier" else (lambda p: p.dim() < 2)
            )
            chosen = [
                p
                for p in network.parameters()
                if p.requires_grad and (id(p) in backbone) == in_backbone and own_rate(p) == small
            ]
            factor = (config.backbone_factor if in_backbone else 1.0) * (config.bias_factor if small else 1.0)
            decay = config.weight_decay if config.bias_decay or not small else 0.0
            if chosen:
                groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    if config.kind == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def scheduled_rate(step: int, config: ReidConfig) -> float:
    """Learning rate of the update after ``step`` completed ones: a pure function of the step.

    Warm-up: from warmup_factor in a straight line to 1 over the warm-up's steps. Then either gamma for every
    milestone passed, or a half cosine over the remaining steps, which would reach 0 at the last.
    """
    schedule = config.schedule
    warmup, total = config.steps_of(schedule.warmup_epochs), config.total_steps
    if step < warmup:
        return config.optimizer.lr * (schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup)
    if schedule.decay == "cosine":
        return config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    passed = bisect_right([config.steps_of(epoch) for epoch in sorted(schedule.milestones)], step)
    return float(config.optimizer.lr * schedule.gamma**passed)
