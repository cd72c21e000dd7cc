"""Lanes: what is made, in which order, and how many threads each computes with."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor, nn

from reposer.annotation.interfaces import AnnotatorInfo
from reposer.annotation.networks import Lanes
from reposer.annotation.parser import GuidedPersonParser
from reposer.models.parsing_networks import GuidedParser


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_lane_computes_alone_and_nobody_else_does() -> None:
    together = Barrier(3, timeout=60)

    def work(number: int) -> tuple[int, int]:
        together.wait()  # three at once, or nobody comes on
        return number * number, torch.get_num_threads()

    assert Lanes().map(work, range(6)) == [(number * number, 1) for number in range(6)]
    later: list[int] = []
    thread = Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [3, 3]


class Watched(nn.Module):
    """A network that notes what it is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, list[tuple[int, int]]()

    def forward(self, images: Tensor, masks: Tensor, joints: Tensor) -> Tensor:
        self.calls.append((len(images), torch.get_num_threads()))
        made: Tensor = self.network(images, masks, joints)
        return made


@pytest.mark.parametrize(("count", "sizes"), [(8, [2, 3, 3]), (2, [1, 1])])
def test_a_parser_shares_a_batch_among_its_lanes(count: int, sizes: list[int]) -> None:
    """Each image's map is the one that it has alone."""
    torch.manual_seed(0)
    network = Watched(GuidedParser(widths=(4, 4, 4, 4), blocks=1)).eval()
    parser = GuidedPersonParser(network, (32, 16), AnnotatorInfo("guided"))
    images = torch.randint(0, 256, (count, 3, 40, 20), dtype=torch.uint8)
    masks = torch.rand(count, 40, 20) > 0.3
    joints = torch.rand(count, 18, 2) * 20
    found = parser(images, joints, masks)
    assert sorted(network.calls) == [(size, 1) for size in sizes]
    for row in range(count):
        one = slice(row, row + 1)
        torch.testing.assert_close(found[one], parser(images[one], joints[one], masks[one]))
