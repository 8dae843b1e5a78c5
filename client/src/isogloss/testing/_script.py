"""What a test has told the fake server to do next, and what the server was asked."""

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from isogloss.errors import DeadlineExceededError, IsoglossError

METHODS = ("Embed", "EmbedStream", "Similarity", "Health", "ListModels")


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived. A call that gRPC tried again arrived as often; each message of a stream is a request.

    Attributes:
        method: The method's name, such as "Embed"; "EmbedStream" for a message of a stream.
        request: The message: an isogloss.v1 EmbedRequest, EmbedStreamRequest and so on.
        metadata: What came with the call, such as "authorization".
        timeout_s: Seconds that the caller allowed; None = any number.
    """

    method: str
    request: Any
    metadata: Mapping[str, str | bytes]
    timeout_s: float | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The request's texts, in order; of a Similarity, the queries' before the candidates'."""
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

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = False
        self._held = 0

    def open(self) -> None:
        """Lets the held calls go on, and later ones pass."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_until_held(self, calls: int = 1, timeout_s: float = 30.0) -> None:
        """Returns once so many calls are held; raises TimeoutError where they do not come in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held >= calls, timeout_s):
                raise TimeoutError(f"{self._held} calls came within {timeout_s:g} s, not {calls}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.open()

    def _pass(self, context: Any, timeout_s: float | None) -> None:
        context.add_callback(self._wake)
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            in_time = self._changed.wait_for(lambda: self._open or not context.is_active(), timeout_s)
            self._held -= 1
        if not in_time:
            raise DeadlineExceededError("the request's own timeout has passed", reason="DEADLINE_EXCEEDED")

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Script:
    """Records requests, holds them at gates, and gives them the faults that were planned."""

    def __init__(self, requests: list[Received]) -> None:
        self._requests = requests
        self._lock = threading.Lock()
        self._faults: defaultdict[str, deque[IsoglossError]] = defaultdict(deque)
        self._gates: dict[str, Gate] = {}

    def plan(self, method: str, error: IsoglossError, times: int) -> None:
        """Makes the next `times` calls of `method` fail, after those planned before."""
        with self._lock:
            self._faults[_known(method)].extend([error] * times)

    def hold(self, method: str) -> Gate:
        """Returns a gate that holds calls of `method` from now on."""
        gate = Gate()
        with self._lock:
            earlier = self._gates.get(_known(method))
            self._gates[method] = gate
        if earlier is not None:
            earlier.open()
        return gate

    def record(self, method: str, request: Any, context: Any) -> None:
        """Takes the request down."""
        metadata = {str(key): value for key, value in context.invocation_metadata()}
        self._requests.append(Received(method, request, metadata, context.time_remaining()))

    def act(self, method: str, context: Any, timeout_s: float | None = None) -> None:
        """Waits at the gate, then raises the fault that is next."""
        gate = self._gates.get(method)
        if gate is not None:
            gate._pass(context, timeout_s)  # noqa: SLF001 - not for users of the gate
        self.fail(method)

    def fail(self, method: str) -> None:
        """Raises the fault that is next, if any is."""
        with self._lock:
            fault = self._faults[method].popleft() if self._faults[method] else None
        if fault is not None:
            raise fault


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"a method is one of {', '.join(METHODS)}, not {method!r}")
    return method
