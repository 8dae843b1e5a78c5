"""The blocking client."""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self

import grpc

from isogloss import _arguments as given
from isogloss import _bulk, _compare, _embed
from isogloss._arguments import BulkArguments, EmbedArguments, many_texts, seconds
from isogloss._bulk import Bulk, Pace, Steps
from isogloss._channel import metadata, open_blocking
from isogloss._embed import Call, KnownModels, Plan, Result, Run
from isogloss._failures import from_rpc_error
from isogloss.errors import CallCancelledError, FailedPreconditionError, IsoglossError
from isogloss.options import ClientOptions
from isogloss.results import EmbeddedChunk, Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub

THREAD = "isogloss-embed-many"


class BaseClient:
    """A client's options and state, without a channel."""

    def __init__(self, target: str | None, options: ClientOptions | None) -> None:
        given = options or ClientOptions()
        self._options = given if target is None else replace(given, target=target)
        self._metadata = metadata(self._options)
        self._known = KnownModels()
        self._pace = Pace()
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._options.target!r}{state})"

    def _start(self, plan: Plan[Result], timeout_s: float | None) -> Run[Result]:
        """Returns `plan` under way; raises FailedPreconditionError where this client can make no calls."""
        self._require_open()
        self._require_own_process()
        return Run(plan, seconds("timeout_s", timeout_s, self._options.timeout_s))

    def _start_many(self, arguments: EmbedArguments, bulk: BulkArguments) -> Steps:
        """Returns the plan of an embed_many; raises FailedPreconditionError where this client can make no calls."""
        self._require_open()
        self._require_own_process()
        return Bulk(self._known, arguments, bulk, self._pace).steps()

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("this client is closed", reason="CLIENT_CLOSED") from None

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            # grpc's threads did not follow into the child, where a call would wait for them until its deadline.
            message = "this client was made before the process forked; make one in the child"
            raise FailedPreconditionError(message, reason="CLIENT_FORKED")

    def _require_under_way(self) -> None:
        """Raises what ends a call that takes several steps where it cannot go on."""
        self._require_own_process()
        if self._closed:
            raise self._closed_meanwhile()

    @staticmethod
    def _closed_meanwhile() -> CallCancelledError:
        return CallCancelledError("the client was closed while the call ran", reason="CLIENT_CLOSED")


