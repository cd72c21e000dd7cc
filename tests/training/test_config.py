"""The schedule against a table."""

from __future__ import annotations

import pytest

from reposer.training.config import learning_rate
from reposer.training.gan.config import DataConfig, GanConfig


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1.0), (1, 1.0), (9, 1.0), (10, 1.0), (11, 0.75), (12, 0.5), (13, 0.25), (14, 0.0), (20, 0.0)],
)
def test_the_rate_is_constant_then_a_line_to_zero(step, expected):
    assert learning_rate(step, 1.0, steps_const=10, steps_decay=4) == pytest.approx(expected)


def test_without_a_decay_the_rate_stays_until_the_end():
    assert [learning_rate(s, 2e-4, 3, 0) for s in range(3)] == [2e-4] * 3


def test_a_recipe_takes_any_number_of_steps():
    config = GanConfig(
        data=DataConfig(folder="x"), batch_size=7, schedule={"epochs_const": 2, "epochs_decay": 1}
    )
    for steps in (1, 3, 41, 250, 1999):
        changed = config.with_steps(steps)
        assert changed.total_steps == steps
        rates = [changed.rate(step, steps) for step in range(steps)]
        assert rates.count(config.optimizer.lr) == pytest.approx(steps * 2 / 3, abs=2)
    assert config.with_steps(config.total_steps).total_steps == config.total_steps
