from dataclasses import replace
from typing import Any

import pytest

from benchmarks import cancelled, soak_report
from benchmarks.soak_report import LoadReport, Sample, SoakRun

REST = Sample(at_s=0.0, resident_mb=500.0, anonymous_mb=400.0, threads=18, fds=24, tasks=8)


def sample(at_s: float, **figures: Any) -> Sample:
    return replace(REST, at_s=at_s, **figures)


def load_report(at_s: float, **figures: Any) -> LoadReport:
    return LoadReport(**{"at_s": at_s, "texts": 0, "interactive_ms": [], "outcomes": {}, "unexpected": [], **figures})


def soak_run(**figures: Any) -> SoakRun:
    """Returns a run of ten minutes without growth and failures, except for the given figures."""
    passing = {
        "duration_s": 600.0,
        "samples": [sample(float(at_s)) for at_s in range(0, 600, 2)],
        "reports": [],
        "at_rest": (REST, REST),
        "load_failures": [],
        "same_vectors": True,
    }
    return SoakRun(**{**passing, **figures})


def growing(mb_a_minute: float) -> list[Sample]:
    """Returns samples of memory that jumps in the warm-up and then grows linearly."""
    return [
        sample(float(at_s), resident_mb=(300.0 if at_s < 60 else 500.0) + mb_a_minute * at_s / 60)
        for at_s in range(0, 600, 2)
    ]


def test_growth_excludes_the_warm_up() -> None:
    """Memory of the first calls does not count as growth; later growth has its slope."""
    grown = soak_report.growth(soak_run(samples=growing(5.0)), "resident_mb")
    assert grown["slope_a_minute"] == pytest.approx(5.0)
    assert grown["first_minute"] == pytest.approx(500 + 5 * 2.5, abs=0.2)  # minutes 2 to 3
    assert grown["last_minute"] == pytest.approx(500 + 5 * 9.5, abs=0.2)  # minutes 9 to 10
    assert grown["grown"] == pytest.approx(35 / 512.5, abs=1e-3)
    assert grown["grown_by_slope"] == pytest.approx(40 / 512.5, abs=1e-3)


def test_a_short_run_compares_thirds() -> None:
    """With under three minutes after the warm-up, the windows are a third of that time."""
    assert soak_run(duration_s=120.0).window_s == pytest.approx(32.0)
    assert soak_run().window_s == 60.0


def test_latencies_are_of_the_first_and_the_last_minute() -> None:
    """An interactive call counts in the minute of its end; calls of the warm-up do not count."""
    calls = [(60.0, 900.0), (130.0, 10.0), (300.0, 500.0), (560.0, 30.0), (599.0, 50.0)]
    reports = [load_report(at_s, interactive_ms=[ms]) for at_s, ms in calls]
    latencies = soak_report.latencies(soak_run(reports=reports))
    assert (latencies["first_minute"]["p50_ms"], latencies["first_minute"]["calls"]) == (10.0, 1)
    assert (latencies["last_minute"]["p50_ms"], latencies["last_minute"]["calls"]) == (40.0, 2)


def test_a_run_within_the_limits_passes() -> None:
    """Growth below the limit passes; rates are over the whole duration."""
    outcomes = {"interactive OK": 40, "late OK": 5, "late DEADLINE_EXCEEDED": 15}
    report = soak_report.assemble(
        soak_run(
            samples=growing(1.0),
            reports=[load_report(1.0, texts=1200, outcomes=outcomes), load_report(2.0, outcomes={"late OK": 540})],
        )
    )
    assert report["passed"], report["failures"]
    assert (report["texts_per_s"], report["calls_per_s"]) == (2.0, 1.0)
    assert report["codes"] == {"OK": 585, "DEADLINE_EXCEEDED": 15}
    assert report["outcomes"]["late OK"] == 545


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"samples": growing(2.0)}, "resident_mb grew by 2.8%"),
        ({"reports": [load_report(1.0, unexpected=["interactive INTERNAL: fault"])]}, "interactive INTERNAL"),
        ({"load_failures": ["a load generator ended with status 1"]}, "status 1"),
        ({"same_vectors": False}, "vectors"),
        ({"at_rest": (REST, replace(REST, tasks=9))}, "9 tasks at rest after the load"),
        ({"at_rest": (REST, replace(REST, fds=27))}, "27 file descriptors at rest after the load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_report_names_the_failed_condition(figures: dict[str, Any], message: str) -> None:
    """Each condition alone fails the run, and the report names it."""
    report = soak_report.assemble(soak_run(**figures))
    assert not report["passed"]
    [failure] = report["failures"]
    assert message in failure


def test_the_leak_per_call_is_the_slope_over_the_blocks() -> None:
    """The leak per call does not depend on the memory before the first block; remaining tasks count as growth."""
    constant = {"python_blocks": 10, "python_objects": 10, "anonymous_kb": 100, "fds": 20, "threads": 5}
    readings = [{"c_bytes": 1e8 + 96 * 4_000 * block, "tasks": 8 + block, **constant} for block in range(4)]
    leaks = cancelled.leaks(readings, 4_000)
    assert leaks["c_bytes_per_call"] == pytest.approx(96)
    assert (leaks["python_blocks_per_call"], leaks["anonymous_bytes_per_call"]) == (0, 0)
    assert (leaks["tasks_grown"], leaks["fds_grown"]) == (3, 0)
