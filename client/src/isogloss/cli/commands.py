"""The commands of the command line."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from isogloss.cli.arguments import UsageError, model_arguments
from isogloss.cli.output import NpyFile, Output
from isogloss.cli.render import aligned, heat_map, neighbors_table, pair_table, vector_table
from isogloss.client import Client
from isogloss.enums import ServingStatus
from isogloss.errors import FieldViolation, IsoglossError, SpaceMismatchError
from isogloss.results import Embeddings, Neighbor

# What is held in memory at a time; the client cuts it further where the server's limits ask for that.
CHUNK_TEXTS = 1024
CHUNK_CHARACTERS = 2**21
NO_TEXTS = "no texts, neither as arguments nor on standard input"
ROW = re.compile(r"(?<!queries\.texts\.)\btexts\[(\d+)\]")
HEALTHY = frozenset({ServingStatus.SERVING, ServingStatus.DEGRADED})


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the texts, as vectors; `start` is the row of the first among all."""

    start: int
    texts: Sequence[str]
    embeddings: Embeddings


def embedded(client: Client, given: Sequence[str], **arguments: Any) -> Iterator[Chunk]:
    """Yields the texts as vectors of one space, chunk by chunk; raises UsageError where there are none."""
    space_id = ""
    for start, texts in chunks(given):
        try:
            found = client.embed(texts, space_id=space_id, **arguments)
        except IsoglossError as error:
            raise shifted(error, start) from None
        space_id = found.space_id
        yield Chunk(start, texts, found)


def whole(given: Sequence[str]) -> list[str]:
    """Returns all texts; raises UsageError where there are none."""
    found = list(_stream(given))
    if not found:
        raise UsageError(NO_TEXTS)
    return found


