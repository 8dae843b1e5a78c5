"""Reports to a picture; runs in an environment with matplotlib.

python -m benchmarks.plot PICTURE.png REPORT.json...
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = (
    ("texts_per_cpu_s", "texts per second of the server's CPU"),
    ("texts_per_s", "texts per second"),
    ("p50_ms", "p50, ms"),
    ("p99_ms", "p99, ms"),
)
OURS, PEERS = "#1f6f8b", "#b8b8b8"


def draw(axes: Any, report: dict[str, Any], figure: str) -> None:
    """Draws one figure of one report: a bar for each system, ours in colour."""
    systems = list(reversed(report["systems"].items()))
    values = [of[figure] for _, of in systems]
    colours = [OURS if name.startswith(("isogloss", "engine")) else PEERS for name, _ in systems]
    bars = axes.barh([name for name, _ in systems], values, color=colours)
    axes.bar_label(bars, labels=[f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


def main(picture: Path, files: list[Path]) -> None:
    """Writes the picture: a row for each report, a column for each figure."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    height = 1.2 + 0.32 * max(len(report["systems"]) for report in reports)
    size = (5 * len(PANELS), height * len(reports))
    drawn, grid = plt.subplots(len(reports), len(PANELS), figsize=size, squeeze=False, layout="constrained")
    for row, report in zip(grid, reports, strict=True):
        for axes, (figure, title) in zip(row, PANELS, strict=True):
            draw(axes, report, figure)
            axes.set_title(f"{report['work']}, {report['model']}: {title}", fontsize=10)
    drawn.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
