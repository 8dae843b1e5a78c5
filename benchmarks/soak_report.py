"""Computes the report of the `soak` workload: growth after the warm-up, latencies, and failed conditions."""

import collections
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WARM_SHARE = 0.2  # share of the time in which memory may grow
MINUTE_S = 60.0
MAX_GROWTH = 0.02
MEMORY = ("resident_mb", "anonymous_mb")
COUNTS = ("threads", "fds", "tasks")
SPARE_FDS = 2  # above those at rest before the load, for files that first calls open
MAX_LISTED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Memory, threads, file descriptors and asyncio tasks of the server at one time; MB are 2^20 bytes."""

    at_s: float
    resident_mb: float
    anonymous_mb: float
    threads: int
    fds: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One second of one load generator."""

    at_s: float
    texts: int
    interactive_ms: Sequence[float]
    outcomes: dict[str, int]  # "kind CODE" -> number of calls
    unexpected: Sequence[str]
    in_progress: Sequence[str] = ()  # kinds of calls at the end of the second


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakRun:
    """The observations of one run of `duration_s` seconds.

    Attributes:
        samples: Samples during the load.
        reports: Reports of the load generators.
        at_rest: Samples before and after the load.
        load_failures: Load generators that crashed or did not end.
        same_vectors: True if the vectors of the known texts after the load equal those before it.
    """

    duration_s: float
    samples: Sequence[Sample]
    reports: Sequence[LoadReport]
    at_rest: tuple[Sample, Sample]
    load_failures: Sequence[str]
    same_vectors: bool

    @property
    def warm_s(self) -> float:
        """The time at which the warm-up ends."""
        return self.duration_s * WARM_SHARE

    @property
    def window_s(self) -> float:
        """The length of the first and last "minute" after the warm-up: at most a third of the time after it."""
        return min(MINUTE_S, (self.duration_s - self.warm_s) / 3)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the slope of y over x by least squares."""
    return float(statistics.linear_regression(x, y).slope)


def growth(run: SoakRun, name: str) -> dict[str, float]:
    """Returns the means of a figure in the first and last minute, its relative growth, and its slope per minute."""
    warm = [sample for sample in run.samples if sample.at_s >= run.warm_s]
    first = statistics.mean(getattr(sample, name) for sample in warm if sample.at_s < run.warm_s + run.window_s)
    last = statistics.mean(getattr(sample, name) for sample in warm if sample.at_s >= run.duration_s - run.window_s)
    per_minute = slope([sample.at_s / 60 for sample in warm], [getattr(sample, name) for sample in warm])
    minutes = (run.duration_s - run.warm_s) / 60
    return {
        "first_minute": first,
        "last_minute": last,
        "grown": last / first - 1,
        "slope_a_minute": per_minute,
        "grown_by_slope": per_minute * minutes / first,
    }


def latencies(run: SoakRun) -> dict[str, dict[str, float]]:
    """Returns the latency percentiles of interactive calls in the first and the last minute after the warm-up."""
    spans = {
        "first_minute": (run.warm_s, run.warm_s + run.window_s),
        "last_minute": (run.duration_s - run.window_s, run.duration_s),
    }
    percentiles = {}
    for name, (start_s, end_s) in spans.items():
        values = [ms for report in run.reports if start_s <= report.at_s < end_s for ms in report.interactive_ms]
        p50, p99 = np.percentile(values, [50, 99]) if values else (float("nan"), float("nan"))
        percentiles[name] = {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(values)}
    return percentiles


def failures(run: SoakRun) -> list[str]:
    """Returns a line for each failed condition."""
    failed = [*run.load_failures, *(line for report in run.reports for line in report.unexpected)]
    if not run.same_vectors:
        failed.append("the vectors of the known texts changed during the load")
    failed += [
        f"{name} grew by {share:.1%} after the warm-up, more than {MAX_GROWTH:.0%}"
        for name in MEMORY
        if (share := growth(run, name)["grown"]) > MAX_GROWTH
    ]
    before, after = run.at_rest
    if after.tasks > before.tasks:
        failed.append(f"{after.tasks} tasks at rest after the load, {before.tasks} before")
    if after.fds > before.fds + SPARE_FDS:
        failed.append(f"{after.fds} file descriptors at rest after the load, {before.fds} before")
    return failed


def assemble(run: SoakRun) -> dict[str, Any]:
    """Returns the report of a run."""
    outcomes: collections.Counter[str] = collections.Counter()
    for report in run.reports:
        outcomes.update(report.outcomes)
    codes: collections.Counter[str] = collections.Counter()
    for name, count in outcomes.items():
        codes[name.split()[1]] += count
    failed = failures(run)
    return {
        "passed": not failed,
        "failures": failed[:MAX_LISTED],
        "failure_count": len(failed),
        "texts_per_s": sum(report.texts for report in run.reports) / run.duration_s,
        "calls_per_s": outcomes.total() / run.duration_s,
        "calls": outcomes.total(),
        "codes": dict(codes.most_common()),
        "outcomes": dict(sorted(outcomes.items())),
        "interactive": latencies(run),
        "memory": {name: growth(run, name) for name in MEMORY},
        **{
            name: {
                "at_rest_before": getattr(run.at_rest[0], name),
                "at_rest_after": getattr(run.at_rest[1], name),
                "greatest": max(getattr(sample, name) for sample in run.samples),
            }
            for name in COUNTS
        },
        "same_vectors": run.same_vectors,
        "samples": [asdict(sample) for sample in run.samples],
    }
