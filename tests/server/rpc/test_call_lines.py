"""The line of each call in the log: who called, what it cost, how it ended."""

import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import logs

from tests.support.in_process import CountingEmbedder, ready_registry, serving

FIELDS = {
    "method": "Embed",
    "code": "OK",
    "reason": "",
    "texts": 2,
    "tokens": 6,
    "model": "test",
    "priority": "interactive",
    "caller": "",
    "request_id": "id-1",
    "trace_id": "",
}
STAGES = ["queue_ms", "tokenization_ms", "inference_ms"]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Returns a function that returns the fields of the lines of calls so far."""
    caplog.set_level(logging.INFO)
    return lambda: [record.fields for record in caplog.records if record.name == "isogloss_server.access"]  # type: ignore[attr-defined]


async def test_a_line_has_the_caller_the_work_and_the_end_of_the_call(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """The line of a call has its fields; times of all stages are numbers."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["one", "two"]), metadata=(("x-request-id", "id-1"),))
    [line] = lines()
    assert {name: line[name] for name in FIELDS} == FIELDS
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["user_agent"].startswith("grpc-python-asyncio/")
    assert all(line[stage] >= 0 for stage in STAGES)
    assert sum(line[stage] for stage in STAGES) <= line["ms"]
    assert set(line) == {*FIELDS, *STAGES, "ms", "peer", "user_agent"}


async def test_a_failed_call_has_a_reason_and_no_times_of_stages(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """A call without a result has the reason of its error; the times of its stages are unknown, not 0."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Embed(pb.EmbedRequest(texts=["!!!"], priority=pb.PRIORITY_BULK))
    [line] = lines()
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "TEXT_WITHOUT_TOKENS")
    assert line["priority"] == "bulk"
    assert [line[stage] for stage in STAGES] == [None] * 3


async def test_a_stream_has_one_line_with_the_sum_of_its_requests(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """The line of a stream counts the texts and tokens of all its requests."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        call = stub.EmbedStream(timeout=60)
        for number in range(3):
            await call.write(pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=["one"])))
        await call.done_writing()
        assert len([response async for response in call]) == 3
    [line] = lines()
    assert (line["method"], line["texts"], line["tokens"], line["code"]) == ("EmbedStream", 3, 9, "OK")
    assert all(line[stage] >= 0 for stage in STAGES)


async def test_a_comparison_has_the_times_of_its_stages(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """The line of a Similarity has the same fields."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        await stub.Similarity(pb.SimilarityRequest(queries=pb.Items(texts=pb.TextList(texts=["one", "two"]))))
    [line] = lines()
    assert (line["method"], line["texts"], line["tokens"], line["priority"]) == ("Similarity", 2, 6, "interactive")
    assert all(line[stage] >= 0 for stage in STAGES)


async def test_a_long_user_agent_is_cut(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Callers cannot make lines longer than the limit of the user agent."""
    options = [("grpc.primary_user_agent", "x" * 4000)]
    async with (
        serving(ready_registry(CountingEmbedder())) as stub,
        grpc.aio.insecure_channel(stub.address, options=options) as channel,
    ):
        call = channel.unary_unary("/isogloss.v1.EmbeddingService/Health")
        await call(b"", timeout=60)
    assert lines()[0]["user_agent"] == "x" * 256


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
@pytest.mark.parametrize(
    "character", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\ud800"]
)
def test_control_characters_are_quoted_in_every_format(formatter: logging.Formatter, character: str) -> None:
    """No character of a caller controls a terminal, ends a line, or reorders its text."""
    record = logging.LogRecord("name", logging.INFO, "", 0, f"a{character}b", None, None)
    record.fields = {"user_agent": f"a{character}b", "settings": {"part": f"a{character}b"}}
    line = formatter.format(record)
    assert line.isprintable()
    assert character not in line
