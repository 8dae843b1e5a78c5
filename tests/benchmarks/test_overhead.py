"""The `overhead` workload: its report, and the calls of its load generator."""

from typing import Any

import pytest
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import overhead
from benchmarks.drivers import overhead as driver


def pair(on: float) -> dict[str, float]:
    """Returns the processor times of one pair, of which those of the switched-on server differ."""
    return {f"{kind}_{name}": on if name == "on" else 10.0 for kind in overhead.KINDS for name in ("off", "on")}


def test_ratios_are_within_pairs() -> None:
    """A pair on a slow moment counts like any other one."""
    report = overhead.assemble([pair(11.0), pair(12.0), {name: 5 * value for name, value in pair(10.0).items()}])
    assert report["pairs"] == 3
    assert report["ratios"]["singles"]["median"] == pytest.approx(1.1)
    assert report["figures"]["calls_on_cpu_us"]["max"] == 50.0


async def test_a_closed_loop_counts_its_calls() -> None:
    """Each caller makes at least one call, and calls at the same time have different texts."""
    sent: list[bytes] = []

    async def embed(message: bytes) -> Any:
        sent.append(message)

    requests = driver.messages(2)
    assert await driver.closed_loop(embed, requests, 0.001) == len(sent) >= driver.CALLERS
    assert len({*sent[: driver.CALLERS]}) == driver.CALLERS
    assert len(pb.EmbedRequest.FromString(requests[0]).texts) == 2
