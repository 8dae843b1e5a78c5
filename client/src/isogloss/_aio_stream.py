"""The stream of embed_many in the asyncio client, and its source of texts."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import grpc

from isogloss import _bulk
from isogloss._failures import from_rpc_error
from isogloss.errors import CallCancelledError, IsoglossError

Source = Iterator[str] | AsyncIterator[str]
# Turns of the event loop in which a message that has arrived is transferred: poller, grpc's call, forwarding task.
LOOP_TURNS = 4


class EmbedStream:
    """An EmbedStream call, which can be opened again after it has ended.

    Two tasks serve it and end with it: one of grpc's reads requests from the outbox, and one of this class writes
    messages to the inbox, where the caller can wait for them with a timeout.
    """

    def __init__(self, method: Callable[[Any], Any]) -> None:
        self._method = method
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()  # requests; None ends them
        self._inbox: deque[Any] = deque()  # messages, then END_OF_STREAM or an IsoglossError
        self._arrived = asyncio.Event()
        self._call: Any = None
        self._forwarding: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Starts a call; the previous one has ended."""
        self._outbox = asyncio.Queue()
        self._inbox.clear()
        self._call = self._method(_until_none(self._outbox))
        end = partial(self._outbox.put_nowait, None)
        self._call.add_done_callback(lambda _: end())  # without it, grpc's task would wait for requests forever
        self._forwarding = asyncio.create_task(self._forward(self._call))

    def send(self, request: Any) -> None:
        """Queues a request."""
        self._outbox.put_nowait(request)

    def half_close(self) -> None:
        """Ends the requests after those that are queued."""
        self._outbox.put_nowait(None)

    async def receive(self, timeout_s: float) -> Any:
        """Returns the next message, END_OF_STREAM, or None after `timeout_s`; raises the error that ended it."""
        for _ in range(LOOP_TURNS):
            await asyncio.sleep(0)
        if not self._inbox and timeout_s <= 0:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_for_message()
        except TimeoutError:
            return None
        message = self._inbox.popleft()
        if isinstance(message, IsoglossError):
            raise message
        return message

    async def wait_for_message(self) -> None:
        """Returns when `receive` would return at once."""
        while not self._inbox:
            self._arrived.clear()
            await self._arrived.wait()

    async def cancel(self) -> None:
        """Cancels the call, unless it has ended, and waits for the forwarding task."""
        if self._call is not None and self._forwarding is not None:
            self._call.cancel()
            await asyncio.wait([self._forwarding])

    async def _forward(self, call: Any) -> None:
        """Delivers all messages of a call, then END_OF_STREAM or the error that ended it."""
        try:
            async for message in call:
                self._deliver(message)
        except grpc.RpcError as error:
            self._deliver(from_rpc_error(error))
        except asyncio.CancelledError:  # raised by grpc for a call that was cancelled locally
            self._deliver(CallCancelledError("the stream was cancelled"))
            raise
        else:
            self._deliver(_bulk.END_OF_STREAM)

    def _deliver(self, message: Any) -> None:
        self._inbox.append(message)
        self._arrived.set()


class Texts:
    """The source of embed_many. An asynchronous one is read by one task, so that responses need not wait for texts."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading: asyncio.Task[None] | None = None
        self._wanted, self._full = asyncio.Event(), asyncio.Event()

    async def fill(self, chunker: _bulk.Chunker, interrupt: Callable[[], Any], timeout_s: float | None) -> bool:
        """Adds texts to `chunker` until it is full, `interrupt()` returns, or `timeout_s` have passed.

        Returns:
            True if the source may have more.
        """
        if isinstance(self._source, Iterator):
            return any(chunker.add(text) for text in self._source)
        self._full.clear()
        self._wanted.set()
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(self._source, chunker))
        others = [asyncio.ensure_future(self._full.wait()), asyncio.ensure_future(interrupt())]
        try:
            await asyncio.wait([self._reading, *others], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in others:
                other.cancel()
        if not self._reading.done():
            return True
        self._reading.result()  # raises the error of the source
        return False

    async def close(self) -> None:
        """Ends the reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read(self, source: AsyncIterator[str], chunker: _bulk.Chunker) -> None:
        async for text in source:
            if chunker.add(text):
                self._wanted.clear()
                self._full.set()
                await self._wanted.wait()


async def _until_none(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (item := await queue.get()) is not None:
        yield item
