"""Exceptions of libraries that are no Exception, and cancellations that nobody requested, become a status."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.in_process import CountingEmbedder, ready_registry, serving


class PanicError(BaseException):
    """An exception like those of pyo3 when a library in Rust panics, which do not derive from Exception."""


def panic() -> None:
    """Raises the exception of a library, whose message quotes a text."""
    raise PanicError("index out of range in 'a secret text'")


def cancel() -> None:
    """Raises the exception of a cancellation that nobody requested."""
    raise asyncio.CancelledError


@pytest.mark.parametrize("fail", [panic, cancel])
async def test_every_exception_of_a_call_ends_in_internal(
    fail: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The call ends with INTERNAL and a fault_id, and the log has both, without a text."""
    caplog.set_level(logging.INFO)
    async with serving(ready_registry(CountingEmbedder(fail))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Embed(pb.EmbedRequest(texts=["a secret text"]), timeout=60)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    fields: list[dict[str, Any]] = [getattr(record, "fields", {}) for record in caplog.records]
    assert [line["code"] for line in fields if "code" in line] == ["INTERNAL"]
    [fault_id] = [line["fault_id"] for line in fields if "fault_id" in line]
    assert fault_id in (raised.value.details() or "")
    assert "secret" not in f"{raised.value.details()}{fields}{caplog.text}"


@pytest.mark.parametrize("fail", [panic, cancel])
async def test_every_exception_of_a_streams_request_is_its_response(fail: Callable[[], None]) -> None:
    """A request of a stream is answered with INTERNAL, and the stream continues."""
    async with serving(ready_registry(CountingEmbedder(fail))) as stub:
        call = stub.EmbedStream(timeout=60)
        for number in range(2):
            await call.write(pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=["text"])))
            response = await call.read()
            assert (response.id, response.error.code) == (number, grpc.StatusCode.INTERNAL.value[0])
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_the_exit_of_the_process_is_no_status() -> None:
    """SystemExit and KeyboardInterrupt keep their meaning: they are raised further."""
    from isogloss_server.rpc.interceptor import is_shutdown

    assert is_shutdown(SystemExit())
    assert is_shutdown(KeyboardInterrupt())
    assert not is_shutdown(PanicError())
