import pytest

from benchmarks import flops, workloads
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize(
    ("name", "callers", "texts_per_call"), [("single", 64, 1), ("batch", 8, 32), ("trickle", 1, 1)]
)
def test_a_work_has_its_callers_and_texts(name: str, callers: int, texts_per_call: int) -> None:
    """The works are those that the documentation says, in callers and in texts of every call."""
    warm, timed = workloads.calls(WORKLOADS[name])
    assert WORKLOADS[name].callers == callers
    assert {len(call) for call in warm + timed} == {texts_per_call}
    assert (len(warm), len(timed)) == (WORKLOADS[name].warm_calls, WORKLOADS[name].calls)


def test_bulk_is_ten_thousand_texts() -> None:
    """The bulk work times 10,000 texts."""
    assert sum(map(len, workloads.calls(WORKLOADS["bulk"])[1])) == 10_000


@pytest.mark.parametrize("work", WORKLOADS.values(), ids=WORKLOADS)
def test_no_text_comes_twice(work: workloads.Workload) -> None:
    """Neither a cache nor a merge of equal texts can answer for a model: all texts of a work differ."""
    warm, timed = workloads.calls(work)
    texts = [text for call in warm + timed for text in call]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= work.max_chars


def test_texts_are_the_same_in_every_run() -> None:
    """Two runs measure the same texts."""
    assert workloads.texts(WORKLOADS["batch"], 500) == workloads.texts(WORKLOADS["batch"], 500)


def test_mixed_texts_differ_in_length() -> None:
    """The mixed works hold short queries and paragraphs: a tenth under 30 characters, a tenth over 180."""
    lengths = sorted(map(len, workloads.texts(WORKLOADS["batch"], 2_000)))
    assert lengths[200] < 30
    assert lengths[1_800] > 180


def test_operations_of_a_text_grow_as_the_products_do() -> None:
    """One layer of two-dimensional states on three tokens: the products written out by hand."""
    config = {"model_type": "bert", "hidden_size": 2, "intermediate_size": 5, "num_hidden_layers": 1}
    linear = 2 * 3 * (4 * 2 * 2 + 2 * 2 * 5)
    attention = 2 * (2 * 3 * 3 * 2)
    assert flops.of_length(config, 3) == linear + attention
    assert flops.of_length(config | {"num_hidden_layers": 4}, 3) == 4 * (linear + attention)
    distilbert = {"model_type": "distilbert", "dim": 2, "hidden_dim": 5, "n_layers": 1}
    assert flops.of_length(distilbert, 3) == linear + attention
