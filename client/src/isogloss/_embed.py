"""Plans of single calls: splits an embed by the server's limits, and joins the parts.

A plan is a generator without input or output of its own: it yields a Call, receives the response or the exception, and
returns the result. The blocking and the asyncio client run the same plans.
"""

import re
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np

from isogloss._arguments import EmbedArguments, TextSide, refusal
from isogloss._messages import (
    bad_answer,
    embed_request,
    health_request,
    models_request,
    read_embed,
    read_health,
    read_models,
)
from isogloss.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    IsoglossError,
    SpaceMismatchError,
)
from isogloss.results import Embeddings, HealthReport, ModelInfo, Timings, read_only
from isogloss.wire.sizes import embed_response_bytes

UNLIMITED = sys.maxsize
SMALL_BYTES = 1 << 20
REASONS = frozenset({"TOO_MANY_TEXTS", "REQUEST_TOO_LARGE", "RESPONSE_TOO_LARGE"})
TEXT_PATH = re.compile(r"\btexts\[(\d+)\]")


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


def health(model: str) -> Plan[HealthReport]:
    """Returns how the server, or `model` alone, fares."""
    response = yield Call("Health", health_request(model))
    return read_health(response)


def models() -> Plan[list[ModelInfo]]:
    """Returns the models that the server offers, the default first."""
    response = yield Call("ListModels", models_request())
    return read_models(response)


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


def embed(known: KnownModels, arguments: EmbedArguments, side: TextSide, path: str = "") -> Plan[Embeddings]:
    """Returns the vectors of `side`; errors name its texts after `path`, by their rows in the whole of it.

    Raises:
        SpaceMismatchError: The server changed the model between two parts.
    """
    parts: list[Embeddings] = []

    def remaining(limits: Limits) -> Plan[None]:
        """Embeds what `parts` does not have yet."""
        start = sum(map(len, parts))
        while start < len(side) or not parts:  # the server refuses an empty list, not the client
            stop = _end_of_part(side.sizes, start, arguments, limits, path)
            part = yield from _embed_part(_pinned(arguments, parts), side.texts[start:stop], start, path)
            parts.append(part)
            start = stop

    yield from known.within(arguments.model, len(side), sum(side.sizes), remaining)
    return _joined(parts)


def most_texts(arguments: EmbedArguments, limits: Limits) -> int:
    """Returns how many texts one request may hold, by its own size and by its answer's."""
    columns = arguments.dimensions or limits.dimensions
    answer_row = embed_response_bytes(1, columns, arguments.element_type, allow_partial=arguments.allow_partial)
    return min(limits.max_texts, limits.max_response_bytes // answer_row)


def shifted(error: IsoglossError, start: int, path: str = "") -> IsoglossError:
    """Returns the error of a part as the whole call would have had it: texts[3] is texts[start + 3]."""

    def shift(text: str) -> str:
        """Returns `text` with the rows of the whole."""
        return TEXT_PATH.sub(lambda found: f"texts[{int(found[1]) + start}]", text)

    violations = tuple(
        FieldViolation((path if v.field.startswith("texts") else "") + shift(v.field), shift(v.description))
        for v in error.violations
    )
    metadata = dict(error.metadata)
    if metadata.get("index", "").isdecimal():
        metadata["index"] = str(int(metadata["index"]) + start)
    return error.replaced(shift(error.message), violations=violations, metadata=metadata)


def _embed_part(arguments: EmbedArguments, texts: Sequence[str], start: int, path: str) -> Plan[Embeddings]:
    try:
        response = yield Call("Embed", embed_request(arguments, texts))
    except IsoglossError as error:
        raise shifted(error, start, path) from None
    return read_embed(response, len(texts))


def _end_of_part(sizes: Sequence[int], start: int, arguments: EmbedArguments, limits: Limits, path: str) -> int:
    most = min(most_texts(arguments, limits), len(sizes) - start)
    stop, used = start, 0
    while stop < start + most and used + sizes[stop] <= limits.max_request_bytes:
        used += sizes[stop]
        stop += 1
    if stop == start < len(sizes) and sizes[start] > limits.max_request_bytes:
        what = f"has {sizes[start]} bytes; one request may have {limits.max_request_bytes}"
        error = refusal(f"{path}texts[{start}]", what, "REQUEST_TOO_LARGE")
        figures = {"actual": str(sizes[start]), "limit": str(limits.max_request_bytes)}
        raise error.replaced(error.message, metadata=figures)
    return max(stop, start + 1)


def _pinned(arguments: EmbedArguments, parts: Sequence[Embeddings]) -> EmbedArguments:
    """Returns `arguments` that hold the server to the space of the first part."""
    return replace(arguments, space_id=parts[0].space_id) if parts else arguments


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    first, *others = parts
    if not others:
        return first
    if any(part.space_id != first.space_id for part in others):
        raise SpaceMismatchError("the server answered parts of one call in two spaces", reason="SPACE_MISMATCH")
    if any((p.dimensions, p.element_type) != (first.dimensions, first.element_type) for p in others):
        raise bad_answer("parts of one call in two forms")
    starts = list(_starts(parts))
    return replace(
        first,
        elements=read_only(np.concatenate([part.elements for part in parts])),
        row_scales=read_only(np.concatenate([part.row_scales for part in parts])),
        token_counts=tuple(chain.from_iterable(part.token_counts for part in parts)),
        truncated_rows=tuple(
            row + start for part, start in zip(parts, starts, strict=True) for row in part.truncated_rows
        ),
        row_errors=tuple(
            replace(error, row=error.row + start)
            for part, start in zip(parts, starts, strict=True)
            for error in part.row_errors
        ),
        total_tokens=sum(part.total_tokens for part in parts),
        timings=Timings.total(part.timings for part in parts),
    )


def _starts(parts: Sequence[Embeddings]) -> Iterator[int]:
    start = 0
    for part in parts:
        yield start
        start += len(part)
