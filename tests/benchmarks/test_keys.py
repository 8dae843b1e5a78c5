import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import keys
from benchmarks.drivers import keys as driver
from benchmarks.drivers.soak_calls import SERVICE


def measured(p50_ms: float, p99_ms: float, **outcomes: int) -> dict[str, Any]:
    return {"p50_ms": p50_ms, "p99_ms": p99_ms, "calls": outcomes.get("OK", 0), "outcomes": outcomes}


@asynccontextmanager
async def recording_server(received: list[tuple[str, int]]) -> AsyncIterator[str]:
    """Runs a gRPC server that records the authorization and the texts of each Embed, and refuses single texts."""

    async def embed(request: bytes, context: Any) -> bytes:
        texts = len(pb.EmbedRequest.FromString(request).texts)
        received.append((dict(context.invocation_metadata())["authorization"], texts))
        if texts == 1:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED)
        return b""

    server = grpc.aio.server()
    methods = {"Embed": grpc.unary_unary_rpc_method_handler(embed)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("arguments", "texts", "outcome"),
    [
        (("capacity", "0.1"), driver.TEXTS_PER_CALL, None),
        (("quiet", "0.2", "4000", "8"), 8, "OK"),
        (("quiet", "0.2", "500", "1"), 1, "RESOURCE_EXHAUSTED"),
    ],
)
async def test_each_call_has_the_key_and_the_texts(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    texts: int,
    outcome: str | None,
) -> None:
    """The driver sends its key as a bearer token with every call, and counts the outcomes."""
    monkeypatch.setenv(driver.KEY_VARIABLE, "k-1")
    received: list[tuple[str, int]] = []
    async with recording_server(received) as address:
        await driver.main(address, *arguments)
    assert set(received) == {("Bearer k-1", texts)}
    if outcome:
        assert f'"{outcome}": {len(received)}' in capsys.readouterr().out


async def test_the_greedy_caller_reports_its_calls_when_it_is_stopped() -> None:
    """An open loop without an end returns its figures when it is cancelled; calls in flight do not count."""
    began = asyncio.Event()

    async def embed(message: bytes) -> None:
        if message == b"never":
            began.set()
            await asyncio.Event().wait()

    running = asyncio.ensure_future(driver.open_loop([embed], [b"now", b"now", b"never"], 1000.0, float("inf")))
    await began.wait()
    running.cancel()
    figures = await running
    assert figures["outcomes"]["OK"] == figures["calls"] >= 2


def test_ratios_are_those_of_the_same_round() -> None:
    """Latencies are relative to those alone, and refused calls lower the share of the answered ones."""
    alone, beside = {"calls": measured(10.0, 20.0, OK=9)}, {"calls": measured(15.0, 30.0, OK=3, UNAVAILABLE=1)}
    figures = keys.compared(alone, beside)
    assert (figures["calls_p50_ratio"], figures["calls_p99_ratio"]) == (1.5, 1.5)
    assert figures["calls_answered_share"] == 0.75


def test_the_report_adds_the_failed_calls_of_all_rounds() -> None:
    """Figures are spreads over the rounds; failed calls are sums by caller."""
    failed = keys.failed({"quiet calls": measured(1, 1, OK=3), "greedy": measured(1, 1, OK=1, UNAVAILABLE=2)})
    report = keys.assemble([{"figures": {"best": best}, "failed": failed} for best in (1.0, 3.0)])
    assert report["failed"] == {"greedy UNAVAILABLE": 4}
    assert report["figures"]["best"] == {"median": 2.0, "min": 1.0, "max": 3.0}
