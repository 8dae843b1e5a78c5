"""The blocking client."""

import os
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Never, Self

import grpc

from isogloss import _arguments, _bulk, _compare, _embed
from isogloss._base_client import BaseClient, RunningCall
from isogloss._channel import open_blocking
from isogloss._embed import Call, Pause, Plan, Result
from isogloss._failures import from_rpc_error
from isogloss.errors import IsoglossError
from isogloss.options import ClientOptions
from isogloss.results import EmbeddedChunk, Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores, Vectors
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub


class Client(BaseClient):
    """Embeds and compares texts on an Isogloss server. Any number of threads may share a client.

    Calls have a deadline (embed_many: a retry budget), are retried after transient failures, and are split if they
    exceed the server's limits. The client connects with the first call. Create it after forking a process, not before.

    Args:
        target: Address of the server, such as "localhost:50051"; overrides the target of the options.
        options: All other settings of the connection.

    Raises:
        TypeError: A setting of the options is passed as an argument of its own.
    """

    def __init__(self, target: str | None = None, *, options: ClientOptions | None = None, **misplaced: Never) -> None:
        super().__init__(target, options, misplaced)
        self._channel = open_blocking(self._options)
        self._stub = EmbeddingServiceStub(self._channel)
        self._closing = threading.Event()

    def embed(
        self,
        texts: Iterable[str],
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
        """Embeds texts: one vector per text, in order.

        A call that exceeds the server's limits is split into several requests, and the responses are joined.

        Args:
            texts: The texts, any number. Each needs a character other than white space.
            model: Name of a served model, see `models`; empty selects the server's default.
            input_type: Use of the texts, a value of InputType. Models without roles ignore it.
            dimensions: Length of each vector, one of ModelInfo.dimensions; 0 selects the model's own.
            element_type: Number format of the vectors in the response, a value of ElementType. `Embeddings.vectors` is
                float32 for every format.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            normalize: True scales vectors to unit length.
            priority: A value of Priority: "bulk" yields to "interactive" calls of other clients.
            allow_partial: True returns zeros and a `row_errors` entry for a text that fails; False raises the error.
            space_id: Required embedding space, such as that of an index; empty accepts any.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            Embeddings with `vectors` float32 [n, d]. Rows have unit length if `normalize` and `element_type` is
            "float32" (up to rounding also for "float16").

        Raises:
            InvalidArgumentError: An argument or a text is invalid; `violations` name it.
            SpaceMismatchError: The model's space is not `space_id`, or changed during the call.
            IsoglossError: Another failure, see isogloss.errors.
        """
        arguments = _arguments.embed_arguments(
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
        side = _arguments.texts("texts", texts, arguments.input_type)
        return self._run(_embed.embed(self._limits, arguments, side), timeout_s)

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
        """Embeds any number of texts, and yields the vectors in chunks, in the order of the texts.

        Several requests of the priority "bulk" are in flight at a time. Lost connections and restarts of the server do
        not end the call: chunks without a response are sent again. If the source of the texts raises, its error is
        raised after the chunks before it. Leaving the loop early cancels the requests in flight.

        Args:
            texts: The texts, from any iterable, such as the lines of a file. At most `window_chunks` chunks are read
                ahead of the last chunk yielded.
            model: Name of a served model, see `models`; empty selects the server's default.
            input_type: Use of the texts, a value of InputType. Models without roles ignore it.
            dimensions: Length of each vector, one of ModelInfo.dimensions; 0 selects the model's own.
            element_type: Number format of the vectors in the responses, a value of ElementType.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            normalize: True scales vectors to unit length.
            allow_partial: True returns zeros and a `row_errors` entry for a text that fails; False raises the error.
            space_id: Required embedding space; empty accepts that of the first chunk. Set it when you resume a run.
            chunk_texts: Maximum number of texts per chunk. The server's limits may make chunks smaller.
            window_chunks: Maximum number of chunks held in memory.
            patience_s: Retry budget: the call fails after this many seconds of waiting without a response. After half
                of it, the requests in flight are sent again.

        Yields:
            Chunks with `embeddings.vectors` float32 [n, d], as from `embed`.

        Raises:
            InvalidArgumentError: An argument or a text is invalid; rows in it count from the first text of the call.
            SpaceMismatchError: The server's space is not `space_id`, or changed during the call.
            IsoglossError: Another failure, see isogloss.errors. Raised after the chunks before the failed one.
        """
        arguments = _arguments.embed_arguments(
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
        bulk = _arguments.bulk_arguments(chunk_texts=chunk_texts, window_chunks=window_chunks, patience_s=patience_s)
        texts = _arguments.text_source("texts", texts, Iterable)
        self._check_usable()
        self._check_threads()
        source = iter(texts)
        plan = _bulk.BulkEmbed(self._limits, arguments, bulk, self._bulk_timing).steps()
        return self._run_many(plan, source, patience_s)

    def similarity(
        self,
        queries: Iterable[str] | Embeddings | Vectors,
        candidates: Iterable[str] | Embeddings | Vectors | None = None,
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
        """Computes the score of each query with each candidate.

        Texts are embedded as vectors of unit length; vectors are compared as they are.

        Args:
            queries: Texts, the result of an `embed`, or stored Vectors.
            candidates: The same for the other side; None compares the queries with each other.
            model: Name of a served model, see `models`; empty selects the server's default.
            metric: A value of Metric; higher scores are nearer for all of them.
            dimensions: Length of the vectors of texts; 0 selects that of the other side's vectors, or the model's own.
            query_type: Use of queries that are texts, a value of InputType.
            candidate_type: Use of candidates that are texts, a value of InputType.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            priority: A value of Priority: "bulk" yields to "interactive" calls of other clients.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            Scores with `values` float32 [q, c].

        Raises:
            InvalidArgumentError: An argument or a text is invalid; `violations` name it.
            SpaceMismatchError: The spaces of the two sides differ, or differ from the model's.
            IsoglossError: Another failure, see isogloss.errors.
        """
        arguments = _arguments.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = _arguments.sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.similarity(self._limits, arguments, sides), timeout_s)

    def pairwise(
        self,
        queries: Iterable[str] | Embeddings | Vectors,
        candidates: Iterable[str] | Embeddings | Vectors,
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
        """Computes the score of query i with candidate i.

        Texts are embedded as vectors of unit length; vectors are compared as they are.

        Args:
            queries: Texts, the result of an `embed`, or stored Vectors.
            candidates: The same for the other side, with as many rows.
            model: Name of a served model, see `models`; empty selects the server's default.
            metric: A value of Metric; higher scores are nearer for all of them.
            dimensions: Length of the vectors of texts; 0 selects that of the other side's vectors, or the model's own.
            query_type: Use of queries that are texts, a value of InputType.
            candidate_type: Use of candidates that are texts, a value of InputType.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            priority: A value of Priority: "bulk" yields to "interactive" calls of other clients.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            PairScores with `values` float32 [n].

        Raises:
            InvalidArgumentError: An argument or a text is invalid; `violations` name it.
            SpaceMismatchError: The spaces of the two sides differ, or differ from the model's.
            IsoglossError: Another failure, see isogloss.errors.
        """
        arguments = _arguments.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = _arguments.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.pairwise(self._limits, arguments, sides), timeout_s)

    def nearest(
        self,
        query: str,
        candidates: Iterable[str] | Embeddings | Vectors,
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
        """Finds the candidates nearest to one query.

        Texts are embedded as vectors of unit length; vectors are compared as they are.

        Args:
            query: The text to find neighbours of.
            candidates: Texts, the result of an `embed`, or stored Vectors.
            k: Maximum number of neighbours.
            min_score: Minimum score of a neighbour; None sets no minimum.
            model: Name of a served model, see `models`; empty selects the server's default.
            metric: A value of Metric; higher scores are nearer for all of them.
            dimensions: Length of the vectors of texts; 0 selects that of the other side's vectors, or the model's own.
            query_type: Use of queries that are texts, a value of InputType.
            candidate_type: Use of candidates that are texts, a value of InputType.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            priority: A value of Priority: "bulk" yields to "interactive" calls of other clients.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            Neighbors, at most k, best first, ties ordered by row.

        Raises:
            InvalidArgumentError: An argument or a text is invalid; `violations` name it.
            SpaceMismatchError: The spaces of the two sides differ, or differ from the model's.
            IsoglossError: Another failure, see isogloss.errors.
        """
        shape = _arguments.nearest_shape(k, min_score)
        arguments = _arguments.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        queries = [_arguments.string("query", query)]
        sides = _arguments.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.nearest_to_one(self._limits, arguments, shape, sides), timeout_s)

    def nearest_many(
        self,
        queries: Iterable[str] | Embeddings | Vectors,
        candidates: Iterable[str] | Embeddings | Vectors,
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
        """Finds the candidates nearest to each query.

        Texts are embedded as vectors of unit length; vectors are compared as they are.

        Args:
            queries: Texts, the result of an `embed`, or stored Vectors.
            candidates: Texts, the result of an `embed`, or stored Vectors.
            k: Maximum number of neighbours per query.
            min_score: Minimum score of a neighbour; None sets no minimum.
            model: Name of a served model, see `models`; empty selects the server's default.
            metric: A value of Metric; higher scores are nearer for all of them.
            dimensions: Length of the vectors of texts; 0 selects that of the other side's vectors, or the model's own.
            query_type: Use of queries that are texts, a value of InputType.
            candidate_type: Use of candidates that are texts, a value of InputType.
            truncation: Treatment of texts over ModelInfo.max_tokens, a value of Truncation. None selects "end", or
                "error" for a model that does not support "end".
            priority: A value of Priority: "bulk" yields to "interactive" calls of other clients.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            Neighbors of each query, at most k, best first, ties ordered by row.

        Raises:
            InvalidArgumentError: An argument or a text is invalid; `violations` name it.
            SpaceMismatchError: The spaces of the two sides differ, or differ from the model's.
            IsoglossError: Another failure, see isogloss.errors.
        """
        shape = _arguments.nearest_shape(k, min_score)
        arguments = _arguments.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = _arguments.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_compare.nearest(self._limits, arguments, shape, sides), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Lists the loaded models, the default model first.

        Args:
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            A ModelInfo for each model, with the limits of one request to it.

        Raises:
            IsoglossError: The call failed, see isogloss.errors.
        """
        return self._run(_embed.models(), timeout_s)

    def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Reports the health and load of the server.

        Args:
            model: Name of a model to report alone; empty reports all models.
            timeout_s: Time limit of the whole call in seconds; None selects that of the options.

        Returns:
            A HealthReport, whose status is that of the worst reported model.

        Raises:
            NotFoundError: The server does not serve `model`.
            IsoglossError: Another failure, see isogloss.errors.
        """
        return self._run(_embed.health(_arguments.string("model", model)), timeout_s)

    def wait_until_ready(self, timeout_s: float | None = None, *, model: str = "") -> HealthReport:
        """Waits until the server is reachable and ready, such as at the start of a service or in a test.

        Args:
            timeout_s: Time limit in seconds; None selects that of the options.
            model: Name of a model to wait for alone; empty waits for all models.

        Returns:
            The HealthReport of a server that serves, possibly DEGRADED.

        Raises:
            DeadlineExceededError: The server was not ready in time; the message has the last problem.
            NotFoundError: The server does not serve `model`.
            IsoglossError: Another failure, see isogloss.errors.
        """
        plan = _embed.ready(_arguments.string("model", model))
        return self._run(plan, timeout_s, wait_for_ready=True)

    def close(self) -> None:
        """Closes the connection; running calls raise CallCancelledError. Closing twice has no effect."""
        self._closed = True
        self._closing.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self, plan: Plan[Result], timeout_s: float | None, *, wait_for_ready: bool = False) -> Result:
        """Sends the requests of `plan`, waits where it pauses, and returns its result."""
        running = self._start(timeout_s, wait_for_ready=wait_for_ready)
        advance = partial(next, plan)
        while True:
            try:
                step = advance()
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            try:
                reply = self._perform(step, running)
            except IsoglossError as error:
                advance = partial(plan.throw, error)
            else:
                advance = partial(plan.send, reply)

    def _perform(self, step: Call | Pause, running: RunningCall) -> Any:
        if isinstance(step, Call):
            return self._send(step, running)
        return self._sleep(running.pause_s(step.seconds, step.problem))

    def _send(self, call: Call, running: RunningCall) -> Any:
        """Sends one request, again after transient failures, and returns its response."""
        method = getattr(self._stub, call.method)
        while True:
            try:
                if self._checks_key:
                    response, state = method.with_call(call.request, **self._call_options(running))
                    self._check_key(state.trailing_metadata())
                else:
                    response = method(call.request, **self._call_options(running))
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
            except ValueError:  # raised by grpc for a closed channel
                self._check_open()
                raise
            else:
                self._reached = True
                running.answered()
                return response
            # Outside the handler above, so that tracebacks do not have grpc's exception.
            self._sleep(self._retry_delay_s(error, running))

    def _sleep(self, seconds: float) -> None:
        """Waits; raises CallCancelledError if the client is closed meanwhile."""
        if self._closing.wait(seconds):
            raise self._closed_during_call()

    def _run_many(
        self, plan: _bulk.Steps, texts: Iterator[str], patience_s: float
    ) -> Generator[EmbeddedChunk, None, None]:
        """Executes the steps of `plan` and yields its chunks; cancels the calls in flight in the end."""
        running, calls = self._start_patient(patience_s), _CallsInFlight()
        advance = partial(next, plan)
        try:
            while True:
                try:
                    step = advance()
                except StopIteration:
                    return
                if isinstance(step, _bulk.Emit):
                    yield step.chunk
                    advance = partial(next, plan)
                    continue
                try:
                    advance = partial(plan.send, self._execute(step, calls, texts, running))
                except Exception as error:  # noqa: BLE001 - the plan handles it or raises it again
                    advance = partial(plan.throw, error)
        finally:
            # While the interpreter shuts down, its threads are frozen and hold the locks that cancel() needs.
            if not sys.is_finalizing():
                calls.cancel()

    def _execute(self, step: _bulk.Step, calls: "_CallsInFlight", texts: Iterator[str], running: RunningCall) -> Any:
        """Executes one step and returns the reply for the plan."""
        if self._closed or os.getpid() != self._process:
            raise self._interrupted()
        match step:
            case Call():
                return self._send(step, running)
            case _bulk.Read(chunker):
                return any(chunker.add(text) or calls.any_ended for text in texts)
            case _bulk.Send():
                return self._send_chunk(step, calls)
            case _bulk.Cancel():
                return calls.cancel()
            case _bulk.Receive(timeout_s):
                return calls.receive(timeout_s) if calls else self._sleep(timeout_s)

    def _send_chunk(self, send: _bulk.Send, calls: "_CallsInFlight") -> None:
        running = self._start_patient(send.timeout_s)
        try:
            call = self._stub.Embed.future(send.request, **self._call_options(running))
        except ValueError:  # raised by grpc for a closed channel
            if self._closed:
                raise self._closed_during_call() from None
            raise
        calls.add(send.chunk, call, running)


class _CallsInFlight:
    """The calls in flight of one embed_many. A thread that gRPC has for each channel queues those that end."""

    def __init__(self) -> None:
        self._calls: dict[_bulk.Chunk, tuple[Any, RunningCall]] = {}
        self._ended: SimpleQueue[_bulk.Chunk] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def any_ended(self) -> bool:
        """True if `receive` returns at once."""
        return not self._ended.empty()

    def add(self, chunk: _bulk.Chunk, call: Any, running: RunningCall) -> None:
        """Adds the call for a chunk."""
        self._calls[chunk] = call, running
        ended = self._ended
        call.add_done_callback(lambda _: ended.put(chunk))

    def receive(self, timeout_s: float) -> tuple[_bulk.Chunk, Any] | None:
        """Returns a chunk whose call has ended, with the response or the error, or None after `timeout_s`."""
        try:
            chunk = self._ended.get(timeout=timeout_s) if timeout_s > 0 else self._ended.get_nowait()
        except Empty:
            return None
        call, running = self._calls.pop(chunk)
        try:
            return chunk, call.result()
        except grpc.RpcError as failure:
            return chunk, running.described(from_rpc_error(failure))

    def cancel(self) -> None:
        """Cancels all calls, and forgets them."""
        for call, _ in self._calls.values():
            call.cancel()
        self._calls, self._ended = {}, SimpleQueue()
