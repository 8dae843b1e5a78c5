"""Draws the chart of speed from the committed reports; runs in an environment with matplotlib.

python -m benchmarks.plot FILE.svg
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).with_name("results")
MODELS = {
    "minilm": "all-MiniLM-L6-v2",
    "multilingual": "paraphrase-multilingual-MiniLM-L12-v2 (its layer sizes, random weights)",
}
WORKLOADS = {
    "single": "single\n64 callers, 1 text per call",
    "batch": "batch\n8 callers, 32 texts per call",
    "bulk": "bulk\n10,000 texts at once",
    "trickle": "trickle\n1 caller, 1 text per call",
}
SYSTEMS = {  # label and colour; the services of this repository in blue
    "isogloss-bf16": ("isogloss, bf16", "#1f6f8b"),
    "isogloss-f32": ("isogloss, f32", "#86b9c9"),
    "infinity-onnx": ("Infinity, ONNX Runtime", "#8a6f4d"),
    "infinity-torch": ("Infinity, torch", "#b89b74"),
    "fastembed": ("fastembed", "#7d7d7d"),
    "sentence-transformers": ("sentence-transformers", "#a8a8a8"),
    "naive": ("gRPC + sentence-transformers", "#cfcfcf"),
}
BAR = 0.13  # width of a bar; the groups are 1 apart
PARAMETERS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "isogloss",  # makes the file the same for the same reports
}


def load(model: str) -> dict[str, dict[str, Any]]:
    """Returns the reports of a model by workload."""
    return {
        workload: json.loads((RESULTS / f"{model}-{workload}.json").read_text(encoding="utf-8"))
        for workload in WORKLOADS
    }


def draw(axes: Any, title: str, reports: dict[str, dict[str, Any]]) -> None:
    """Draws one model: a group of bars for each workload, a bar for each system that the report has."""
    for group, report in enumerate(reports.values()):
        present = [name for name in SYSTEMS if name in report["systems"]]
        for place, name in enumerate(present):
            x = group + (place - (len(present) - 1) / 2) * BAR
            bars = axes.bar(x, report["systems"][name]["texts_per_cpu_s"], 0.92 * BAR, color=SYSTEMS[name][1])
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=10)
    axes.set_xticks(range(len(reports)), [WORKLOADS[name] for name in reports])
    axes.tick_params(length=0)
    axes.set_ylabel("texts per CPU second")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.margins(y=0.08)
    axes.set_xlim(-0.48, len(reports) - 0.52)


def main(file: Path) -> None:
    """Writes the chart, in the format of the file's suffix."""
    plt.rcParams.update(PARAMETERS)
    figure, panels = plt.subplots(len(MODELS), 1, figsize=(9, 6), sharey=True, layout="constrained")
    reports = {model: load(model) for model in MODELS}
    for axes, (model, title) in zip(panels, MODELS.items(), strict=True):
        draw(axes, title, reports[model])
    handles = [mpl.patches.Patch(color=colour, label=label) for label, colour in SYSTEMS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel(f"Each system on one core; medians of {rounds(reports)} rounds. Higher is better.", fontsize=8.5)
    figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)


def rounds(reports: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Returns the smallest and the largest number of rounds of all reports, such as "2 to 3"."""
    counts = sorted({report["rounds"] for of_model in reports.values() for report in of_model.values()})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
