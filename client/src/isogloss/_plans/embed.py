"""The plan of an embed: as many requests as the limits ask for, their rows joined."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from isogloss._arguments import EmbedArguments, TextSide, refusal
from isogloss._messages import embed_request, read_embed
from isogloss._messages.matrix import bad_answer, row_bytes
from isogloss._plans.limits import KnownModels, Limits
from isogloss._plans.run import Call, Plan
from isogloss.errors import FieldViolation, IsoglossError, SpaceMismatchError
from isogloss.results import Embeddings, Timings
from isogloss.results.embeddings import read_only

ROW_OVERHEAD_BYTES = 20  # the most that a row takes beside its numbers: scale, token count, truncated row
ROW_ERROR_BYTES = 240  # the most that a row's error takes
TEXT_PATH = re.compile(r"\btexts\[(\d+)\]")


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
    answer_row = (
        row_bytes(arguments.element_type, columns)
        + ROW_OVERHEAD_BYTES
        + (ROW_ERROR_BYTES if arguments.allow_partial else 0)
    )
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
