"""Plans for embed, health and models: limits of a request, splitting a call by them, joining the parts.

A plan is a generator that does no I/O: it yields a Call, receives the response or the exception, and returns the
result of the whole call. The blocking and the asyncio client run the same plans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from isogloss._arguments import EmbedArguments, TextSide, invalid_argument
from isogloss._messages import (
    bad_answer,
    embed_request,
    health_request,
    models_request,
    read_embed,
    read_health,
    read_models,
)
from isogloss.enums import ServingStatus
from isogloss.errors import InvalidArgumentError, IsoglossError, with_row_offset
from isogloss.results import Embeddings, HealthReport, ModelInfo, Timings, read_only
from isogloss.wire.sizes import embed_response_bytes

UNLIMITED = sys.maxsize
# A call of one row within this size is sent without fetching the limits, which only matter for splitting. gRPC refuses
# messages of some MiB without naming the limit.
SMALL_BYTES = 1 << 20
LIMIT_REASONS = frozenset({"TOO_MANY_TEXTS", "REQUEST_TOO_LARGE", "RESPONSE_TOO_LARGE"})
READY = frozenset({ServingStatus.SERVING, ServingStatus.DEGRADED})
READY_INTERVAL_S = 0.2

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send: the name of the RPC, and its message."""

    method: str
    request: Any


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next request, because of `problem`."""

    seconds: float
    problem: str


Plan = Generator[Call | Pause, Any, Result]


def embed(known: KnownLimits, arguments: EmbedArguments, side: TextSide, name: str = "texts") -> Plan[Embeddings]:
    """Embeds `side` in as few requests as the limits allow.

    Args:
        known: The limits of the server's models.
        arguments: All arguments of the embed except its texts.
        side: The texts.
        name: The caller's argument that holds the texts, for errors.

    Raises:
        SpaceMismatchError: The model changed between two parts.
    """
    parts: list[Embeddings] = []
    count = len(side.texts)

    def remaining(limits: Limits) -> Plan[None]:
        """Embeds the texts that `parts` does not cover yet."""
        start = sum(map(len, parts))
        while start < count or not parts:  # an empty list is sent too: the server refuses it
            stop = _end_of_part(side.sizes, start, arguments, limits, name)
            part = yield from _embed_part(_in_space_of(parts, arguments), side.texts[start:stop], start, name)
            parts.append(part)
            start = stop

    yield from known.run(arguments.model, count, sum(side.sizes), remaining)
    return _joined(parts)


def max_texts_per_request(arguments: EmbedArguments, limits: Limits) -> int:
    """Returns the number of texts that the limits of a request's texts and of its response allow."""
    columns = arguments.dimensions or limits.dimensions
    row_bytes = embed_response_bytes(1, columns, arguments.element_type, allow_partial=arguments.allow_partial)
    return min(limits.max_texts, limits.max_response_bytes // row_bytes)


def _embed_part(arguments: EmbedArguments, texts: Sequence[str], start: int, name: str) -> Plan[Embeddings]:
    try:
        response = yield Call("Embed", embed_request(arguments, texts))
    except IsoglossError as error:
        raise with_row_offset(error, start, name=name) from None
    return read_embed(response, arguments, len(texts))


def _end_of_part(sizes: Sequence[int], start: int, arguments: EmbedArguments, limits: Limits, name: str) -> int:
    """Returns the row after the last one of the part that begins at `start`.

    Raises:
        InvalidArgumentError: One text alone exceeds max_request_bytes (reason REQUEST_TOO_LARGE).
    """
    most = min(max_texts_per_request(arguments, limits), len(sizes) - start)
    stop, used = start, 0
    while stop < start + most and used + sizes[stop] <= limits.max_request_bytes:
        used += sizes[stop]
        stop += 1
    if stop == start < len(sizes) and sizes[start] > limits.max_request_bytes:
        description = f"has {sizes[start]} bytes; the limit of a request is {limits.max_request_bytes}"
        error = invalid_argument(f"{name}[{start}]", description, "REQUEST_TOO_LARGE")
        figures = {"actual": str(sizes[start]), "limit": str(limits.max_request_bytes)}
        raise error.replaced(error.message, metadata=figures)
    return max(stop, start + 1)


def _in_space_of(parts: Sequence[Embeddings], arguments: EmbedArguments) -> EmbedArguments:
    """Returns `arguments` that require the space of the first part, if there is one."""
    return replace(arguments, space_id=parts[0].space_id) if parts else arguments


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    first, *others = parts
    if not others:
        return first
    if any((p.dimensions, not p.token_counts) != (first.dimensions, not first.token_counts) for p in others):
        raise bad_answer("parts of one call that differ in their dimensions, or with token counts for some only")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request to a model, and the model's own dimensions (0 = unknown)."""

    max_texts: int = UNLIMITED
    max_request_bytes: int = UNLIMITED
    max_response_bytes: int = UNLIMITED
    max_pairs: int = UNLIMITED
    dimensions: int = 0

    @classmethod
    def of(cls, model: ModelInfo) -> Limits:
        """Returns the limits that the server reports for `model`, where 0 means no limit."""
        return cls(
            max_texts=model.max_texts or UNLIMITED,
            max_request_bytes=model.max_request_bytes or UNLIMITED,
            max_response_bytes=model.max_response_bytes or UNLIMITED,
            max_pairs=model.max_pairs or UNLIMITED,
            dimensions=next(iter(model.dimensions), 0),
        )


class KnownLimits:
    """The limits of the server's models, fetched once per client and shared by its threads.

    There is no lock: threads that start at the same moment may each fetch the limits, which costs a request. With a
    lock, a thread could wait for another one's request beyond its own deadline.
    """

    def __init__(self) -> None:
        self._models: list[ModelInfo] | None = None

    def run(self, model: str, rows: int, size_bytes: int, plan: Callable[[Limits], Plan[Result]]) -> Plan[Result]:
        """Runs `plan` with the limits of `model`, and once more with fetched limits if they have changed.

        The limits have changed if the server refuses a request as too large. They are not fetched for a call of one
        row within SMALL_BYTES, which cannot be split.

        Args:
            model: Name of the model; empty selects the server's default.
            rows: Number of rows of the call.
            size_bytes: Size of its texts and vectors.
            plan: Starts the plan to run. It may keep the parts that were complete when it is started again.
        """
        if rows <= 1 and size_bytes <= SMALL_BYTES:
            return (yield from plan(Limits()))
        if self._models is None:
            self._models = yield from models()
        try:
            return (yield from plan(self._limits(model)))
        except InvalidArgumentError as error:
            if error.reason not in LIMIT_REASONS:
                raise
        return (yield from plan((yield from self.fetch(model))))

    def fetch(self, model: str) -> Plan[Limits]:
        """Fetches the limits of all models and returns those of `model`."""
        self._models = yield from models()
        return self._limits(model)

    def _limits(self, model: str) -> Limits:
        # The default model is the first. The server refuses unlisted models, with a better message than this client's.
        listed = (known for known in self._models or () if model in ("", known.name))
        info = next(listed, None)
        return Limits() if info is None else Limits.of(info)


def models() -> Plan[list[ModelInfo]]:
    """Returns the models that the server serves, the default model first."""
    response = yield Call("ListModels", models_request())
    return read_models(response)


def health(model: str) -> Plan[HealthReport]:
    """Returns the health of the server, or of `model` alone unless empty."""
    response = yield Call("Health", health_request(model))
    return read_health(response, model)


def ready(model: str) -> Plan[HealthReport]:
    """Returns the health of the server, or of `model` alone unless empty, as soon as it is ready."""
    while (report := (yield from health(model))).status not in READY:
        details = "; ".join(f"{entry.model}: {entry.detail}" for entry in report.models if entry.detail)
        yield Pause(READY_INTERVAL_S, f"the server is {report.status}" + (f" ({details})" if details else ""))
    return report
