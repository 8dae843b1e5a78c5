"""Samples to a report: medians, ratios taken round by round, the share of the roofline."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.systems import SYSTEMS

Round = Mapping[str, Mapping[str, float]]  # system -> figure -> value
# What a ratio A/B compares; of the first two more is better, of the others less.
RATIOS = {"ratios": "texts_per_cpu_s", "ratios_wall": "texts_per_s", "ratios_p50": "p50_ms", "ratios_p99": "p99_ms"}
OURS = "isogloss-"
LEAST_AGREEMENT = 0.99  # of a peer that computes the same thing


def figures(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Returns each system's medians over the rounds; errors are added up."""
    return {
        system: {
            name: sum(one[system][name] for one in rounds)
            if name == "errors"
            else statistics.median(one[system][name] for one in rounds)
            for name in rounds[0][system]
        }
        for system in rounds[0]
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(rounds: Sequence[Round], figure: str) -> dict[str, dict[str, float]]:
    """Returns "A/B" for each of ours A and every other system B, each taken within a round."""
    names = list(rounds[0])
    return {
        f"{ours}/{other}": spread([one[ours][figure] / one[other][figure] for one in rounds])
        for ours in names
        if ours.startswith(OURS)
        for other in names
        if other != ours
    }


def shares(rounds: Sequence[Round], peaks: Sequence[Mapping[str, float]], flops_per_text: float) -> dict[str, float]:
    """Returns the share of the chip's rate that each system reaches per second of processor time, its median.

    Args:
        rounds: The samples.
        peaks: Each round's own rates by precision, in GFLOP a CPU second.
        flops_per_text: Mean operations of a text, without padding.
    """
    return {
        system: statistics.median(
            flops_per_text * one[system]["texts_per_cpu_s"] / (peak[SYSTEMS[system].roofline] * 1e9)
            for one, peak in zip(rounds, peaks, strict=True)
        )
        for system in rounds[0]
        if SYSTEMS[system].roofline
    }


def first_of_ours(found: Mapping[str, float]) -> float | None:
    """Returns the share of the first of our services, in the order of the table; None where none ran."""
    return next((found[name] for name in SYSTEMS if name.startswith(OURS) and name in found), None)


def agreement(vectors: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Returns each system's least cosine to sentence-transformers, or to the first system where that did not run."""
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
    """Returns the report's systems as a Markdown table."""
    lines = [
        "| system | texts/s | texts per CPU second | p50 ms | p99 ms | memory MB | start s | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in report["systems"].items():
        rates = f"{of['texts_per_s']:,.0f} | {of['texts_per_cpu_s']:,.0f}"
        times = f"{of['p50_ms']:,.1f} | {of['p99_ms']:,.1f}"
        lines.append(f"| {name} | {rates} | {times} | {of['rss_mb']:,.0f} | {of['startup_s']:.1f} | {of['errors']} |")
    lines += [f"| {name} | absent: {why} |" for name, why in report["absent"].items()]
    return "\n".join(lines)
