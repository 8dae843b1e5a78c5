"""The calls of the soak that are given up, come wrong, or are read slowly; each returns how it ended."""

import asyncio
from typing import Any

import grpc
from isogloss import IsoglossError
from isogloss.v1 import embedding_pb2 as pb

from benchmarks.drivers.soak_calls import Shared, hold

LONGEST_S = 0.1  # until a call is given up
TOO_MANY_TEXTS = 60_000  # more than any setting allows
OVERSIZED_BYTES = 10 * 1024**2  # more than twice the default max_request_bytes


async def cancelled(to: Shared) -> str:
    """An embed whose task is cancelled."""
    task = asyncio.create_task(to.client.embed(to.some(8, 24), model=to.any_model()))
    await asyncio.sleep(to.random.uniform(0, LONGEST_S))
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return "CANCELLED"
    task.result()
    return "OK"


async def late(to: Shared) -> str:
    """An embed that has too little time."""
    await to.client.embed(to.some(8, 24), model=to.any_model(), timeout_s=to.random.uniform(0.001, LONGEST_S))
    return "OK"


async def many_left(to: Shared) -> str:
    """A stream of many texts that is left after its first chunk, with others in flight."""
    chunks = to.client.embed_many(to.some(100, 300), model=to.models[1], chunk_texts=16)
    async for _ in chunks:
        break
    await asyncio.sleep(to.random.uniform(0, LONGEST_S))
    await chunks.aclose()
    return "CANCELLED"


async def stream_cancelled(to: Shared) -> str:
    """A stream that is cancelled with requests in flight."""
    call = to.raw("EmbedStream", "stream_stream")()
    for number in range(to.random.randint(1, 6)):
        request = pb.EmbedRequest(texts=to.some(1, 8), model=to.any_model())
        await call.write(pb.EmbedStreamRequest(id=number, request=request).SerializeToString())
    await asyncio.sleep(to.random.uniform(0, LONGEST_S))
    return "CANCELLED" if call.cancel() else "OK"


async def stream_late(to: Shared) -> str:
    """A stream that runs into its deadline while it is open."""
    call = to.raw("EmbedStream", "stream_stream")(timeout=to.random.uniform(0.01, LONGEST_S))
    request = pb.EmbedRequest(texts=to.some(1, 4), model=to.any_model())
    try:
        await call.write(pb.EmbedStreamRequest(id=1, request=request).SerializeToString())
    except grpc.aio.AioRpcError:  # INTERNAL, as grpc.aio calls a write on a stream that has ended meanwhile
        return "DEADLINE_EXCEEDED"
    while await call.read() is not grpc.aio.EOF:
        pass
    return (await call.code()).name  # type: ignore[no-any-return]


async def slow_reader(to: Shared) -> str:
    """A stream whose answers are read much later than they are there."""
    call, requests = to.raw("EmbedStream", "stream_stream")(), 12

    async def write() -> None:
        for number in range(requests):
            request = pb.EmbedRequest(texts=to.some(60, 120), model=to.models[1])
            await call.write(pb.EmbedStreamRequest(id=number, request=request).SerializeToString())
        await call.done_writing()

    writing, read = asyncio.create_task(write()), set()
    await asyncio.sleep(1)
    while (message := await call.read()) is not grpc.aio.EOF:
        answer = pb.EmbedStreamResponse.FromString(message)
        hold(answer.HasField("response"), "answer to a slow reader")
        read.add(answer.id)
        await asyncio.sleep(0.1)
    await writing
    hold(len(read) == requests, "answers to a slow reader")
    return "OK"


async def empty_text(to: Shared) -> str:
    """A text without a word."""
    await to.client.embed([*to.some(1, 3), " "], model=to.any_model())
    return "OK"


async def unknown_model(to: Shared) -> str:
    """A model that there is not."""
    await to.client.embed(to.some(1, 3), model="no-such-model")
    return "OK"


async def wrong_space(to: Shared) -> str:
    """A space that the model's is not."""
    await to.client.embed(to.some(1, 3), model=to.any_model(), space_id="s1-of-another")
    return "OK"


async def wrong_matrix(to: Shared) -> str:
    """Vectors whose bytes are fewer than their rows and columns say."""
    [info, *_] = await to.client.models()
    matrix = pb.Matrix(data=b"abc", rows=2, columns=384, element_type=pb.ELEMENT_TYPE_FLOAT32)
    side = pb.Items(vectors=pb.VectorList(vectors=matrix, space_id=info.space_id))
    await to.raw("Similarity")(pb.SimilarityRequest(queries=side).SerializeToString())
    return "OK"


async def malformed(to: Shared) -> str:
    """Bytes that are no message."""
    await to.raw(to.random.choice(("Embed", "Similarity", "Health")))(to.random.randbytes(40) + b"\xff")
    return "OK"


async def too_many_texts(to: Shared) -> str:
    """More texts than one request may have."""
    await to.raw("Embed")(pb.EmbedRequest(texts=["a"] * TOO_MANY_TEXTS).SerializeToString())
    return "OK"


async def oversized(to: Shared) -> str:
    """A message larger than the server reads."""
    await to.raw("Embed")(pb.EmbedRequest(texts=["a" * OVERSIZED_BYTES]).SerializeToString())
    return "OK"


async def unknown_method(to: Shared) -> str:
    """A method that there is not."""
    await to.raw(f"Method{to.random.randrange(10**9)}")(b"")
    return "OK"


async def same_id(to: Shared) -> str:
    """An id that is used twice on one stream."""
    call = to.raw("EmbedStream", "stream_stream")()
    request = pb.EmbedRequest(texts=to.some(20, 20), model=to.models[0])
    for _ in range(2):
        await call.write(pb.EmbedStreamRequest(id=1, request=request).SerializeToString())
    while await call.read() is not grpc.aio.EOF:
        pass
    return (await call.code()).name  # type: ignore[no-any-return]


def code_of(error: Exception) -> str:
    """Returns the name of the status that a call ended with."""
    if isinstance(error, IsoglossError):
        return error.code
    if isinstance(error, grpc.RpcError):
        call: Any = error
        return str(call.code().name)
    return type(error).__name__
