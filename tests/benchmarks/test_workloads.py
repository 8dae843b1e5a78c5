import pytest

from benchmarks import workloads
from benchmarks.drivers import roofline
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize(
    ("name", "callers", "texts_per_call"), [("single", 64, 1), ("batch", 8, 32), ("trickle", 1, 1)]
)
def test_a_workload_has_the_documented_callers_and_texts(name: str, callers: int, texts_per_call: int) -> None:
    """The number of callers and of texts per call equal those of the documentation."""
    warm, measured = workloads.calls(WORKLOADS[name])
    assert WORKLOADS[name].callers == callers
    assert {len(call) for call in warm + measured} == {texts_per_call}
    assert (len(warm), len(measured)) == (WORKLOADS[name].warm_calls, WORKLOADS[name].calls)


def test_bulk_is_ten_thousand_texts() -> None:
    """The bulk workload measures 10,000 texts."""
    assert sum(map(len, workloads.calls(WORKLOADS["bulk"])[1])) == 10_000


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_texts_are_distinct(workload: workloads.Workload) -> None:
    """All texts of a workload differ, so that caches and coalescing of equal requests have no effect."""
    warm, measured = workloads.calls(workload)
    texts = [text for call in warm + measured for text in call]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= workload.max_chars


def test_texts_are_the_same_in_every_run() -> None:
    """Two runs generate the same texts."""
    assert workloads.texts(WORKLOADS["batch"], 500) == workloads.texts(WORKLOADS["batch"], 500)


def test_mixed_texts_differ_in_length() -> None:
    """Mixed texts include short queries and paragraphs: a tenth under 30 characters, a tenth over 180."""
    lengths = sorted(map(len, workloads.texts(WORKLOADS["batch"], 2_000)))
    assert lengths[200] < 30
    assert lengths[1_800] > 180


def test_operations_of_a_text_equal_a_calculation_by_hand() -> None:
    """One layer with hidden size two on three tokens has the operations of its matrix products."""
    config = {"model_type": "bert", "hidden_size": 2, "intermediate_size": 5, "num_hidden_layers": 1}
    linear = 2 * 3 * (4 * 2 * 2 + 2 * 2 * 5)
    attention = 2 * (2 * 3 * 3 * 2)
    assert roofline.flops_of_length(config, 3) == linear + attention
    assert roofline.flops_of_length(config | {"num_hidden_layers": 4}, 3) == 4 * (linear + attention)
    distilbert = {"model_type": "distilbert", "dim": 2, "hidden_dim": 5, "n_layers": 1}
    assert roofline.flops_of_length(distilbert, 3) == linear + attention


def test_latency_is_measured_for_a_single_caller_only() -> None:
    """With several callers in a closed loop, a latency is only the number of callers divided by the throughput."""
    assert [name for name, workload in WORKLOADS.items() if workload.measures_latency] == ["trickle"]
