"""Calls while the server stops: each ends with its response, or with UNAVAILABLE and the reason DRAINING."""

import asyncio
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.server.rpc.test_streams import GatedEmbedder, reason_of_error, request
from tests.support.in_process import ready_registry, stoppable_serving


async def refusal(call: Any) -> tuple[str, str]:
    """Returns the status and the reason with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code().name, reason_of_error(raised.value)


async def test_calls_that_arrive_while_the_server_stops_are_refused_with_draining() -> None:
    """From the start of the stop, new calls fail with DRAINING while a call in progress is still answered."""
    embedder = GatedEmbedder()
    async with stoppable_serving(ready_registry(embedder)) as (stub, stop):
        in_progress = stub.Embed(pb.EmbedRequest(texts=["wait a"]))
        await embedder.began.get()
        stopping = asyncio.ensure_future(stop(600))
        await asyncio.sleep(0)  # the stop has begun
        assert await refusal(stub.Embed(pb.EmbedRequest(texts=["b"]))) == ("UNAVAILABLE", "DRAINING")
        embedder.gate("a").set()
        assert (await in_progress).embeddings.rows == 1
        await stopping


@pytest.mark.parametrize("grace_s", [0.0, None])
async def test_calls_still_in_progress_at_the_end_of_the_grace_period_end_with_draining(grace_s: float | None) -> None:
    """A unary call and a stream that are not finished in time end with DRAINING, not with a bare CANCELLED."""
    embedder = GatedEmbedder()
    async with stoppable_serving(ready_registry(embedder)) as (stub, stop):
        unary = stub.Embed(pb.EmbedRequest(texts=["wait a"]))
        stream = stub.EmbedStream()
        await stream.write(request(1, "wait b"))
        assert {await embedder.began.get(), await embedder.began.get()} == {"a", "b"}
        stopping = asyncio.ensure_future(stop(grace_s))
        assert await refusal(unary) == ("UNAVAILABLE", "DRAINING")
        assert await refusal(stream.read()) == ("UNAVAILABLE", "DRAINING")
        await stopping
