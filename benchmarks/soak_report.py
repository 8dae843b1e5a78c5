"""Samples of a soak to a report: growth after the warm-up, first minute beside last, and whether all held."""

import collections
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WARM_SHARE = 0.2  # of the time, in which memory may grow
MINUTE_S = 60.0
MAX_GROWTH = 0.02
MEMORY = ("resident_mb", "anonymous_mb")
COUNTS = ("threads", "fds", "tasks")
SPARE_FDS = 2  # beside those at rest before: what is opened once, with the first call that needs it
MOST_LISTED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the server's process holds at a moment; MB are of 2^20 bytes."""

    at_s: float
    resident_mb: float
    anonymous_mb: float
    threads: int
    fds: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one process of the load tells of one second."""

    at_s: float
    texts: int
    interactive_ms: Sequence[float]
    ends: dict[str, int]  # "kind CODE" -> how many
    unexpected: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """All that was seen in one soak of `wanted_s` seconds; `rests` are a sample before the load, and one after it."""

    wanted_s: float
    samples: Sequence[Sample]
    told: Sequence[Told]
    rests: tuple[Sample, Sample]
    crashes: Sequence[str]
    same_vectors: bool

    @property
    def warm_s(self) -> float:
        """When the warm-up ends."""
        return self.wanted_s * WARM_SHARE

    @property
    def window_s(self) -> float:
        """How long the first and the last "minute" after the warm-up are: one, or a third where that is less."""
        return min(MINUTE_S, (self.wanted_s - self.warm_s) / 3)


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Returns by how much a value grows for each step of one, by least squares."""
    found: float = statistics.linear_regression(places, values).slope
    return found


def growth(soak: Soak, name: str) -> dict[str, float]:
    """Returns a figure's means of first and last minute, the share it grew by between them, and its slope a minute."""
    warm = [one for one in soak.samples if one.at_s >= soak.warm_s]
    first = statistics.mean(getattr(one, name) for one in warm if one.at_s < soak.warm_s + soak.window_s)
    last = statistics.mean(getattr(one, name) for one in warm if one.at_s >= soak.wanted_s - soak.window_s)
    a_minute = slope([one.at_s / 60 for one in warm], [getattr(one, name) for one in warm])
    minutes = (soak.wanted_s - soak.warm_s) / 60
    return {
        "first_minute": first,
        "last_minute": last,
        "grown": last / first - 1,
        "slope_a_minute": a_minute,
        "grown_by_slope": a_minute * minutes / first,
    }


def latencies(soak: Soak) -> dict[str, dict[str, float]]:
    """Returns the percentiles of interactive calls in the first minute after the warm-up, and in the last."""
    spans = {
        "first_minute": (soak.warm_s, soak.warm_s + soak.window_s),
        "last_minute": (soak.wanted_s - soak.window_s, soak.wanted_s),
    }
    found = {}
    for name, (start_s, end_s) in spans.items():
        values = [ms for one in soak.told if start_s <= one.at_s < end_s for ms in one.interactive_ms]
        p50, p99 = np.percentile(values, [50, 99]) if values else (float("nan"), float("nan"))
        found[name] = {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(values)}
    return found


def failures(soak: Soak) -> list[str]:
    """Returns what did not hold, a line each; none where all did."""
    found = [*soak.crashes, *(line for one in soak.told for line in one.unexpected)]
    if not soak.same_vectors:
        found.append("the known texts' vectors are others than at the start")
    found += [
        f"{name} grew by {share:.1%} after the warm-up, more than {MAX_GROWTH:.0%}"
        for name in MEMORY
        if (share := growth(soak, name)["grown"]) > MAX_GROWTH
    ]
    before, after = soak.rests
    if after.tasks > before.tasks:
        found.append(f"{after.tasks} tasks are left, where {before.tasks} were before")
    if after.fds > before.fds + SPARE_FDS:
        found.append(f"{after.fds} file descriptors are left, where {before.fds} were before")
    return found


def assemble(soak: Soak) -> dict[str, Any]:
    """Returns the report."""
    ends: collections.Counter[str] = collections.Counter()
    for one in soak.told:
        ends.update(one.ends)
    codes: collections.Counter[str] = collections.Counter()
    for name, count in ends.items():
        codes[name.split()[1]] += count
    found = failures(soak)
    return {
        "held": not found,
        "failures": found[:MOST_LISTED],
        "failure_count": len(found),
        "texts_per_s": sum(one.texts for one in soak.told) / soak.wanted_s,
        "calls_per_s": ends.total() / soak.wanted_s,
        "calls": ends.total(),
        "codes": dict(codes.most_common()),
        "ends": dict(sorted(ends.items())),
        "interactive": latencies(soak),
        "memory": {name: growth(soak, name) for name in MEMORY},
        **{
            name: {
                "at_rest_before": getattr(soak.rests[0], name),
                "at_rest_after": getattr(soak.rests[1], name),
                "greatest": max(getattr(one, name) for one in soak.samples),
            }
            for name in COUNTS
        },
        "same_vectors": soak.same_vectors,
        "samples": [asdict(one) for one in soak.samples],
    }
