"""The asyncio client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Self

import grpc

from isogloss import _arguments as given
from isogloss import _bulk, _compare, _embed
from isogloss._arguments import AnyTexts, BulkArguments, EmbedArguments, many_texts
from isogloss._bulk import Chunker
from isogloss._channel import open_asyncio
from isogloss._embed import Call, Plan, Result
from isogloss._failures import from_rpc_error
from isogloss.client import BaseClient
from isogloss.errors import CallCancelledError, FailedPreconditionError, IsoglossError
from isogloss.options import ClientOptions
from isogloss.results import EmbeddedChunk, Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub

Source = Iterator[str] | AsyncIterator[str]


class AsyncioClient(BaseClient):
    """A channel, made with the first call, and the running of plans on it."""

    def __init__(self, target: str | None = None, *, options: ClientOptions | None = None) -> None:
        super().__init__(target, options)
        self._channel: grpc.aio.Channel | None = None
        self._stub: EmbeddingServiceStub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Ends the connection, and with CallCancelledError the calls that still run. Closing twice is fine."""
        self._closed = True
        self._closing.set()
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _run(self, plan: Plan[Result], timeout_s: float | None) -> Result:
        run = self._start(plan, timeout_s)
        while not run.done:
            try:
                response = await self._send(run.call, run.left_s())
            except IsoglossError as error:
                run.fail(error)
            else:
                run.answer(response)
        return run.result

    async def _send(self, call: Call, timeout_s: float) -> Any:
        method = getattr(self._connected(), call.method)
        try:
            return await method(call.request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            # Without grpc in the traceback; a debugger still finds it as __context__.
            raise from_rpc_error(error) from None
        except grpc.aio.UsageError:  # grpc's for a closed channel
            self._require_open()
            raise
        except asyncio.CancelledError:
            if self._closed and not _cancelled():
                raise self._closed_meanwhile() from None
            raise

    def _connected(self) -> EmbeddingServiceStub:
        loop = asyncio.get_running_loop()
        if self._stub is None:
            # Not in the constructor, which may run before there is a loop: a channel belongs to one.
            self._loop = loop
            self._channel = open_asyncio(self._options)
            self._stub = EmbeddingServiceStub(self._channel)
        if loop is not self._loop:
            message = "this client belongs to the event loop of its first call; make one for each loop"
            raise FailedPreconditionError(message, reason="OTHER_EVENT_LOOP")
        return self._stub

    def _run_many(
        self, arguments: EmbedArguments, bulk: BulkArguments, texts: AnyTexts
    ) -> AsyncGenerator[EmbeddedChunk, None]:
        given = many_texts(texts, Iterable, AsyncIterable)
        source = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        return self._chunks(self._start_many(arguments, bulk), source)

    async def _chunks(self, plan: _bulk.Steps, texts: Source) -> AsyncGenerator[EmbeddedChunk, None]:
        """Yields what `plan` gives, and leaves no stream behind, however it ends."""
        stream = _Stream()
        go_on = partial(next, plan)
        try:
            while True:
                try:
                    step = go_on()
                except StopIteration:
                    return
                if isinstance(step, _bulk.Give):
                    yield step.chunk
                    go_on = partial(next, plan)
                    continue
                try:
                    go_on = partial(plan.send, await self._take(step, stream, texts))
                except Exception as error:  # noqa: BLE001 - the plan decides what it means
                    go_on = partial(plan.throw, error)
        finally:
            await stream.drop()

    async def _take(self, step: _bulk.Step, stream: "_Stream", texts: Source) -> Any:  # noqa: PLR0911 - a table
        """Takes one step, and returns what the plan is to be told."""
        self._require_under_way()
        match step:
            case Call():
                return await self._send(step, self._options.timeout_s)
            case _bulk.Read(chunker):
                return await _filled(chunker, texts)
            case _bulk.Open():
                return stream.open(self._open)
            case _bulk.Send(request):
                return stream.send(request)
            case _bulk.HalfClose():
                return stream.half_close()
            case _bulk.Drop():
                return await stream.drop()
            case _bulk.Receive(timeout_s):
                return await stream.receive(timeout_s)
            case _bulk.Pause(seconds):
                return await _or_none(self._closing.wait(), seconds)

    def _open(self, requests: Any) -> Any:
        try:
            return self._connected().EmbedStream(requests, metadata=self._metadata)
        except grpc.aio.UsageError:  # grpc's for a closed channel
            self._require_under_way()
            raise


class _Stream:
    """An EmbedStream, opened as often as the plan asks.

    Two tasks serve it, and end with it: grpc's takes requests from one queue, ours puts answers into the other, where
    they can be waited for no longer than the plan wants to.
    """

    def __init__(self) -> None:
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()  # requests; None = no more
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()  # messages, and last END or an IsoglossError
        self._call: Any = None
        self._forwarding: asyncio.Task[None] | None = None

    def open(self, method: Callable[[Any], Any]) -> None:
        """Opens a stream with `method`, in the place of one that has ended."""
        self._outbox, self._inbox = asyncio.Queue(), asyncio.Queue()
        self._call = method(_until_none(self._outbox))
        ended = partial(self._outbox.put_nowait, None)
        self._call.add_done_callback(lambda _: ended())  # else grpc's task would wait for requests for ever
        self._forwarding = asyncio.create_task(_forward(self._call, self._inbox))

    def send(self, request: Any) -> None:
        """Sends a request, as soon as the server reads it."""
        self._outbox.put_nowait(request)

    def half_close(self) -> None:
        """Sends nothing after what was sent."""
        self._outbox.put_nowait(None)

    async def receive(self, timeout_s: float) -> Any:
        """Returns the next message, END, or None where there is none in time; raises what ended the stream."""
        await asyncio.sleep(0)  # the loop moves messages only while others wait
        if self._inbox.empty() and timeout_s <= 0:
            return None
        found = await _or_none(self._inbox.get(), timeout_s)
        if isinstance(found, IsoglossError):
            raise found
        return found

    async def drop(self) -> None:
        """Cancels the stream, unless it has ended."""
        if self._call is not None and self._forwarding is not None:
            self._call.cancel()
            await asyncio.wait([self._forwarding])


async def _forward(call: Any, inbox: asyncio.Queue[Any]) -> None:
    """Puts all messages of a stream into `inbox`, and at last how it ended."""
    try:
        async for message in call:
            inbox.put_nowait(message)
    except grpc.RpcError as error:
        inbox.put_nowait(from_rpc_error(error))
    except asyncio.CancelledError:  # grpc's for a stream that was cancelled on this side
        inbox.put_nowait(CallCancelledError("the stream was cancelled"))
        raise
    else:
        inbox.put_nowait(_bulk.END)


async def _until_none(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (item := await queue.get()) is not None:
        yield item


async def _filled(chunker: Chunker, texts: Source) -> bool:
    """Fills `chunker`; returns whether the source may have more."""
    if isinstance(texts, Iterator):
        return any(chunker.add(text) for text in texts)
    async for text in texts:
        if chunker.add(text):
            return True
    return False


async def _or_none(awaitable: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Returns what `awaitable` does, or None where it takes longer."""
    try:
        return await asyncio.wait_for(awaitable, timeout_s)
    except TimeoutError:
        return None


def _cancelled() -> bool:
    """Says whether somebody cancelled this task; grpc raises the same exception when the channel is closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncClient(AsyncioClient):
    """Embeds and compares texts on an Isogloss server, from one event loop: the one that its first call runs in.

    Arguments, results and errors are those of Client, where they are described. Cancelling a call cancels it on the
    server as well, and raises asyncio.CancelledError as everywhere.

    Args:
        target: Where the server listens, such as "localhost:50051"; goes before the options' target.
        options: All else about the connection.
    """

    async def embed(
        self,
        texts: given.GivenTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        priority: str = "interactive",
        allow_partial: bool = False,
        space_id: str = "",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Returns one vector for each text, in order; as Client.embed."""
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority=priority,
            allow_partial=allow_partial,
            space_id=space_id,
        )
        side = given.texts("texts", texts, arguments.input_type)
        return await self._run(_embed.embed(self._known, arguments, side), timeout_s)

    def embed_many(
        self,
        texts: given.AnyTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        allow_partial: bool = False,
        space_id: str = "",
        chunk_texts: int = 256,
        window_chunks: int = 8,
        patience_s: float = 60.0,
    ) -> AsyncGenerator[EmbeddedChunk, None]:
        """Yields the vectors of any number of texts, in order; as Client.embed_many.

        `texts` may be asynchronous as well. Where the iteration is left before its end, contextlib.aclosing ends the
        stream at once.
        """
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority="bulk",
            allow_partial=allow_partial,
            space_id=space_id,
        )
        bulk = given.bulk_arguments(chunk_texts=chunk_texts, window_chunks=window_chunks, patience_s=patience_s)
        return self._run_many(arguments, bulk, texts)

    async def similarity(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide | None = None,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Scores:
        """Returns the score of every query against every candidate, float32 [q, c]; as Client.similarity."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return await self._run(_compare.similarity(self._known, arguments, sides), timeout_s)

    async def pairwise(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> PairScores:
        """Returns the score of query i against candidate i, float32 [n]; as Client.pairwise."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return await self._run(_compare.pairwise(self._known, arguments, sides), timeout_s)

    async def nearest(
        self,
        query: str,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Neighbors:
        """Returns the candidates nearest to one query, best first, ties by lower row; as Client.nearest."""
        [neighbors] = await self.nearest_many(
            [given.string("query", query)],
            candidates,
            k=k,
            min_score=min_score,
            model=model,
            metric=metric,
            dimensions=dimensions,
            query_type=query_type,
            candidate_type=candidate_type,
            truncation=truncation,
            priority=priority,
            timeout_s=timeout_s,
        )
        return neighbors

    async def nearest_many(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> list[Neighbors]:
        """Returns for each query the candidates nearest to it, best first; as Client.nearest_many."""
        shape = given.nearest_shape(k, min_score)
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return await self._run(_compare.nearest(self._known, arguments, shape, sides), timeout_s)

    async def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Returns whether the server, or `model` alone, can serve now, and how loaded it is."""
        return await self._run(_embed.health(given.string("model", model)), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server offers, the default first."""
        return await self._run(_embed.models(), timeout_s)
