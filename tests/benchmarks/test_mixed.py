import asyncio
import collections
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import mixed
from benchmarks.drivers import hostile, soak
from benchmarks.drivers import mixed as mixed_driver
from benchmarks.drivers.soak_calls import SERVICE
from tests.support.raw_http2 import INITIAL_WINDOW_SIZE

REQUEST = pb.EmbedRequest(texts=["a" * 300_000]).SerializeToString()  # more than the window of a new connection


def measured(p99_ms: float, max_ms: float, **outcomes: int) -> dict[str, Any]:
    """Returns the figures of a phase in which queries and Health have the same latencies."""
    latencies = {"p50_ms": 1.0, "p99_ms": p99_ms, "max_ms": max_ms, "calls": outcomes.get("OK", 0)}
    return {name: {"outcomes": outcomes, **latencies} for name in ("queries", "health")}


def round_of(answered_share: float, **counts: int) -> dict[str, Any]:
    return {"figures": {"answered_share": answered_share}, "refused": counts, "outcomes": {"burst": counts}}


@asynccontextmanager
async def recording_server() -> AsyncIterator[tuple[str, "asyncio.Queue[bytes]"]]:
    """Runs a gRPC server that records the requests of Embed; its responses are larger than a window."""
    requests: asyncio.Queue[bytes] = asyncio.Queue()

    async def embed(request: bytes, _context: Any) -> bytes:
        requests.put_nowait(request)
        return bytes(1_000_000)

    server = grpc.aio.server()
    methods = {"Embed": grpc.unary_unary_rpc_method_handler(embed)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", requests
    finally:
        await server.stop(None)


async def test_a_raw_request_arrives_whole_and_its_response_is_not_read() -> None:
    """A request larger than the window is sent as the server widens it; the call stays open without more of our own."""
    async with recording_server() as (address, requests), hostile.RawConnection.opened(address) as connection:
        await connection.request(1, "Embed", REQUEST)
        assert await requests.get() == REQUEST
        assert connection.outcomes() == {hostile.OPEN: 1}


async def test_an_unfinished_request_never_reaches_the_method() -> None:
    """A request that announces more bytes than it sends waits, while a later one on the connection is received."""
    async with recording_server() as (address, requests), hostile.RawConnection.opened(address) as connection:
        await connection.request(1, "Embed", b"part", length=1_000)
        await connection.request(3, "Embed", REQUEST)
        assert await requests.get() == REQUEST
        assert requests.empty()


async def test_calls_of_a_lost_connection_are_closed() -> None:
    """When the server has gone, a request ends instead of waiting for the window, and counts as closed."""
    async with recording_server() as (address, requests):
        opened = hostile.RawConnection.opened(address)
        connection = await opened.__aenter__()
        await connection.request(1, "Embed", REQUEST)
        await requests.get()
    try:
        await connection.request(3, "Embed", bytes(10_000_000))
        assert connection.outcomes()[hostile.OPEN] == 0
    finally:
        await opened.__aexit__(None, None, None)


def test_the_settings_of_a_frame_are_read_by_identifier() -> None:
    """A SETTINGS frame has six bytes for each setting."""
    payload = bytes.fromhex("0003 000003e8 0004 00100000")
    assert hostile.settings_of(payload) == {3: 1_000, INITIAL_WINDOW_SIZE: 1 << 20}


async def test_an_outcome_has_the_code_and_the_reason() -> None:
    """A successful call is OK; a failed one has its status code, without a reason if the server sent none."""
    async with recording_server() as (address, _), grpc.aio.insecure_channel(address) as channel:
        assert await hostile.outcome(channel.unary_unary(f"/{SERVICE}/Embed")(b"")) == "OK"
        assert await hostile.outcome(channel.unary_unary(f"/{SERVICE}/Unknown")(b"")) == "UNIMPLEMENTED"


def test_the_soak_has_each_hostile_kind_of_the_mixed_workload() -> None:
    """A hostile kind is in both workloads, so that the limit of memory growth applies to it."""
    assert set(mixed_driver.HOSTILE) <= {kind.make.__name__ for kind in soak.KINDS}


async def test_a_kind_with_several_calls_counts_each_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The soak counts each call of a burst, and reports the codes that the kind may not return, once each."""

    async def burst(_context: Any) -> hostile.Outcomes:
        return hostile.Outcomes({"OK": 7, "RESOURCE_EXHAUSTED OVERLOADED": 2, "CANCELLED": 1})

    context: Any = type("Context", (), {"embedded_texts": 0, "interactive_ms": []})()
    counters = soak.Counters(context)
    await counters.call(soak.Kind(1, burst, soak.LARGE))
    counters.report()
    printed = capsys.readouterr().out
    assert '"burst OK": 7, "burst RESOURCE_EXHAUSTED OVERLOADED": 2, "burst CANCELLED": 1' in printed
    assert '"unexpected": ["burst CANCELLED: "]' in printed


def test_joined_sentences_have_the_length() -> None:
    """A paragraph has exactly its number of characters; two paragraphs of one generator differ."""
    rng = random.Random(0)
    first, second = (mixed_driver.joined(["One sentence.", "Another one."], 2_000, rng) for _ in range(2))
    assert (len(first), len(second)) == (2_000, 2_000)
    assert first != second


def test_half_of_the_compared_rows_are_equal_and_the_others_nearly() -> None:
    """The nearly equal rows are different in float32, by less than a thousandth."""
    rows = mixed_driver.nearly_equal_rows(10, 4, np.random.default_rng(0))
    assert (rows[:5] == 1).all()
    assert (rows[5:, 0] > 1).all()
    assert np.allclose(rows, 1, atol=1e-3)


def test_ratios_are_those_of_the_same_round() -> None:
    """Failed queries lower the share; p99 and the greatest Health latency are relative to the quiet phase."""
    figures = mixed.compared(measured(10.0, 20.0, OK=50), measured(25.0, 80.0, OK=30, CANCELLED=10))
    assert (figures["answered_share"], figures["quiet_answered_share"]) == (0.75, 1.0)
    assert (figures["p99_ratio"], figures["health_max_ratio"]) == (2.5, 4.0)


def test_the_report_adds_the_calls_of_all_rounds() -> None:
    """Figures are spreads over the rounds; failed calls and outcomes are sums."""
    report = mixed.assemble([round_of(1.0, CANCELLED=1), round_of(0.5, CANCELLED=2, UNAVAILABLE=4)])
    assert report["figures"]["answered_share"] == {"median": 0.75, "min": 0.5, "max": 1.0}
    assert report["refused"] == {"UNAVAILABLE": 4, "CANCELLED": 3}
    assert collections.Counter(report["outcomes"]["burst"]) == {"UNAVAILABLE": 4, "CANCELLED": 3}


def test_memory_is_reported_by_kind() -> None:
    """Each kind of memory has its values before, at most and after, and their ratio."""
    figures = mixed.grown({"resident": 400.0}, {"resident": 900.0}, {"resident": 440.0})
    assert figures == {
        "resident_before_mb": 400.0,
        "resident_greatest_mb": 900.0,
        "resident_after_mb": 440.0,
        "resident_after_ratio": 1.1,
    }
