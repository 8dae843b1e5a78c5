"""A refused call leaves nothing for the garbage collector that holds its texts."""

import asyncio
import gc
from collections.abc import Iterator

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.errors import DomainError

from tests.support.in_process import CountingEmbedder, ready_registry, serving


@pytest.fixture
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize("text", ["", "!!!", "fine"])
async def test_what_was_refused_is_let_go_at_once(text: str) -> None:
    """With the collector off, neither the request nor the error of a refused call lives on after its answer."""
    requests = [pb.EmbedRequest(texts=["good", text], model="" if text != "fine" else "nobody") for _ in range(20)]
    async with serving(ready_registry(CountingEmbedder())) as stub:
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Embed(request)
        await asyncio.sleep(0)
        alive = [thing for thing in gc.get_objects() if isinstance(thing, DomainError)]
        assert len(alive) <= 1, "errors of refused calls, with the frames that hold their texts"
