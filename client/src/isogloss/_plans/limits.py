"""How much one request may hold, learned from the server, and learned again where it no longer holds."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from isogloss._plans.run import Plan
from isogloss._plans.server import models
from isogloss.errors import InvalidArgumentError
from isogloss.results import ModelInfo

Result = TypeVar("Result")

UNLIMITED = sys.maxsize
SMALL_BYTES = 1 << 20
REASONS = frozenset({"TOO_MANY_TEXTS", "REQUEST_TOO_LARGE", "RESPONSE_TOO_LARGE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request to a model may hold, and the model's own dimensions (0 = unknown)."""

    max_texts: int = UNLIMITED
    max_request_bytes: int = UNLIMITED
    max_response_bytes: int = UNLIMITED
    max_pairs: int = UNLIMITED
    dimensions: int = 0

    @classmethod
    def of(cls, model: ModelInfo) -> "Limits":
        """Returns the limits that `model` announces; 0 announces none."""
        return cls(
            max_texts=model.max_texts or UNLIMITED,
            max_request_bytes=model.max_request_bytes or UNLIMITED,
            max_response_bytes=model.max_response_bytes or UNLIMITED,
            max_pairs=model.max_pairs or UNLIMITED,
            dimensions=next(iter(model.dimensions), 0),
        )


class KnownModels:
    """What the server of one channel offers, asked once and shared by all threads of its client.

    There is no lock: threads that start at the same moment may each ask, which costs a message. Waiting for one
    another would cost them their deadlines.
    """

    def __init__(self) -> None:
        self._models: list[ModelInfo] | None = None

    def within(self, model: str, rows: int, size_bytes: int, phase: Callable[[Limits], Plan[Result]]) -> Plan[Result]:
        """Returns what `phase`, about so many rows and bytes, returns under the limits of `model`.

        A single row cannot be split, so that its limits need not be known, unless it may be more than gRPC itself
        takes, which would refuse it without a reason. Where the server refuses a part as too
        large, its limits have changed since they were learned: they are learned again, once, and `phase` runs again.
        """
        if rows <= 1 and size_bytes <= SMALL_BYTES:
            return (yield from phase(Limits()))
        if self._models is None:
            yield from self._learn()
        try:
            return (yield from phase(self._limits(model)))
        except InvalidArgumentError as error:
            if error.reason not in REASONS:
                raise
        yield from self._learn()
        return (yield from phase(self._limits(model)))

    def learned(self, model: str) -> Plan[Limits]:
        """Returns the limits of `model` as they are now."""
        yield from self._learn()
        return self._limits(model)

    def _learn(self) -> Plan[None]:
        self._models = yield from models()

    def _limits(self, model: str) -> Limits:
        # The default model comes first. A model that is not listed is for the server to refuse, in its own words.
        named = (known for known in self._models or () if model in ("", known.name))
        found = next(named, None)
        return Limits() if found is None else Limits.of(found)
