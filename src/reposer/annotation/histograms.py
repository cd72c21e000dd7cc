"""Histograms and bars as one small SVG, the same bytes everywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT, _GAP = 250, 190, 30  # of a panel, in SVG units
_TOP, _BOTTOM, _NAMES = 24, 22, 80  # for the title, the axis, and the names of bars
_BAR, _MARK, _TEXT = "#0b6e4f", "#b3261e", "#333"


@dataclass(frozen=True)
class Histogram:
    """How often values fall where."""

    title: str
    values: Sequence[float]
    low: float  # left end of the first bin; smaller values count there
    high: float  # right end of the last one
    bins: int
    marks: tuple[float, ...] = ()  # dashed lines


def draw_figure(histograms: Sequence[Histogram], bars: Mapping[str, int], bars_title: str) -> str:
    """The histograms side by side, then a horizontal bar for each name (none: no bars); as a data URI."""
    panels = [_histogram(histogram) for histogram in histograms]
    if bars:
        panels.append(_bars(bars, bars_title))
    width = max(1, len(panels)) * (_WIDTH + _GAP)
    shifted = (f'<g transform="translate({i * (_WIDTH + _GAP)},0)">{p}</g>' for i, p in enumerate(panels))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="10" fill="{_TEXT}">{"".join(shifted)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _histogram(h: Histogram) -> str:
    counts, edges = np.histogram(np.clip(h.values, h.low, h.high), h.bins, (h.low, h.high))
    floor = _HEIGHT - _BOTTOM
    step = _WIDTH / h.bins
    parts = [_text(0, 12, h.title), _text(_WIDTH, 12, f"highest {int(counts.max()):,}", "end")]
    for i, count in enumerate(counts):
        height = (floor - _TOP) * int(count) / max(int(counts.max()), 1)
        parts.append(_rectangle(i * step, floor - height, step - 1, height))
    for mark in h.marks:
        x = _WIDTH * (mark - h.low) / (h.high - h.low)
        line = f'x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"'
        parts.append(f'<line {line} stroke="{_MARK}" stroke-dasharray="4 3"/>')
    whole = h.bins == round(h.high - h.low)  # a bin for each whole number: name its middle
    first, last = (edges[0] + 0.5, edges[-1] - 0.5) if whole and h.bins > 1 else (edges[0], edges[-1])
    parts += [_text(0, floor + 14, f"{first:g}"), _text(_WIDTH, floor + 14, f"{last:g}", "end")]
    return "".join(parts)


def _bars(bars: Mapping[str, int], title: str) -> str:
    step = (_HEIGHT - _TOP) / len(bars)
    parts = [_text(0, 12, title)]
    for i, (name, count) in enumerate(bars.items()):
        y = _TOP + i * step
        room = _WIDTH - _NAMES - 40
        parts.append(_text(_NAMES - 4, y + step - 1, name, "end", 8))
        parts.append(_rectangle(_NAMES, y, room * count / max(*bars.values(), 1), step - 1))
        parts.append(_text(_WIDTH, y + step - 1, f"{count:,}", "end", 8))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 10) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_BAR}"/>'
