import pytest

from benchmarks import models
from benchmarks.compare import Comparison, Plan, assemble
from benchmarks.measure import Pinning
from benchmarks.workloads import WORKLOADS
from tests.support import shapes

FIGURES = ("texts_per_s", "texts_per_cpu_s", "p50_ms", "p99_ms", "rss_mb", "startup_s", "errors")
SYSTEMS = ("isogloss-bf16", "infinity-onnx", "naive")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = shapes.write(tmp_path_factory.mktemp("small"), shapes.SMALL)
    return Plan(
        workload=WORKLOADS["trickle"],
        model=models.Model("small", folder),
        systems=SYSTEMS,
        rounds=2,
        pinning=Pinning(),
        limit_s=1.0,
    )


def two_rounds(plan: Plan) -> Comparison:
    """Returns a comparison of two rounds in which every figure is 1 and `naive` failed in the second."""
    comparison = Comparison(plan)
    complete = {name: dict.fromkeys(FIGURES, 1.0) for name in SYSTEMS}
    comparison.rounds = [complete, {name: figures for name, figures in complete.items() if name != "naive"}]
    comparison.peaks = [{"f32": 1.0, "bf16": 2.0}] * 2
    comparison.vectors = {name: [[1.0, 0.0]] for name in SYSTEMS}
    comparison.absent = {"naive": "it ended"}
    return comparison


def test_the_report_excludes_a_system_that_failed_once(plan: Plan) -> None:
    """The report has the documented keys and names a failed system under `absent` only."""
    report = assemble(plan, two_rounds(plan))
    assert (report["work"], report["model"], report["rounds"]) == ("trickle", "small", 2)
    assert list(report["systems"]) == ["isogloss-bf16", "infinity-onnx"]
    assert all(set(FIGURES) <= set(figures) for figures in report["systems"].values())
    assert report["ratios"] == {"isogloss-bf16/infinity-onnx": {"median": 1.0, "min": 1.0, "max": 1.0}}
    assert report["absent"] == {"naive": "it ended"}
    shares = report["roofline"]["shares"]
    assert report["roofline_share"] == shares["isogloss-bf16"] == pytest.approx(shares["infinity-onnx"] / 2)


def test_a_system_with_different_vectors_ends_the_comparison(plan: Plan) -> None:
    """The error names the system whose vectors differ."""
    comparison = two_rounds(plan)
    comparison.vectors["infinity-onnx"] = [[1.0, 1.0]]
    with pytest.raises(SystemExit, match="infinity-onnx"):
        assemble(plan, comparison)
