"""The script of the fake server: recorded requests, gates that hold calls, and scripted errors."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from isogloss.errors import DeadlineExceededError, IsoglossError

METHODS = ("Embed", "EmbedStream", "Similarity", "Health", "ListModels")


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived. Each attempt of a call and each message of a stream is a request.

    Attributes:
        method: Name of the method, such as "Embed"; "EmbedStream" for a message of a stream.
        request: The message: an isogloss.v1 EmbedRequest, EmbedStreamRequest and so on.
        metadata: Metadata of the call, such as "authorization".
        timeout_s: Seconds until the deadline of the call; None without a deadline.
    """

    method: str
    request: Any
    metadata: Mapping[str, str | bytes]
    timeout_s: float | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts of the request, in order; of a Similarity, the queries before the candidates."""
        match self.method:
            case "Embed":
                return tuple(self.request.texts)
            case "EmbedStream":
                return tuple(self.request.request.texts)
            case "Similarity":
                return (*self.request.queries.texts.texts, *self.request.candidates.texts.texts)
            case _:
                return ()


class Gate:
    """Holds calls until it is opened, by `open` or at the end of its `with` block."""

    def __init__(self, after: int = 0, times: int | None = None) -> None:
        self._changed = threading.Condition()
        self._open = False
        self._held = 0
        self._arrived, self._first = 0, after
        self._end = None if times is None else after + times

    def open(self) -> None:
        """Releases the held calls. Later calls are not held."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_until_held(self, calls: int = 1, timeout_s: float = 30.0) -> None:
        """Waits until at least `calls` calls are held; raises TimeoutError after `timeout_s` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held >= calls, timeout_s):
                raise TimeoutError(f"{self._held} calls arrived within {timeout_s:g} s; expected {calls}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.open()

    def _holds_next(self) -> bool:
        """Counts a call in the order of arrival, and returns True if the gate is to hold it."""
        with self._changed:
            number = self._arrived
            self._arrived += 1
            return self._first <= number and (self._end is None or number < self._end)

    def _pass(self, context: Any, timeout_s: float | None) -> None:
        context.add_callback(self._wake)
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            in_time = self._changed.wait_for(lambda: self._open or not context.is_active(), timeout_s)
            self._held -= 1
        if not in_time:
            raise DeadlineExceededError("the timeout of the request has passed", reason="DEADLINE_EXCEEDED")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Step:
    """The part of the script that applies to one call: a gate to pass, then an error to raise."""

    gate: Gate | None
    error: IsoglossError | None

    def run(self, context: Any, timeout_s: float | None = None) -> None:
        """Waits at the gate, then raises the error."""
        if self.gate is not None:
            self.gate._pass(context, timeout_s)  # noqa: SLF001 - not part of the gate's public interface
        if self.error is not None:
            raise self.error


class Script:
    """Records requests, and assigns gates and scripted errors to calls in the order of arrival."""

    def __init__(self, requests: list[Received]) -> None:
        self.on_request: Callable[[Received], None] | None = None
        self.streams = 0
        self._requests = requests
        self._idle = threading.Condition()
        self._in_progress = 0
        self._lock = threading.Lock()
        self._errors: defaultdict[str, deque[IsoglossError | None]] = defaultdict(deque)
        self._gates: dict[str, Gate] = {}

    def fail(self, method: str, error: IsoglossError, *, times: int, after: int) -> None:
        """Schedules `error` for `times` calls of `method`, after the calls scheduled before and `after` successes."""
        with self._lock:
            self._errors[_known(method)].extend([None] * after + [error] * times)

    def hold(self, method: str, *, after: int, times: int | None) -> Gate:
        """Returns a new gate that holds `times` calls of `method`, or all, after the next `after` calls."""
        gate = Gate(after, times)
        with self._lock:
            earlier = self._gates.get(_known(method))
            self._gates[method] = gate
        if earlier is not None:
            earlier.open()
        return gate

    def begin(self, method: str, context: Any) -> None:
        """Counts a call until it ends."""
        with self._idle:
            self._in_progress += 1
            self.streams += method == "EmbedStream"
        if not context.add_callback(self._end):
            self._end()

    def wait_until_idle(self, timeout_s: float) -> None:
        """Waits until no call is in progress; raises TimeoutError after `timeout_s` seconds."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._in_progress, timeout_s):
                raise TimeoutError(f"{self._in_progress} calls are still in progress after {timeout_s:g} s")

    def _end(self) -> None:
        with self._idle:
            self._in_progress -= 1
            self._idle.notify_all()

    def record(self, method: str, request: Any, context: Any) -> None:
        """Records a request and passes it to `on_request`."""
        metadata = {str(key): value for key, value in context.invocation_metadata()}
        received = Received(method, request, metadata, context.time_remaining())
        self._requests.append(received)
        if self.on_request is not None:
            self.on_request(received)

    def next_step(self, method: str) -> Step:
        """Returns the gate and the error of the call of `method` that has just arrived."""
        with self._lock:
            gate = self._gates.get(method)
            error = self._errors[method].popleft() if self._errors[method] else None
        if gate is not None and not gate._holds_next():  # noqa: SLF001 - not part of the gate's public interface
            gate = None
        return Step(gate, error)


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return method
