from dataclasses import replace
from typing import Any

import pytest

from benchmarks import cancelled, soak_report
from benchmarks.soak_report import Sample, Soak, Told

REST = Sample(at_s=0.0, resident_mb=500.0, anonymous_mb=400.0, threads=18, fds=24, tasks=8)


def sample(at_s: float, **figures: Any) -> Sample:
    return replace(REST, at_s=at_s, **figures)


def told(at_s: float, **figures: Any) -> Told:
    return Told(**{"at_s": at_s, "texts": 0, "interactive_ms": [], "ends": {}, "unexpected": [], **figures})


def soak(**figures: Any) -> Soak:
    """Ten minutes in which nothing grows and nothing is lost, but for what is given."""
    quiet = {
        "wanted_s": 600.0,
        "samples": [sample(float(at_s)) for at_s in range(0, 600, 2)],
        "told": [],
        "rests": (REST, REST),
        "crashes": [],
        "same_vectors": True,
    }
    return Soak(**{**quiet, **figures})


def growing(mb_a_minute: float) -> list[Sample]:
    """Memory that jumps in the warm-up, and then grows steadily."""
    return [
        sample(float(at_s), resident_mb=(300.0 if at_s < 60 else 500.0) + mb_a_minute * at_s / 60)
        for at_s in range(0, 600, 2)
    ]


def test_growth_leaves_the_warm_up_out() -> None:
    """Memory that comes with the first calls is not growth, and a slope is told as what it is."""
    grown = soak_report.growth(soak(samples=growing(5.0)), "resident_mb")
    assert grown["slope_a_minute"] == pytest.approx(5.0)
    assert grown["first_minute"] == pytest.approx(500 + 5 * 2.5, abs=0.2)  # minutes 2 to 3
    assert grown["last_minute"] == pytest.approx(500 + 5 * 9.5, abs=0.2)  # minutes 9 to 10
    assert grown["grown"] == pytest.approx(35 / 512.5, abs=1e-3)
    assert grown["grown_by_slope"] == pytest.approx(40 / 512.5, abs=1e-3)


def test_a_short_soak_compares_thirds() -> None:
    """Where there are no three minutes after the warm-up, a third of the time stands for each."""
    assert soak(wanted_s=120.0).window_s == pytest.approx(32.0)
    assert soak().window_s == 60.0


def test_latencies_are_of_the_first_and_the_last_minute() -> None:
    """An interactive call counts in the minute that it ended in, and one of the warm-up in none."""
    calls = [(60.0, 900.0), (130.0, 10.0), (300.0, 500.0), (560.0, 30.0), (599.0, 50.0)]
    found = soak_report.latencies(soak(told=[told(at_s, interactive_ms=[ms]) for at_s, ms in calls]))
    assert (found["first_minute"]["p50_ms"], found["first_minute"]["calls"]) == (10.0, 1)
    assert (found["last_minute"]["p50_ms"], found["last_minute"]["calls"]) == (40.0, 2)


def test_a_quiet_soak_held() -> None:
    """What grows by no more than the limit, and loses nothing, has held, with its rates over the whole time."""
    ends = {"interactive OK": 40, "late OK": 5, "late DEADLINE_EXCEEDED": 15}
    report = soak_report.assemble(
        soak(samples=growing(1.0), told=[told(1.0, texts=1200, ends=ends), told(2.0, ends={"late OK": 540})])
    )
    assert report["held"], report["failures"]
    assert (report["texts_per_s"], report["calls_per_s"]) == (2.0, 1.0)
    assert report["codes"] == {"OK": 585, "DEADLINE_EXCEEDED": 15}
    assert report["ends"]["late OK"] == 545


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"samples": growing(2.0)}, "resident_mb grew by 2.8%"),
        ({"told": [told(1.0, unexpected=["interactive INTERNAL: fault"])]}, "interactive INTERNAL"),
        ({"crashes": ["a process of the load ended with status 1"]}, "status 1"),
        ({"same_vectors": False}, "vectors"),
        ({"rests": (REST, replace(REST, tasks=9))}, "9 tasks are left"),
        ({"rests": (REST, replace(REST, fds=27))}, "27 file descriptors are left"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_did_not_hold_is_named(figures: dict[str, Any], says: str) -> None:
    """Each thing that must hold fails the soak by itself, and the report says which it was."""
    report = soak_report.assemble(soak(**figures))
    assert not report["held"]
    [failure] = report["failures"]
    assert says in failure


def test_what_a_call_leaves_is_the_slope_over_the_blocks() -> None:
    """A leak of some bytes a call shows as such, whatever was there before, and so do tasks that stay."""
    still = {"python_blocks": 10, "python_objects": 10, "anonymous_kb": 100, "fds": 20, "threads": 5}
    readings = [{"c_bytes": 1e8 + 96 * 4_000 * block, "tasks": 8 + block, **still} for block in range(4)]
    left = cancelled.left_behind(readings, 4_000)
    assert left["c_bytes_per_call"] == pytest.approx(96)
    assert (left["python_blocks_per_call"], left["anonymous_bytes_per_call"]) == (0, 0)
    assert (left["tasks_grown"], left["fds_grown"]) == (3, 0)
