"""Calls of the `mixed` and `soak` workloads that cost a server much more than their caller, or that never end.

Each function makes the calls of one kind within its time limit, and returns the number of calls by status code and
reason. The default numbers are those of `soak`, which measures small growth of memory; `mixed` uses larger ones.
"""

import asyncio
import collections
import functools
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from isogloss._failures import from_rpc_error
from isogloss.errors import IsoglossError
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import ElementType
from isogloss.wire.matrix import encode, quantize
from numpy.typing import NDArray

from benchmarks.drivers.soak_calls import Context
from tests.support import raw_http2 as http2

Outcomes = collections.Counter[str]
CALL_LIMIT_S = 30.0  # deadline of each call here
TEXT_CHARS = 4_000_000  # just under the default of max_request_bytes
EMPTY_TEXTS = 4_000_000  # 8 MB on the wire, as much as gRPC reads with the default of max_request_bytes
MATRIX_BYTES = 8_000_000  # twice the default of max_request_bytes
STREAM_REQUESTS = 24
INITIAL_WINDOW_BYTES = 65_535  # RFC 9113, 6.9.2
FRAME_BYTES = 16_384
OPEN, ENDED, CLOSED = "OPEN", "ENDED", "CLOSED"  # outcomes of calls whose status is not read


async def outcome(call: Awaitable[Any]) -> str:
    """Waits for a call; returns its status code, followed by its reason if it has one."""
    try:
        await call
    except grpc.RpcError as error:
        failure = from_rpc_error(error)
    except IsoglossError as error:
        failure = error
    else:
        return "OK"
    return f"{failure.code} {failure.reason}".strip()