class BlockingClient(BaseClient):
    """A channel, and the running of plans on it."""

    def __init__(self, target: str | None = None, *, options: ClientOptions | None = None) -> None:
        super().__init__(target, options)
        self._channel = open_blocking(self._options)
        self._stub = EmbeddingServiceStub(self._channel)
        self._closing = threading.Event()

    def close(self) -> None:
        """Ends the connection, and with CallCancelledError the calls that still run. Closing twice is fine."""
        self._closed = True
        self._closing.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self, plan: Plan[Result], timeout_s: float | None) -> Result:
        run = self._start(plan, timeout_s)
        while not run.done:
            try:
                response = self._send(run.call, run.left_s())
            except IsoglossError as error:
                run.fail(error)
            else:
                run.answer(response)
        return run.result

    def _send(self, call: Call, timeout_s: float) -> Any:
        method = getattr(self._stub, call.method)
        try:
            return method(call.request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            # Without grpc in the traceback; a debugger still finds it as __context__.
            raise from_rpc_error(error) from None
        except ValueError:  # grpc's for a closed channel
            self._require_open()
            raise

    def _open(self, requests: Iterator[Any]) -> Any:
        try:
            return self._stub.EmbedStream(requests, metadata=self._metadata)
        except ValueError:  # grpc's for a closed channel
            self._require_under_way()
            raise

    def _run_many(
        self, arguments: EmbedArguments, bulk: BulkArguments, texts: Iterable[str]
    ) -> Generator[EmbeddedChunk, None, None]:
        source = iter(many_texts(texts, Iterable))
        return self._chunks(self._start_many(arguments, bulk), source)

    def _chunks(self, plan: _bulk.Steps, texts: Iterator[str]) -> Generator[EmbeddedChunk, None, None]:
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
                    go_on = partial(plan.send, self._take(step, stream, texts))
                except Exception as error:  # noqa: BLE001 - the plan decides what it means
                    go_on = partial(plan.throw, error)
        finally:
            stream.drop()

    def _take(self, step: _bulk.Step, stream: "_Stream", texts: Iterator[str]) -> Any:  # noqa: PLR0911 - a table
        """Takes one step, and returns what the plan is to be told."""
        self._require_under_way()
        match step:
            case Call():
                return self._send(step, self._options.timeout_s)
            case _bulk.Read(chunker):
                return any(chunker.add(text) for text in texts)
            case _bulk.Open():
                return stream.open(self._open)
            case _bulk.Send(request):
                return stream.send(request)
            case _bulk.HalfClose():
                return stream.half_close()
            case _bulk.Drop():
                return stream.drop()
            case _bulk.Receive(timeout_s):
                return stream.receive(timeout_s)
            case _bulk.Pause(seconds):
                return self._closing.wait(seconds)


class _Stream:
    """An EmbedStream, opened as often as the plan asks.

    Two threads serve it, and end with it: grpc's takes requests from one queue, ours puts answers into the other, where
    the caller can wait for them no longer than it wants to.
    """

    def __init__(self) -> None:
        self._outbox: SimpleQueue[Any] = SimpleQueue()  # requests; None = no more
        self._inbox: SimpleQueue[Any] = SimpleQueue()  # messages, and last END or an IsoglossError
        self._call: Any = None

    def open(self, method: Callable[[Iterator[Any]], Any]) -> None:
        """Opens a stream with `method`, in the place of one that has ended."""
        self._outbox, self._inbox = SimpleQueue(), SimpleQueue()
        self._call = method(iter(self._outbox.get, None))
        if not self._call.add_callback(self.half_close):  # else grpc's thread would wait for requests for ever
            self.half_close()
        threading.Thread(target=_forward, args=(self._call, self._inbox), name=THREAD, daemon=True).start()

    def send(self, request: Any) -> None:
        """Sends a request, as soon as the server reads it."""
        self._outbox.put(request)

    def half_close(self) -> None:
        """Sends nothing after what was sent."""
        self._outbox.put(None)

    def receive(self, timeout_s: float) -> Any:
        """Returns the next message, END, or None where there is none in time; raises what ended the stream."""
        try:
            found = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
        except Empty:
            return None
        if isinstance(found, IsoglossError):
            raise found
        return found

    def drop(self) -> None:
        """Cancels the stream, unless it has ended."""
        # When the interpreter goes down, its threads stand still, holding the locks that this would wait for.
        if self._call is not None and not sys.is_finalizing():
            self._call.cancel()


def _forward(call: Any, inbox: SimpleQueue[Any]) -> None:
    """Puts all messages of a stream into `inbox`, and at last how it ended."""
    try:
        for message in call:
            inbox.put(message)
    except grpc.RpcError as error:
        inbox.put(from_rpc_error(error))
    else:
        inbox.put(_bulk.END)


class Client(BlockingClient):
    """Embeds and compares texts on an Isogloss server. Any number of threads may share one.

    Every call has a deadline, is tried again where that may help, and is split where it is larger than the server's
    limits. Nothing is sent before the first call. Make a client after forking, not before.

    Every call raises one of the errors that isogloss.errors draws, such as InvalidArgumentError where an argument is
    wrong, UnavailableError where no server answers, and DeadlineExceededError when the time is up.

    Args:
        target: Where the server listens, such as "localhost:50051"; goes before the options' target.
        options: All else about the connection.
    """

    def embed(
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
        """Returns one vector for each text, in order.

        Args:
            texts: Any number of them, each with a character that is not white space.
            model: A ModelInfo.name; empty = the server's default.
            input_type: An InputType: what the texts are for.
            dimensions: How many numbers a vector has; 0 = the model's own, else one of ModelInfo.dimensions.
            element_type: An ElementType: how vectors cross the wire. The result's `vectors` are float32 anyway.
            truncation: A Truncation: what becomes of a text longer than the model reads; None = "end", or "error" for a
                model that does not offer "end".
            normalize: Whether to bring vectors to unit length.
            priority: A Priority: "bulk" for work that nobody waits for.
            allow_partial: Whether a text that fails becomes zeros and an entry of row_errors, not the call's error.
            space_id: Where not empty, the space that the vectors must lie in, such as that of an index.
            timeout_s: Seconds that the whole call may take; None = the options' timeout_s.

        Raises:
            SpaceMismatchError: The model's space is not `space_id`, or changed during the call.
        """
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
        return self._run(_embed.embed(self._known, arguments, side), timeout_s)

    def embed_many(
        self,
        texts: Iterable[str],
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
    ) -> Generator[EmbeddedChunk, None, None]:
        """Yields the vectors of any number of texts, in order and chunk by chunk, in the lane of bulk work.

        `texts` may come from any source, such as a file, and are read as they are needed: no more than `window_chunks`
        chunks ahead of the one that was yielded last, of at most `chunk_texts` texts each and within the server's
        limits. Where the source raises, that comes after the vectors of what it gave. All other arguments are as of
        `embed`.

        The work outlives lost connections and restarted servers, up to `patience_s` seconds of waiting without any
        answer; a chunk has half of them. It never changes space: give `space_id` when you resume it.

        Raises:
            SpaceMismatchError: The server's space is not `space_id`, or not that of the first chunk.
            IsoglossError: As of `embed`, after the chunks before the one at fault; rows are those of the whole.
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

    def similarity(
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
        """Returns the score of every query against every candidate, float32 [q, c].

        A side is a list of texts, which are embedded to unit length, or the Embeddings of an earlier call, or Vectors
        that the caller kept, which are taken as they are.

        Args:
            queries: One side.
            candidates: The other side; None compares the queries with themselves.
            model: A ModelInfo.name; empty = the server's default.
            metric: A Metric; greater is nearer for all of them.
            dimensions: How many numbers to compare of texts; 0 = as many as the other side's vectors have.
            query_type: An InputType: what the queries are for, where they are texts.
            candidate_type: An InputType: what the candidates are for, where they are texts.
            truncation: A Truncation: what becomes of a text longer than the model reads; None = "end", or "error" for a
                model that does not offer "end".
            priority: A Priority: "bulk" for work that nobody waits for.
            timeout_s: Seconds that the whole call may take; None = the options' timeout_s.

        Raises:
            SpaceMismatchError: The sides lie in two spaces (found before anything is sent), or not in the model's.
        """
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.similarity(self._known, arguments, sides), timeout_s)

    def pairwise(
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
        """Returns the score of query i against candidate i, float32 [n]. Both sides have as many rows.

        All arguments are as of `similarity`.
        """
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.pairwise(self._known, arguments, sides), timeout_s)

    def nearest(
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
        """Returns the candidates nearest to one query, best first, ties by lower row.

        At most `k`, and none that scores below `min_score`. All other arguments are as of `similarity`.
        """
        return self.nearest_many(
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
        )[0]

    def nearest_many(
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
        """Returns what `nearest` does, for each query; all other arguments are as of `similarity`."""
        shape = given.nearest_shape(k, min_score)
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.nearest(self._known, arguments, shape, sides), timeout_s)

    def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Returns whether the server, or `model` alone, can serve now, and how loaded it is."""
        return self._run(_embed.health(given.string("model", model)), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server offers, the default first."""
        return self._run(_embed.models(), timeout_s)
