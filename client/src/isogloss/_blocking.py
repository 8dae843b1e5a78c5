"""How the blocking client runs a plan: it waits in the caller's thread."""

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self

import grpc

from isogloss._arguments import BulkArguments, EmbedArguments, many_texts
from isogloss._base import BaseClient
from isogloss._channel import open_blocking
from isogloss._failures import from_rpc_error
from isogloss._plans import Call, Plan, steps
from isogloss._plans.run import Result
from isogloss.errors import IsoglossError
from isogloss.options import ClientOptions
from isogloss.results import EmbeddedChunk
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub

THREAD = "isogloss-embed-many"


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

    def _chunks(self, plan: steps.Steps, texts: Iterator[str]) -> Generator[EmbeddedChunk, None, None]:
        """Yields what `plan` gives, and leaves no stream behind, however it ends."""
        stream = _Stream()
        go_on = partial(next, plan)
        try:
            while True:
                try:
                    step = go_on()
                except StopIteration:
                    return
                if isinstance(step, steps.Give):
                    yield step.chunk
                    go_on = partial(next, plan)
                    continue
                try:
                    go_on = partial(plan.send, self._take(step, stream, texts))
                except Exception as error:  # noqa: BLE001 - the plan decides what it means
                    go_on = partial(plan.throw, error)
        finally:
            stream.drop()

    def _take(self, step: steps.Step, stream: "_Stream", texts: Iterator[str]) -> Any:  # noqa: PLR0911 - a table
        """Takes one step, and returns what the plan is to be told."""
        self._require_under_way()
        match step:
            case Call():
                return self._send(step, self._options.timeout_s)
            case steps.Read(chunker):
                return any(chunker.add(text) for text in texts)
            case steps.Open():
                return stream.open(self._open)
            case steps.Send(request):
                return stream.send(request)
            case steps.HalfClose():
                return stream.half_close()
            case steps.Drop():
                return stream.drop()
            case steps.Receive(timeout_s):
                return stream.receive(timeout_s)
            case steps.Pause(seconds):
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
        inbox.put(steps.END)