async def hex_digits(context: Context) -> Outcomes:
    """Sends one text of hexadecimal digits, without spaces, compressed to a few kilobytes."""
    digits = context.random.randbytes(500).hex()
    return await _one_text(context, digits * (TEXT_CHARS // len(digits)))


async def unknown_token(context: Context) -> Outcomes:
    """Sends one text of a single letter, which a WordPiece tokenizer turns into one unknown token."""
    return await _one_text(context, context.random.choice("abxyz") * TEXT_CHARS)


async def empty_strings(context: Context) -> Outcomes:
    """Sends millions of empty strings in one message."""
    method, message = context.random.choice(_empty_strings())
    return await _one(context, method, message)


async def wide_matrix(context: Context) -> Outcomes:
    """Sends a row of more INT8 numbers than a request may have bytes."""
    return await _one(context, "Similarity", _wide_matrix(await _space_id(context)))


async def many_neighbors(context: Context, *, neighbors: int = 100_000) -> Outcomes:
    """Asks for very many neighbours of one query, and for more than there are."""
    return await _one(context, "Similarity", _many_neighbors(await _space_id(context), neighbors))


async def burst(context: Context, *, calls: int = 200) -> Outcomes:
    """Begins many calls of one text each at once, on one channel without settings."""
    texts = context.random.choices(context.texts, k=calls)
    messages = [pb.EmbedRequest(texts=[text], model=context.models[1]).SerializeToString() for text in texts]
    embed = context.raw("Embed")
    return Outcomes(await asyncio.gather(*(outcome(embed(message, timeout=CALL_LIMIT_S)) for message in messages)))


async def unread_streams(context: Context, *, streams: int = 4, texts: int = 100, hold_s: float = 1.0) -> Outcomes:
    """Opens streams and never reads their responses; cancels them at the end."""
    request = pb.EmbedRequest(texts=context.random.choices(context.texts, k=texts), model=context.models[1])
    method = context.raw("EmbedStream", "stream_stream")
    calls = [method(timeout=CALL_LIMIT_S) for _ in range(streams)]

    async def write(call: Any) -> None:
        for number in range(STREAM_REQUESTS):
            await call.write(pb.EmbedStreamRequest(id=number, request=request).SerializeToString())

    writing = [asyncio.create_task(write(call)) for call in calls]
    await asyncio.wait(writing, timeout=hold_s)
    await asyncio.sleep(hold_s)
    outcomes = Outcomes(ENDED if call.done() else OPEN for call in calls)
    for call, task in zip(calls, writing, strict=True):
        task.cancel()
        call.cancel()
    await asyncio.gather(*writing, return_exceptions=True)  # a write to a stream that has ended raises
    return outcomes


async def unread_responses(context: Context, *, calls: int = 4, rows: int = 500, hold_s: float = 1.0) -> Outcomes:
    """Asks for the scores of all pairs of `rows` on a connection that takes 64 KiB; closes it after `hold_s`."""
    message = _all_pairs(await _space_id(context), rows)
    async with RawConnection.opened(context.address) as connection:
        requests = (connection.request(2 * n + 1, "Similarity", message) for n in range(calls))
        await _until(hold_s, *requests)
        return connection.outcomes()


async def unfinished_requests(
    context: Context, *, calls: int = 10, sent_bytes: int = 200_000, hold_s: float = 1.0
) -> Outcomes:
    """Begins requests of 8 MB on one connection and sends a part of each; closes it after `hold_s`."""
    part = bytes(sent_bytes)
    async with RawConnection.opened(context.address) as connection:
        requests = (connection.request(2 * n + 1, "Embed", part, length=MATRIX_BYTES) for n in range(calls))
        await _until(hold_s, *requests)
        return connection.outcomes()


class RawConnection:
    """An HTTP/2 connection that sends within the windows of the server, and never widens its own.

    It answers pings and settings, so that the server takes its caller for a slow one, not for a lost one.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._changed = asyncio.Condition()
        self._initial = INITIAL_WINDOW_BYTES
        self._windows = {0: INITIAL_WINDOW_BYTES}  # by stream; 0 is the connection
        self._ended: set[int] = set()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def opened(cls, address: str) -> "AsyncIterator[RawConnection]":
        """Connects; closes the connection at the end of the block."""
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        connection = cls(reader, writer)
        writer.write(http2.PREFACE + http2.frame(http2.SETTINGS))
        reading = asyncio.create_task(connection._read())
        try:
            yield connection
        finally:
            reading.cancel()
            writer.transport.abort()

    def outcomes(self) -> Outcomes:
        """Returns the number of calls that are open, that the server ended, and that ended with the connection."""
        streams = self._windows.keys() - {0}
        lost = CLOSED if self._closed else OPEN
        return Outcomes(ENDED if stream in self._ended else lost for stream in streams)

    async def request(self, stream: int, method: str, message: bytes, *, length: int | None = None) -> None:
        """Sends a request as fast as the server takes it; with a `length` beyond that of the message, it has no end."""
        self._windows[stream] = self._initial
        self._writer.write(
            http2.frame(http2.HEADERS, http2.call_headers(method), flags=http2.END_HEADERS, stream=stream)
        )
        data = http2.grpc_message(message, length=length)
        for first in range(0, len(data), FRAME_BYTES):
            part = data[first : first + FRAME_BYTES]
            if not await self._take(stream, len(part)):
                return
            self._writer.write(http2.frame(http2.DATA, part, stream=stream))
        if length is None:
            self._writer.write(http2.frame(http2.DATA, flags=http2.END_STREAM, stream=stream))

    async def _take(self, stream: int, size: int) -> bool:
        """Waits until both windows have room; returns False if the call has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_over(stream) or self._room(stream) >= size)
            if self._is_over(stream):
                return False
            self._windows[0] -= size
            self._windows[stream] -= size
        return True

    def _is_over(self, stream: int) -> bool:
        return self._closed or stream in self._ended

    def _room(self, stream: int) -> int:
        return min(self._windows[0], self._windows[stream])

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                async with self._changed:
                    self._receive(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                    self._changed.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            async with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _receive(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            self._apply(settings_of(payload))
            self._writer.write(http2.frame(http2.SETTINGS, flags=http2.ACK))
        elif kind == http2.PING and not flags & http2.ACK:
            self._writer.write(http2.frame(http2.PING, payload, flags=http2.ACK))
        elif kind == http2.RST_STREAM or (kind in {http2.HEADERS, http2.DATA} and flags & http2.END_STREAM):
            self._ended.add(stream)

    def _apply(self, settings: dict[int, int]) -> None:
        initial = settings.get(http2.INITIAL_WINDOW_SIZE, self._initial)
        for stream in self._windows.keys() - {0}:
            self._windows[stream] += initial - self._initial
        self._initial = initial


def settings_of(payload: bytes) -> dict[int, int]:
    """Returns the values of a SETTINGS frame by identifier (RFC 9113, 6.5.1)."""
    entries = (payload[first : first + 6] for first in range(0, len(payload), 6))
    return {int.from_bytes(entry[:2], "big"): int.from_bytes(entry[2:], "big") for entry in entries}


async def _until(hold_s: float, *requests: Awaitable[None]) -> None:
    """Sends requests until `hold_s` have passed."""
    sending = [asyncio.ensure_future(request) for request in requests]
    try:
        await asyncio.sleep(hold_s)
    finally:
        for request in sending:
            request.cancel()
        await asyncio.wait(sending)


async def _space_id(context: Context) -> str:
    return (await context.client.models(timeout_s=CALL_LIMIT_S))[0].space_id


async def _one_text(context: Context, text: str) -> Outcomes:
    message = pb.EmbedRequest(texts=[text], model=context.any_model()).SerializeToString()
    return await _one(context, "Embed", message, compression=grpc.Compression.Gzip)


async def _one(context: Context, method: str, message: bytes, **options: Any) -> Outcomes:
    return Outcomes([await outcome(context.raw(method)(message, timeout=CALL_LIMIT_S, **options))])


@functools.cache
def _empty_strings() -> tuple[tuple[str, bytes], ...]:
    texts = b"\n\0" * EMPTY_TEXTS  # the field `texts` of EmbedRequest and of TextList, of length 0
    items = pb.Items(texts=pb.TextList.FromString(texts))
    return ("Embed", texts), ("Similarity", pb.SimilarityRequest(queries=items).SerializeToString())


@functools.cache
def _wide_matrix(space_id: str) -> bytes:
    return pb.SimilarityRequest(queries=side(np.ones((1, MATRIX_BYTES)), "int8", space_id)).SerializeToString()


@functools.cache
def _many_neighbors(space_id: str, neighbors: int) -> bytes:
    candidates = side(np.linspace(0, 1, neighbors)[:, None], "float16", space_id)
    nearest, query = pb.Nearest(k=2 * neighbors), side(np.ones((1, 1)), "float16", space_id)
    return pb.SimilarityRequest(queries=query, candidates=candidates, nearest=nearest).SerializeToString()


@functools.cache
def _all_pairs(space_id: str, rows: int) -> bytes:
    return pb.SimilarityRequest(queries=side(np.ones((rows, 1)), "int8", space_id)).SerializeToString()


def side(rows: NDArray[Any], element_type: str, space_id: str) -> pb.Items:
    """Returns a side of a comparison, [n, d], in the numbers of an element type."""
    items = pb.Items(vectors=pb.VectorList(space_id=space_id))
    encode(quantize(rows.astype(np.float32), ElementType(element_type)), items.vectors.vectors)
    return items
