"""progress: rate and time left by hand calculation; plain lines when the output is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from reposer.progress import Meter, progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left() -> None:
    clock = Clock()
    meter = Meter(total=1000, start=100, unit="pairs", per_step=16, clock=clock)
    assert meter.rate == 0
    assert meter.seconds_left is None
    assert meter.text() == "0 pairs/s"
    clock.now += 10
    meter.update(120, "l1 0.25")
    assert meter.rate == 20 * 16 / 10  # the 100 steps of the earlier start do not count
    assert meter.seconds_left == 880 * 16 / 32
    assert meter.text() == "32 pairs/s, 0:07:20 left, l1 0.25"
    clock.now += 10
    meter.update(1000)
    assert meter.text() == "720 pairs/s, 0:00:00 left, l1 0.25"  # 900 * 16 / 20; the note stays


def test_the_rate_follows_a_change_of_speed() -> None:
    clock = Clock()
    meter = Meter(total=10**6, start=0, unit="steps", per_step=1, clock=clock)
    for _ in range(100):  # 1 step a second
        clock.now += 1
        meter.update(meter.step + 1)
    for _ in range(130):  # 2 steps a second
        clock.now += 1
        meter.update(meter.step + 2)
    assert meter.rate == pytest.approx(2)
    clock.now += 3600  # one very slow step: the rate is still defined
    meter.update(meter.step + 1)
    assert 0 < meter.rate < 0.1


def test_long_times_are_hours() -> None:
    clock = Clock()
    meter = Meter(total=100_001, start=0, unit="images", per_step=1, clock=clock)
    clock.now += 1
    meter.update(1)
    assert meter.text() == "1 images/s, 27:46:40 left"


def test_lines_without_a_terminal() -> None:
    output = io.StringIO()
    with progress(
        5, 2, "pairs", per_step=4, title="train", interval=0, console=Console(file=output)
    ) as meter:
        for step in (3, 4, 5):
            meter.update(step, f"l1 0.{step}")
    lines = output.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["train 3/5", "train 4/5", "train 5/5"]
    assert all(" pairs/s, " in line and " left, l1 0." in line for line in lines)


def test_quiet_between_two_lines_and_one_at_the_end() -> None:
    output = io.StringIO()
    with progress(1000, unit="images", interval=1e9, console=Console(file=output)) as meter:
        for step in range(1, 1001):
            meter.update(step)
    assert len(output.getvalue().splitlines()) == 1
    assert output.getvalue().startswith("1000/1000, ")


def test_a_bar_on_a_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with progress(10, 4, "pairs", title="train", console=console) as meter:
        meter.update(7, "l1 0.5")
    assert "train" in output.getvalue()
    assert "7/10" in output.getvalue()
    assert "pairs/s" in output.getvalue()
    assert "l1 0.5" in output.getvalue()


def test_progress_goes_to_the_error_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with progress(1) as meter:
        meter.update(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/1" in captured.err
