"""The seam between plans and clients."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from isogloss.errors import DeadlineExceededError, IsoglossError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send: the name of the method, and its message."""

    method: str
    request: Any


Plan = Generator[Call, Any, Result]


class Run(Generic[Result]):
    """A plan under way, and the time that it has. While not `done`, `call` is what to send next."""

    call: Call
    result: Result

    def __init__(self, plan: Plan[Result], timeout_s: float) -> None:
        self.done = False
        self._plan = plan
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._step(lambda: next(plan))

    def left_s(self) -> float:
        """Returns the seconds that the next call may take; raises DeadlineExceededError where none are left."""
        left = self._deadline_s - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError(f"no answer within {self._timeout_s:g} s, all parts of the call together")
        return left

    def answer(self, response: Any) -> None:
        """Goes on with the response to `call`."""
        self._step(lambda: self._plan.send(response))

    def fail(self, error: IsoglossError) -> None:
        """Goes on after `call` failed; raises what the plan makes of the error."""
        self._step(lambda: self._plan.throw(error))

    def _step(self, step: Callable[[], Call]) -> None:
        try:
            self.call = step()
        except StopIteration as stop:
            self.result = stop.value
            self.done = True
