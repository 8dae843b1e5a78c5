import asyncio

import pytest

from benchmarks.__main__ import parser
from benchmarks.drivers import driver
from benchmarks.measure import Pinning, percentile
from benchmarks.systems import SYSTEMS


async def test_callers_make_each_call_once_and_so_many_at_a_time() -> None:
    """Every call is made once, and as many are in flight as there are callers."""
    made: list[str] = []
    in_flight = most = 0

    async def call(one: str) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        made.append(one)
        in_flight -= 1

    outcome = await driver.take_turns(call, [(2, name) for name in "abcdefgh"], 3, limit_s=60)
    assert sorted(made) == list("abcdefgh")
    assert (most, outcome.texts, len(outcome.latencies_ms), outcome.errors) == (3, 16, 8, 0)


async def test_a_failed_call_is_counted_and_is_no_text() -> None:
    """A call that fails counts as an error, with the first one's words, and neither as texts nor in the latencies."""

    async def call(one: int) -> None:
        if one % 2:
            raise RuntimeError(f"call {one}")

    outcome = await driver.take_turns(call, [(1, number) for number in range(6)], 1, limit_s=60)
    assert (outcome.texts, len(outcome.latencies_ms), outcome.errors) == (3, 3, 3)
    assert outcome.first_error == "RuntimeError: call 1"


async def test_no_call_starts_past_the_limit() -> None:
    """A load that has used up its time starts no further calls."""
    made: list[int] = []

    async def call(one: int) -> None:
        made.append(one)

    outcome = await driver.take_turns(call, [(1, 1)], 1, limit_s=-1)
    assert (made, outcome.texts) == ([], 0)


@pytest.mark.parametrize(("share", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(share: int, expected: float) -> None:
    """Of the values 1 to 100, the n-th percentile is n."""
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


@pytest.mark.parametrize(("cores", "threads"), [("1", 1), ("0,1", 2), ("2-5", 4), ("0,4-6", 4)])
def test_a_system_gets_a_thread_for_each_core(cores: str, threads: int) -> None:
    """The threads of a system are counted from the cores that it is pinned to."""
    pinning = Pinning(server_cores=cores)
    assert pinning.threads == threads
    assert pinning.variables()["OMP_NUM_THREADS"] == str(threads)


def test_all_systems_of_the_comparison_are_there() -> None:
    """The systems have the names under which reports are compared."""
    named = "isogloss-bf16 isogloss-f32 infinity-torch infinity-onnx fastembed sentence-transformers naive"
    assert set(named.split()) <= set(SYSTEMS)
    assert parser().parse_args(["--systems", "naive,fastembed"]).systems == ["naive", "fastembed"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--systems", "nonesuch"])
