"""The fake server: its service, and stream."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import grpc

from isogloss.errors import InternalError, IsoglossError, error_class
from isogloss.testing._engine import Answers, Settings, abort, compare, refusal, to_status
from isogloss.testing._script import Gate, Received, Script
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from isogloss.wire.status import REQUEST_ID_TRAILER

WINDOW_REQUESTS = 32  # unanswered, before no more is read
HOST = "127.0.0.1"
CALLS_AT_ONCE = 256  # threads are made as they are needed
OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server would bind a taken port without a word
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class Stream:
    """One stream. A thread reads it, and another one answers each message, so that one that is held stops no other.

    Args:
        requests: The messages of the caller, as grpc gives them.
        context: grpc's, of the call.
        arrive: Called with each message in order; what it raises ends the stream, after the answers to all before.
        answer: Called with each message in a thread of its own; what it raises answers for that message alone.
    """

    def __init__(
        self,
        requests: Iterator[pb.EmbedStreamRequest],
        context: Any,
        arrive: Callable[[pb.EmbedStreamRequest], None],
        answer: Callable[[pb.EmbedStreamRequest], pb.EmbedResponse],
    ) -> None:
        self._requests, self._context = requests, context
        self._arrive, self._answer = arrive, answer
        self._changed = threading.Condition()
        self._in_flight: dict[int, threading.Thread] = {}
        self._ready: SimpleQueue[pb.EmbedStreamResponse | IsoglossError | None] = SimpleQueue()

    def responses(self) -> Iterator[pb.EmbedStreamResponse]:
        """Yields the answers; raises the error that ends the stream."""
        self._context.add_callback(self._wake)
        threading.Thread(target=self._read, daemon=True).start()
        while (found := self._ready.get()) is not None:
            if isinstance(found, IsoglossError):
                raise found
            with self._changed:
                del self._in_flight[found.id]  # before the caller sees the answer, and may use the id again
                self._changed.notify_all()
            yield found

    def _read(self) -> None:
        end: IsoglossError | None = None
        try:
            for request in self._requests:
                try:
                    self._arrive(request)
                except IsoglossError as error:
                    end = error
                    break
                self._take(request)
        except IsoglossError as error:  # an id used twice: what is in flight stays unanswered
            self._ready.put(error)
            return
        except grpc.RpcError:  # the caller is gone, or the server stops
            pass
        for thread in list(self._in_flight.values()):
            thread.join()
        self._ready.put(end)

    def _take(self, request: pb.EmbedStreamRequest) -> None:
        thread = threading.Thread(target=self._respond, args=(request,), daemon=True)
        with self._changed:
            if request.id in self._in_flight:
                raise refusal("DUPLICATE_ID", "the id is still in flight", "id", id=request.id)
            self._in_flight[request.id] = thread
        thread.start()
        with self._changed:
            self._changed.wait_for(lambda: len(self._in_flight) < WINDOW_REQUESTS or not self._context.is_active())

    def _respond(self, request: pb.EmbedStreamRequest) -> None:
        response = pb.EmbedStreamResponse(id=request.id)
        try:
            response.response.CopyFrom(self._answer(request))
        except IsoglossError as error:
            response.error.CopyFrom(to_status(error))
        except Exception as error:  # noqa: BLE001 - without an answer, the caller would wait for ever
            response.error.CopyFrom(to_status(InternalError(f"the fake server failed: {error!r}", reason="INTERNAL")))
        self._ready.put(response)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


Request = TypeVar("Request")


Response = TypeVar("Response")


class Service(EmbeddingServiceServicer):
    """One method for each RPC."""

    def __init__(self, settings: Settings, script: Script) -> None:
        self._settings = settings
        self._script = script
        self._answers = Answers(settings)

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802 - the contract's name
        """Texts to one row vector each."""
        return self._answer("Embed", request, context, self._answers.embed)

    def EmbedStream(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.EmbedStreamResponse]:
        """Embed, many at a time on one stream. Each message is an Embed to gates and faults as well."""
        trailers = _trailers(context)

        def arrive(message: pb.EmbedStreamRequest) -> None:
            """Takes a message down, and ends the stream where that was planned."""
            self._script.record("EmbedStream", message, context)
            self._script.act("EmbedStream", context)

        def answer(message: pb.EmbedStreamRequest) -> pb.EmbedResponse:
            """Returns the vectors of a message, within its own time."""
            timeout_s = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else None
            self._script.act("Embed", context, timeout_s)
            return self._answers.embed(message.request)

        try:
            yield from Stream(request_iterator, context, arrive, answer).responses()
        except IsoglossError as error:
            abort(context, error, trailers)

    def Similarity(self, request: pb.SimilarityRequest, context: Any) -> pb.SimilarityResponse:  # noqa: N802
        """Scores of queries against candidates."""
        return self._answer("Similarity", request, context, lambda r: compare(self._settings, self._answers, r))

    def Health(self, request: pb.HealthRequest, context: Any) -> pb.HealthResponse:  # noqa: N802
        """How the model fares."""
        return self._answer("Health", request, context, self._answers.health)

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """What the model is."""
        return self._answer("ListModels", request, context, self._answers.models)

    def _answer(self, method: str, request: Request, context: Any, answer: Callable[[Request], Response]) -> Response:
        trailers = _trailers(context)
        try:
            self._script.record(method, request, context)
            self._script.act(method, context)
            return answer(request)
        except IsoglossError as error:
            abort(context, error, trailers)


def _trailers(context: Any) -> tuple[tuple[str, str], ...]:
    """Returns the trailers of every call, and sets them for one that succeeds."""
    given = {key: value for key, value in context.invocation_metadata()}  # noqa: C416 - pairs of grpc's own kind
    trailers = ((REQUEST_ID_TRAILER, given.get(REQUEST_ID_TRAILER) or uuid.uuid4().hex),)
    context.set_trailing_metadata(trailers)
    return trailers


@dataclass(kw_only=True, eq=False)
class FakeServer(Settings):
    """An Isogloss server in this process, with repeatable vectors and scripted faults; see isogloss.testing.

    Use it as a context manager, or call `start` and `stop`. Any number may run at once.

    Attributes:
        requests: Every request as it arrived, in order: a list that a test may read and clear.
    """

    requests: list[Received] = field(default_factory=list, init=False, repr=False)
    _port: int = field(default=0, init=False, repr=False)
    _running: tuple[grpc.Server, ThreadPoolExecutor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._script = Script(self.requests)
        self._service = Service(self, self._script)

    @property
    def target(self) -> str:
        """Where the server listens: what to give to a Client. It stays the same when the server starts again.

        Raises:
            RuntimeError: The server has never been started.
        """
        if not self._port:
            raise RuntimeError("the server has no address before its start: with FakeServer() as server: ...")
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Begins to listen: on a free port, or from the second time on, on the same. Does nothing where it runs."""
        if self._running is not None:
            return
        threads = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="isogloss-fake-server")
        server = grpc.server(threads, options=OPTIONS)
        add_EmbeddingServiceServicer_to_server(self._service, server)
        self._port = server.add_insecure_port(f"{HOST}:{self._port}")
        server.start()
        self._running = server, threads

    def stop(self) -> None:
        """Drops every connection and call, as a server that is killed does. Does nothing where none runs."""
        if self._running is None:
            return
        server, threads = self._running
        self._running = None
        server.stop(None).wait()
        threads.shutdown()

    def drop_connections(self) -> None:
        """Ends every call with UNAVAILABLE and every connection; the next ones are taken at once."""
        self.stop()
        self.start()

    def fail_next(
        self,
        method: str,
        *,
        code: str = "UNAVAILABLE",
        reason: str = "OVERLOADED",
        message: str = "a scripted fault",
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        times: int = 1,
    ) -> None:
        """Makes the next calls of a method fail, after those that were told to before.

        A client of isogloss tries again by itself, up to ClientOptions.attempts times in all, what is UNAVAILABLE or
        RESOURCE_EXHAUSTED: with `times` below that the program under test sees no failure, only that it took longer.

        Args:
            method: "Embed" (a message of an EmbedStream counts too, and then fails alone), "EmbedStream" (ends the
                stream instead of reading its next message), "Similarity", "Health" or "ListModels".
            code: The gRPC status.
            reason: The ErrorInfo's reason; empty = an error without details, as of a proxy.
            message: The sentence for people.
            retry_after_s: Seconds that the caller is asked to wait.
            retryable: False tells the caller that trying again is pointless; None = as is usual for the code.
            times: How many calls fail.

        Raises:
            ValueError: There is no such method or code.
        """
        if code not in grpc.StatusCode.__members__ or code == "OK":
            raise ValueError(f"a code is the name of a gRPC status that is an error, not {code!r}")
        kind = error_class(code, reason)
        fault = kind(message, code=code, reason=reason, retry_after_s=retry_after_s, retryable=retryable)
        self._script.plan(method, fault, times)

    def hold(self, method: str) -> Gate:
        """Returns a gate that holds calls of a method, as of `fail_next`, until it is opened.

        with server.hold("Embed") as gate:
            future = executor.submit(program)
            gate.wait_until_held()
            ...  # what happens while the call is under way
        future.result()

        Raises:
            ValueError: There is no such method.
        """
        return self._script.hold(method)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
