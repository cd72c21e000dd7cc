"""The means of the log against plain arithmetic, also across a save."""

from __future__ import annotations

import pytest
import torch

from reposer.training.state import RunningMeans


def test_means_count_each_name_for_itself_and_survive_a_save():
    means = RunningMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    means.add({"a": torch.tensor(3.0)})
    again = RunningMeans()
    again.load_state_dict(means.state_dict())
    again.add({"a": torch.tensor(5.0)})
    assert {k: v.item() for k, v in again.means().items()} == pytest.approx({"a": 3.0, "b": 10.0})
    again.clear()
    assert again.means() == {}
