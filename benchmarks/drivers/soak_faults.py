"""Calls of the `soak` workload that are cancelled, late, invalid or read slowly; each returns its status code."""

import asyncio
from typing import Any

import grpc
from isogloss import IsoglossError
from isogloss.v1 import embedding_pb2 as pb

from benchmarks.drivers.soak_calls import Context, check

MAX_DELAY_S = 0.1  # upper bound of the random time before a call ends early
TOO_MANY_TEXTS = 60_000  # above the maximum of the setting
OVERSIZED_BYTES = 10 * 1024**2  # over twice the default of max_request_bytes


async def cancelled(context: Context) -> str:
    """Cancels the task of an embed call."""
    task = asyncio.create_task(context.client.embed(context.sample(8, 24), model=context.any_model()))
    await asyncio.sleep(context.random.uniform(0, MAX_DELAY_S))
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return "CANCELLED"
    task.result()
    return "OK"


async def late(context: Context) -> str:
    """Makes an embed call with a short deadline."""
    await context.client.embed(
        context.sample(8, 24), model=context.any_model(), timeout_s=context.random.uniform(0.001, MAX_DELAY_S)
    )
    return "OK"


async def many_left(context: Context) -> str:
    """Closes embed_many after its first chunk, with other requests in flight."""
    chunks = context.client.embed_many(context.sample(100, 300), model=context.models[1], chunk_texts=16)
    async for _ in chunks:
        break
    await asyncio.sleep(context.random.uniform(0, MAX_DELAY_S))
    await chunks.aclose()
    return "CANCELLED"


async def stream_cancelled(context: Context) -> str:
    """Cancels a stream with requests in flight."""
    call = context.raw("EmbedStream", "stream_stream")()
    for number in range(context.random.randint(1, 6)):
        request = pb.EmbedRequest(texts=context.sample(1, 8), model=context.any_model())
        await call.write(pb.EmbedStreamRequest(id=number, request=request).SerializeToString())
    await asyncio.sleep(context.random.uniform(0, MAX_DELAY_S))
    return "CANCELLED" if call.cancel() else "OK"


async def stream_late(context: Context) -> str:
    """Opens a stream that exceeds its deadline."""
    call = context.raw("EmbedStream", "stream_stream")(timeout=context.random.uniform(0.01, MAX_DELAY_S))
    request = pb.EmbedRequest(texts=context.sample(1, 4), model=context.any_model())
    try:
        await call.write(pb.EmbedStreamRequest(id=1, request=request).SerializeToString())
    except grpc.aio.AioRpcError:  # grpc.aio raises INTERNAL for a write to a stream that has ended
        return "DEADLINE_EXCEEDED"
    while await call.read() is not grpc.aio.EOF:
        pass
    return (await call.code()).name  # type: ignore[no-any-return]


async def slow_reader(context: Context) -> str:
    """Reads the responses of a stream much more slowly than the server sends them."""
    call, requests = context.raw("EmbedStream", "stream_stream")(), 12

    async def write() -> None:
        for number in range(requests):
            request = pb.EmbedRequest(texts=context.sample(60, 120), model=context.models[1])
            await call.write(pb.EmbedStreamRequest(id=number, request=request).SerializeToString())
        await call.done_writing()

    writing, read = asyncio.create_task(write()), set()
    await asyncio.sleep(1)
    while (message := await call.read()) is not grpc.aio.EOF:
        response = pb.EmbedStreamResponse.FromString(message)
        check(response.HasField("response"), "response to a slow reader")
        read.add(response.id)
        await asyncio.sleep(0.1)
    await writing
    check(len(read) == requests, "responses to a slow reader")
    return "OK"


async def empty_text(context: Context) -> str:
    """Sends a text without tokens."""
    await context.client.embed([*context.sample(1, 3), " "], model=context.any_model())
    return "OK"


async def unknown_model(context: Context) -> str:
    """Asks for an unknown model."""
    await context.client.embed(context.sample(1, 3), model="no-such-model")
    return "OK"


async def wrong_space(context: Context) -> str:
    """Asks for another space than the model's."""
    await context.client.embed(context.sample(1, 3), model=context.any_model(), space_id="s1-of-another")
    return "OK"


async def wrong_matrix(context: Context) -> str:
    """Sends a matrix with fewer bytes than its rows and columns require."""
    [info, *_] = await context.client.models()
    matrix = pb.Matrix(data=b"abc", rows=2, columns=384, element_type=pb.ELEMENT_TYPE_FLOAT32)
    side = pb.Items(vectors=pb.VectorList(vectors=matrix, space_id=info.space_id))
    await context.raw("Similarity")(pb.SimilarityRequest(queries=side).SerializeToString())
    return "OK"


async def malformed(context: Context) -> str:
    """Sends bytes that do not parse as a message, because wire type 7 does not exist."""
    await context.raw(context.random.choice(("Embed", "Similarity", "Health")))(b"\x0f" + context.random.randbytes(40))
    return "OK"


async def too_many_texts(context: Context) -> str:
    """Sends more texts than the limit of a request."""
    await context.raw("Embed")(pb.EmbedRequest(texts=["a"] * TOO_MANY_TEXTS).SerializeToString())
    return "OK"


async def oversized(context: Context) -> str:
    """Sends a message above the server's size limit."""
    await context.raw("Embed")(pb.EmbedRequest(texts=["a" * OVERSIZED_BYTES]).SerializeToString())
    return "OK"


async def unknown_method(context: Context) -> str:
    """Calls an unknown method."""
    await context.raw(f"Method{context.random.randrange(10**9)}")(b"")
    return "OK"


async def same_id(context: Context) -> str:
    """Uses a request id twice on one stream."""
    call = context.raw("EmbedStream", "stream_stream")()
    request = pb.EmbedRequest(texts=context.sample(20, 20), model=context.models[0])
    for _ in range(2):
        await call.write(pb.EmbedStreamRequest(id=1, request=request).SerializeToString())
    while await call.read() is not grpc.aio.EOF:
        pass
    return (await call.code()).name  # type: ignore[no-any-return]


def code_of(error: Exception) -> str:
    """Returns the status code of a failed call, or the class name of another error."""
    if isinstance(error, IsoglossError):
        return error.code
    if isinstance(error, grpc.RpcError):
        call: Any = error
        return str(call.code().name)
    return type(error).__name__