def chunks(given: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields some texts at a time, after the row of their first; raises UsageError where there are none."""
    start = 0
    for texts in _chunked(_stream(given)):
        yield start, texts
        start += len(texts)
    if not start:
        raise UsageError(NO_TEXTS)


def shifted(error: IsoglossError, start: int) -> IsoglossError:
    """Returns the error of a chunk as all texts together would have had it: texts[3] is texts[start + 3]."""

    def shift(text: str) -> str:
        """Returns `text` with the rows of the whole."""
        return ROW.sub(lambda found: f"texts[{int(found[1]) + start}]", text)

    violations = tuple(FieldViolation(shift(v.field), shift(v.description)) for v in error.violations)
    return error.replaced(shift(error.message), violations=violations)


def _stream(given: Sequence[str]) -> Iterator[str]:
    """Yields the texts that were given, or where there are none, or a single -, the lines of standard input."""
    if given and list(given) != ["-"]:
        yield from given
        return
    for line in sys.stdin or ():  # there is none where it was closed before the start
        text = line.rstrip("\r\n")
        if text and not text.isspace():
            yield text


def _chunked(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def embed(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints one vector for each text, or writes them to a file."""
    if arguments.jsonl and (arguments.json or arguments.npy):
        raise UsageError("--jsonl goes with neither --json nor --npy")
    chunks = embedded(
        client,
        arguments.texts,
        input_type=arguments.input_type,
        element_type=arguments.element_type,
        **model_arguments(arguments),
    )
    if arguments.npy:
        _write_npy(arguments.npy, chunks, output)
    elif arguments.jsonl:
        _print_lines(chunks, output)
    elif arguments.json:
        _print_object(chunks, output)
    else:
        for chunk in chunks:
            output.stream.write(vector_table(chunk.embeddings.vectors, chunk.texts))
    return 0


def _write_npy(file: Path, chunks: Iterator[Chunk], output: Output) -> None:
    """Writes the vectors, and prints what has to be known of them beside the numbers."""
    truncated: list[int] = []
    with NpyFile(file) as written:
        for chunk in chunks:
            written.append(chunk.embeddings.vectors)
            truncated += _truncated(chunk)
            last = chunk.embeddings
    rows, columns = written.shape
    data = {
        "file": str(file),
        "rows": rows,
        "dimensions": columns,
        "model": last.model,
        "space_id": last.space_id,
        "truncated_rows": truncated,
    }
    output.show(data, lambda: f"{file}: float32 [{rows}, {columns}], model {last.model}, space {last.space_id}\n")


def _print_lines(chunks: Iterator[Chunk], output: Output) -> None:
    """Prints one JSON object for each text as soon as its chunk is there."""
    for chunk in chunks:
        found, truncated = chunk.embeddings, frozenset(chunk.embeddings.truncated_rows)
        for row, text in enumerate(chunk.texts):
            output.line(
                {
                    "row": chunk.start + row,
                    "text": text,
                    "model": found.model,
                    "space_id": found.space_id,
                    "token_count": found.token_counts[row] if found.token_counts else None,
                    "truncated": row in truncated,
                    "vector": found.vectors[row],
                }
            )


def _print_object(chunks: Iterator[Chunk], output: Output) -> None:
    """Prints one JSON object for all texts together, which has to wait for the last."""
    found = list(chunks)
    first = found[0].embeddings
    data: dict[str, Any] = {
        "model": first.model,
        "space_id": first.space_id,
        "dimensions": first.dimensions,
        "token_counts": [count for chunk in found for count in chunk.embeddings.token_counts],
        "truncated_rows": [row for chunk in found for row in _truncated(chunk)],
        "texts": [text for chunk in found for text in chunk.texts],
        "vectors": np.concatenate([chunk.embeddings.vectors for chunk in found]),
    }
    output.line(data)


def _truncated(chunk: Chunk) -> list[int]:
    return [chunk.start + row for row in chunk.embeddings.truncated_rows]


def similarity(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the scores of texts with each other, or with --candidate."""
    texts, others = whole(arguments.texts), arguments.candidate
    if arguments.pairwise:
        return _pairwise(client, arguments, output, texts)
    found = client.similarity(texts, others, metric=arguments.metric, **model_arguments(arguments))
    columns = texts if others is None else others
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "metric": arguments.metric,
        "queries": texts,
        "candidates": columns,
        "scores": found.values,
    }
    output.show(data, lambda: heat_map(found.values, texts, columns, colour=output.colour))
    return 0


def _pairwise(client: Client, arguments: argparse.Namespace, output: Output, texts: Sequence[str]) -> int:
    others = arguments.candidate or []
    if len(others) != len(texts):
        raise UsageError(f"--pairwise needs as many --candidate as texts: {len(others)} for {len(texts)}")
    found = client.pairwise(texts, others, metric=arguments.metric, **model_arguments(arguments))
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "metric": arguments.metric,
        "pairs": [
            {"query": query, "candidate": other, "score": score}
            for query, other, score in zip(texts, others, found.values.tolist(), strict=True)
        ],
    }
    output.show(data, lambda: pair_table(found.values, texts, others, colour=output.colour))
    return 0


def nearest(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the candidates nearest to a query. Only some candidates are held at a time."""
    best: list[Neighbor] = []
    spaces: dict[str, str] = {}  # space -> model
    for start, candidates in chunks(arguments.candidates):
        try:
            found = client.nearest(
                arguments.query,
                candidates,
                k=arguments.k,
                min_score=arguments.min_score,
                metric=arguments.metric,
                **model_arguments(arguments),
            )
        except IsoglossError as error:
            raise shifted(error, start) from None
        spaces[found.space_id] = found.model
        if len(spaces) > 1:
            message = "the server changed the model's space between two parts of the candidates"
            raise SpaceMismatchError(message, reason="SPACE_MISMATCH")
        # Sorting is stable: of equal scores, the lower row stays first.
        both = [*best, *(neighbor._replace(row=neighbor.row + start) for neighbor in found)]
        best = sorted(both, key=lambda neighbor: -neighbor.score)[: arguments.k]
    [(space_id, model)] = spaces.items()
    data = {
        "model": model,
        "space_id": space_id,
        "metric": arguments.metric,
        "query": arguments.query,
        "neighbors": [neighbor._asdict() for neighbor in best],
    }
    output.show(data, lambda: neighbors_table(best, colour=output.colour))
    return 0


def health(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints how the server fares, and returns 1 where it cannot serve."""
    report = client.health(arguments.model)

    def readable() -> str:
        """Returns a line for the server, and one for each model."""
        rows = [("MODEL", "STATUS", "QUEUED", "EMBEDDED", "DETAIL")]
        rows += [(m.model, m.status, str(m.queued_texts), str(m.embedded_texts), m.detail) for m in report.models]
        return f"{report.status}: version {report.version}, up {report.uptime_s:.0f} s\n\n{aligned(rows)}"

    output.show(asdict(report), readable)
    return 0 if report.status in HEALTHY else 1


def models(client: Client, _arguments: argparse.Namespace, output: Output) -> int:
    """Prints what the server offers."""
    found = client.models()

    def readable() -> str:
        """Returns a line for each model."""
        rows = [("MODEL", "BACKEND", "DIMENSIONS", "MAX TOKENS", "LANGUAGES", "LICENSE", "SPACE")]
        rows += [
            (
                m.name,
                m.backend,
                " ".join(map(str, m.dimensions)),
                str(m.max_tokens),
                str(len(m.languages)),
                m.license,
                m.space_id,
            )
            for m in found
        ]
        return aligned(rows)

    output.show({"models": [asdict(model) for model in found]}, readable)
    return 0


COMMANDS: Mapping[str, Callable[[Client, argparse.Namespace, Output], int]] = MappingProxyType(
    {"embed": embed, "similarity": similarity, "nearest": nearest, "health": health, "models": models}
)
