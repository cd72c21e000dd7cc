"""What an evaluation of images hands over: a table of methods and metrics, every image's values, and how to
print them.

Rows are methods (the model, its variants, the trivial baselines), columns are metrics. No number appears
without its protocol, its count and, where there is one, its 95 % interval.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.files import claim_outputs, holds_keys, is_older, write_output

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One cell: a value with its 95 % interval, or the reason why there is none."""

    value: float | None
    low: float | None = None  # 95 % interval, see ``MetricInfo.interval``
    high: float | None = None
    count: int = 0  # images behind the value
    left_out: int = 0  # images with no finite value for this metric (an empty mask, an identical pair in dB)
    note: str = ""  # warnings; "not measured: ..." when value is None


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One column: what its name pins in this run."""

    protocol: str
    better: str  # "lower" or "higher"
    interval: str  # how the interval was made
    weights: dict[str, str] = field(default_factory=dict)  # sha256 of each weights file by name
    reference: str = ""  # the set of real images, for a Frechet distance


@dataclass(frozen=True)
class ImageQualityReport:
    """The result of ``image_quality.evaluate_pairs`` or ``evaluate_images``."""

    rows: dict[str, dict[str, MetricResult]]  # method -> metric -> cell
    metrics: dict[str, MetricInfo]
    per_image: pa.Table  # one row for each method and pair: names, pid, every per-image metric
    settings: dict[str, Any]  # counts, seed, versions

    def to_markdown(self) -> str:
        """The table, then one line a metric with its protocol, then the warnings."""
        arrows = {"lower": "↓", "higher": "↑"}
        header = [f"{name} {arrows[info.better]}" for name, info in self.metrics.items()]
        lines = [_line("method", *header), _line("---", *("---:" for _ in header))]
        for method, cells in self.rows.items():
            lines.append(_line(method, *(_cell(cells.get(name)) for name in self.metrics)))
        lines += ["", f"{self.settings['pairs']} pairs; 95 % intervals in brackets.", ""]
        lines += [f"- **{name}**: {_describe(info)}" for name, info in self.metrics.items()]
        return "\n".join([*lines, *self._warnings()]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-image values, in JSON's types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": self.settings,
            "metrics": {name: asdict(info) for name, info in self.metrics.items()},
            "rows": {
                method: {name: asdict(cell) for name, cell in cells.items()}
                for method, cells in self.rows.items()
            },
        }

    def write(self, folder: str | Path) -> None:
        """Write image_quality.json, .md and .parquet (per image); each appears complete or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        claim_quality(folder)
        content = pa.BufferOutputStream()
        pq.write_table(self.per_image, content)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_output(folder / "image_quality.parquet", content.getvalue().to_pybytes())
        write_output(folder / "image_quality.md", self.to_markdown().encode())
        write_output(folder / "image_quality.json", text.encode())  # last: it says that the rest is there

    def _warnings(self) -> list[str]:
        """Notes and left-out images, each once with the methods that it concerns."""
        concerned: dict[str, list[str]] = {}
        for method, cells in self.rows.items():
            for name, cell in cells.items():
                if cell.note:
                    concerned.setdefault(f"{name}: {cell.note}", []).append(method)
                if cell.left_out:
                    text = f"{name}: {cell.left_out} images without a finite value left out"
                    concerned.setdefault(text, []).append(method)
        if not concerned:
            return []
        every = list(self.rows)
        lines = [
            f"- {text}" + ("" if who == every else f" ({', '.join(who)})") for text, who in concerned.items()
        ]
        return ["", "Notes:", "", *lines]


def claim_quality(folder: Path, *more: str) -> None:
    """Refuse, before any work, to replace what no evaluation wrote.

    Raises:
        UserError: as ``files.claim_outputs``.
    """
    older = is_older(folder / "image_quality.json", holds_keys("settings", "metrics", "rows"))
    names = [f"image_quality.{suffix}" for suffix in ("parquet", "md", "json")]
    claim_outputs(folder, [*names, *more], older=older)


def _cell(cell: MetricResult | None) -> str:
    if cell is None:
        return ""
    if cell.value is None:
        return "not measured"
    text = _number(cell.value)
    if cell.low is not None and cell.high is not None:
        text += f" [{_number(cell.low)}, {_number(cell.high)}]"
    return f"{text} (n = {cell.count})"


def _describe(info: MetricInfo) -> str:
    parts = [info.protocol, f"interval: {info.interval}"]
    if info.reference:
        parts.append(f"reference: {info.reference}")
    parts += [f"{name} sha256 {digest[:12]}" for name, digest in info.weights.items()]
    return "; ".join(parts) + f"; {info.better} is better."


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
