"""Computes a report from the samples of all rounds: medians, ratios within a round, share of the roofline."""

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.systems import SYSTEMS

# Title of a column -> the figure and its format; the columns of latency appear if the workload measures it.
COLUMNS = {
    "texts/s": ("texts_per_s", "{:,.0f}"),
    "texts per CPU second": ("texts_per_cpu_s", "{:,.0f}"),
    "p50 ms": ("p50_ms", "{:,.1f}"),
    "p99 ms": ("p99_ms", "{:,.1f}"),
    "memory MB": ("rss_mb", "{:,.0f}"),
    "start s": ("startup_s", "{:.1f}"),
    "errors": ("errors", "{}"),
}
Round = Mapping[str, Mapping[str, float]]  # system -> figure -> value
# The figure of each kind of ratio A/B; higher is better for the first two, lower for the others.
RATIOS = {"ratios": "texts_per_cpu_s", "ratios_wall": "texts_per_s", "ratios_p50": "p50_ms", "ratios_p99": "p99_ms"}
OURS = "isogloss-"
MIN_AGREEMENT = 0.99  # cosine to the reference; a lower value means that a system computes something else


def figures(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Returns the medians of each system over the rounds, and the total of its errors."""
    return {
        system: {
            name: sum(samples[system][name] for samples in rounds)
            if name == "errors"
            else statistics.median(samples[system][name] for samples in rounds)
            for name in rounds[0][system]
        }
        for system in rounds[0]
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(rounds: Sequence[Round], figure: str) -> dict[str, dict[str, float]]:
    """Returns the ratio "A/B" of a figure, within a round, for each isogloss service A and every other system B.

    Returns an empty dictionary if the workload does not have the figure.
    """
    names = [name for name, figures in rounds[0].items() if figure in figures]
    return {
        f"{ours}/{other}": spread([samples[ours][figure] / samples[other][figure] for samples in rounds])
        for ours in names
        if ours.startswith(OURS)
        for other in names
        if other != ours
    }


def shares(rounds: Sequence[Round], peaks: Sequence[Mapping[str, float]], flops_per_text: float) -> dict[str, float]:
    """Returns the median share of the processor's peak rate that each system reaches per CPU second.

    Args:
        rounds: The samples.
        peaks: The peak rates of each round by precision, in GFLOP per CPU second.
        flops_per_text: Mean operations of a text, without padding.
    """
    return {
        system: statistics.median(
            flops_per_text * samples[system]["texts_per_cpu_s"] / (peak[SYSTEMS[system].roofline] * 1e9)
            for samples, peak in zip(rounds, peaks, strict=True)
        )
        for system in rounds[0]
        if SYSTEMS[system].roofline
    }


def isogloss_share(shares: Mapping[str, float]) -> float | None:
    """Returns the share of the first isogloss service in the order of SYSTEMS, or None if none ran."""
    return next((shares[name] for name in SYSTEMS if name.startswith(OURS) and name in shares), None)


def agreement(vectors: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Returns the lowest cosine of each system to sentence-transformers, or to the first system without it."""
    if not vectors:
        return {}
    reference = vectors.get("sentence-transformers", next(iter(vectors.values())))
    return {
        system: min(_cosine(row, other) for row, other in zip(rows, reference, strict=True))
        for system, rows in vectors.items()
    }


def _cosine(row: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(row, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in row) * sum(b * b for b in other))


def table(report: Mapping[str, Any]) -> str:
    """Returns the figures of the systems as a Markdown table."""
    columns = {title: column for title, column in COLUMNS.items() if _has(report, column[0])}
    lines = [f"| system | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in report["systems"].items():
        cells = [template.format(figures[figure]) for figure, template in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} | absent: {reason} |" for name, reason in report["absent"].items()]
    return "\n".join(lines)


def _has(report: Mapping[str, Any], figure: str) -> bool:
    return all(figure in figures for figures in report["systems"].values())


def machine() -> dict[str, object]:
    """Returns the processor, the number of cores, and the versions of Python and the system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()  # platform.processor() is empty on Linux
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
