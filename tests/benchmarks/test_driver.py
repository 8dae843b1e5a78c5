import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.__main__ import parser
from benchmarks.drivers import driver
from benchmarks.measure import Pinning, percentile
from benchmarks.systems import SYSTEMS


async def test_each_request_is_sent_once_with_one_call_in_flight_per_caller() -> None:
    """The callers share the requests, and each caller has one call in flight."""
    sent: list[str] = []
    in_flight = most = 0

    async def call(request: str) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        sent.append(request)
        in_flight -= 1

    result = await driver.run_closed_loop(call, [(2, name) for name in "abcdefgh"], 3, limit_s=60)
    assert sorted(sent) == list("abcdefgh")
    assert (most, result.texts, len(result.latencies_ms), result.errors) == (3, 16, 8, 0)


async def test_a_failed_call_counts_as_an_error_only() -> None:
    """A failed call adds no texts and no latency; the result has the message of the first error."""

    async def call(request: int) -> None:
        if request % 2:
            raise RuntimeError(f"call {request}")

    result = await driver.run_closed_loop(call, [(1, number) for number in range(6)], 1, limit_s=60)
    assert (result.texts, len(result.latencies_ms), result.errors) == (3, 3, 3)
    assert result.first_error == "RuntimeError: call 1"


async def test_no_call_starts_after_the_time_limit() -> None:
    """A run that has used up its time starts no further calls."""
    sent: list[int] = []

    async def call(request: int) -> None:
        sent.append(request)

    result = await driver.run_closed_loop(call, [(1, 1)], 1, limit_s=-1)
    assert (sent, result.texts) == ([], 0)


async def test_a_blocking_library_serves_one_call_at_a_time() -> None:
    """The number of callers does not change the calls of a blocking library; its vectors are the rows it returns."""
    batches: list[list[str]] = []

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        batches.append(list(texts))
        return np.asarray([[len(text)] for text in texts], np.float32)

    library = driver.BlockingLibraryDriver(encode)
    library.prepare([["a"], ["bb", "c"]], callers=8)
    result = await library.run(limit_s=60)
    assert (result.texts, result.errors, batches) == (3, 0, [["a"], ["bb", "c"]])
    assert await library.vectors(["aaa", "b"]) == [[3.0], [1.0]]


@pytest.mark.parametrize(("share", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0)])
def test_a_percentile_is_one_of_the_values(share: int, expected: float) -> None:
    """Of the values 1 to 100, the n-th percentile is n."""
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


@pytest.mark.parametrize(("cores", "threads"), [("1", 1), ("0,1", 2), ("2-5", 4), ("0,4-6", 4)])
def test_a_system_has_one_thread_per_core(cores: str, threads: int) -> None:
    """The number of threads is the number of cores that the system is pinned to."""
    pinning = Pinning(server_cores=cores)
    assert pinning.threads == threads
    assert pinning.variables()["OMP_NUM_THREADS"] == str(threads)


def test_the_command_line_accepts_the_documented_systems() -> None:
    """The documented names of systems are accepted, others refused."""
    named = "isogloss-bf16 isogloss-f32 infinity-torch infinity-onnx fastembed sentence-transformers naive"
    assert set(named.split()) <= set(SYSTEMS)
    assert parser().parse_args(["--systems", "naive,fastembed"]).systems == ["naive", "fastembed"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--systems", "nonesuch"])
