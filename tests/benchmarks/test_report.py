import math

import pytest

from benchmarks import report

# Two rounds of two systems; in the second round the machine runs at half the speed.
ROUNDS = [
    {
        "isogloss-bf16": {"texts_per_s": 900.0, "texts_per_cpu_s": 1000.0, "p50_ms": 2.0, "errors": 1},
        "infinity-onnx": {"texts_per_s": 300.0, "texts_per_cpu_s": 250.0, "p50_ms": 8.0, "errors": 0},
    },
    {
        "isogloss-bf16": {"texts_per_s": 450.0, "texts_per_cpu_s": 500.0, "p50_ms": 4.0, "errors": 2},
        "infinity-onnx": {"texts_per_s": 150.0, "texts_per_cpu_s": 100.0, "p50_ms": 20.0, "errors": 0},
    },
]
PEAKS = [{"f32": 200.0, "bf16": 400.0}, {"f32": 100.0, "bf16": 250.0}]


def test_figures_are_medians_over_the_rounds() -> None:
    """A figure is its median over the rounds; errors are added."""
    figures = report.figures(ROUNDS)
    assert figures["infinity-onnx"] == {"texts_per_s": 225.0, "texts_per_cpu_s": 175.0, "p50_ms": 14.0, "errors": 0}
    assert figures["isogloss-bf16"]["errors"] == 3


def test_ratios_are_computed_within_a_round() -> None:
    """A ratio divides figures of one round before the median, so that a slow round cancels out."""
    assert report.ratios(ROUNDS, "texts_per_cpu_s") == {
        "isogloss-bf16/infinity-onnx": {"median": 4.5, "min": 4.0, "max": 5.0}
    }


def test_the_share_of_the_roofline_uses_the_peak_of_its_round() -> None:
    """Operations per CPU second are divided by the peak rate of the same round in the system's precision."""
    shares = report.shares(ROUNDS, PEAKS, flops_per_text=2e8)
    assert shares == pytest.approx({"isogloss-bf16": (0.5 + 0.4) / 2, "infinity-onnx": (0.25 + 0.2) / 2})
    assert report.isogloss_share(shares) == shares["isogloss-bf16"]
    assert report.isogloss_share({"infinity-onnx": 0.2}) is None


def test_agreement_is_the_lowest_cosine_to_the_reference() -> None:
    """A single text with a different vector lowers the agreement; the lengths of the vectors do not matter."""
    vectors = {
        "isogloss-bf16": [[2.0, 0.0], [1.0, 1.0]],
        "sentence-transformers": [[1.0, 0.0], [1.0, 0.0]],
    }
    assert report.agreement(vectors) == pytest.approx({"isogloss-bf16": math.sqrt(0.5), "sentence-transformers": 1.0})


def test_the_table_lists_absent_systems_with_their_reason() -> None:
    """A system that did not run has a row with the reason."""
    systems = {
        "naive": dict.fromkeys(("texts_per_s", "texts_per_cpu_s", "p50_ms", "p99_ms", "rss_mb", "startup_s"), 1.5)
    }
    systems["naive"]["errors"] = 0
    table = report.table({"systems": systems, "absent": {"fastembed": "no such file"}})
    assert "| naive | 2 | 2 | 1.5 | 1.5 | 2 | 1.5 | 0 |" in table
    assert "| fastembed | absent: no such file |" in table


def test_latencies_are_omitted_if_the_workload_does_not_measure_them() -> None:
    """The table has no columns, and the report no ratios, for figures that the samples do not have."""
    systems = {"naive": {"texts_per_s": 2.0, "texts_per_cpu_s": 2.0, "rss_mb": 1.0, "startup_s": 1.0, "errors": 0}}
    assert "ms" not in report.table({"systems": systems, "absent": {}})
    assert report.ratios(ROUNDS, "p99_ms") == {}
