"""The verbs of the command line: each calls the client and prints the result."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from isogloss._embed import READY
from isogloss.cli.arguments import InputError, UsageError, model_arguments
from isogloss.cli.output import NpyFile, Output
from isogloss.cli.render import aligned, heat_map, neighbors_table, pair_table, vector_table
from isogloss.client import Client
from isogloss.errors import IsoglossError, SpaceMismatchError, printable, with_row_offset
from isogloss.results import Embeddings, Neighbor

# Limits of the texts held in memory at a time. The client splits a chunk further if the server's limits are lower.
CHUNK_TEXTS = 1024
CHUNK_CHARACTERS = 2**21


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive texts and their vectors; `start` is the row of the first among all texts."""

    start: int
    texts: Sequence[str]
    embeddings: Embeddings


def embed(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the vector of each text, or writes the vectors to a file."""
    if arguments.jsonl and (arguments.json or arguments.npy):
        raise UsageError("--jsonl cannot be combined with --json or --npy")
    chunks = embed_chunks(
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
    """Writes the vectors to `file`, and prints their shape, model and space."""
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
    line = f"{file}: float32 [{rows}, {columns}], model {last.model}, space {last.space_id}"
    output.show(data, lambda: f"{printable(line)}\n")


def _print_lines(chunks: Iterator[Chunk], output: Output) -> None:
    """Prints one JSON object per text, as soon as its chunk is embedded."""
    for chunk in chunks:
        embeddings, truncated = chunk.embeddings, frozenset(chunk.embeddings.truncated_rows)
        for row, text in enumerate(chunk.texts):
            output.line(
                {
                    "row": chunk.start + row,
                    "text": text,
                    "model": embeddings.model,
                    "space_id": embeddings.space_id,
                    "token_count": embeddings.token_counts[row] if embeddings.token_counts else None,
                    "truncated": row in truncated,
                    "vector": embeddings.vectors[row],
                }
            )


def _print_object(chunks: Iterator[Chunk], output: Output) -> None:
    """Prints one JSON object for all texts, after the last chunk."""
    embedded = list(chunks)
    first = embedded[0].embeddings
    data: dict[str, Any] = {
        "model": first.model,
        "space_id": first.space_id,
        "dimensions": first.dimensions,
        "token_counts": [count for chunk in embedded for count in chunk.embeddings.token_counts],
        "truncated_rows": [row for chunk in embedded for row in _truncated(chunk)],
        "texts": [text for chunk in embedded for text in chunk.texts],
        "vectors": np.concatenate([chunk.embeddings.vectors for chunk in embedded]),
    }
    output.line(data)


def _truncated(chunk: Chunk) -> list[int]:
    return [chunk.start + row for row in chunk.embeddings.truncated_rows]


def similarity(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the scores of the texts with each other, or with the texts of --candidate."""
    texts, others = all_texts(arguments.texts), arguments.candidate
    if arguments.pairwise:
        return _pairwise(client, arguments, output, texts)
    scores = client.similarity(texts, others, metric=arguments.metric, **model_arguments(arguments))
    columns = texts if others is None else others
    data = {
        "model": scores.model,
        "space_id": scores.space_id,
        "metric": arguments.metric,
        "queries": texts,
        "candidates": columns,
        "scores": scores.values,
    }
    output.show(data, lambda: heat_map(scores.values, texts, columns, colour=output.colour, max_width=output.columns))
    return 0


def _pairwise(client: Client, arguments: argparse.Namespace, output: Output, texts: Sequence[str]) -> int:
    others = arguments.candidate or []
    if len(others) != len(texts):
        raise UsageError(f"--pairwise requires one --candidate per text: {len(others)} for {len(texts)} texts")
    scores = client.pairwise(texts, others, metric=arguments.metric, **model_arguments(arguments))
    data = {
        "model": scores.model,
        "space_id": scores.space_id,
        "metric": arguments.metric,
        "pairs": [
            {"query": query, "candidate": other, "score": score}
            for query, other, score in zip(texts, others, scores.values.tolist(), strict=True)
        ],
    }
    output.show(data, lambda: pair_table(scores.values, texts, others, colour=output.colour))
    return 0


def nearest(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the candidates nearest to a query; holds one chunk of candidates in memory at a time."""
    best: list[Neighbor] = []
    spaces: dict[str, str] = {}  # space -> model
    for start, candidates in text_chunks(arguments.candidates):
        try:
            neighbors = client.nearest(
                arguments.query,
                candidates,
                k=arguments.k,
                min_score=arguments.min_score,
                metric=arguments.metric,
                **model_arguments(arguments),
            )
        except IsoglossError as error:
            raise with_row_offset(error, start, "candidates") from None
        spaces[neighbors.space_id] = neighbors.model
        if len(spaces) > 1:
            message = "the space of the model changed while the candidates were compared; run the command again"
            raise SpaceMismatchError(message, reason="SPACE_MISMATCH")
        # Sorting is stable: of equal scores, the lower row remains first.
        both = [*best, *(neighbor._replace(row=neighbor.row + start) for neighbor in neighbors)]
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
    """Prints the health of the server; returns exit code 1 if it cannot serve."""
    report = client.wait_until_ready(model=arguments.model) if arguments.wait else client.health(arguments.model)

    def table() -> str:
        """Returns a line for the server and one per model."""
        rows = [("MODEL", "STATUS", "QUEUED", "EMBEDDED", "DETAIL")]
        rows += [(m.model, m.status, str(m.queued_texts), str(m.embedded_texts), m.detail) for m in report.models]
        return f"{report.status}: version {printable(report.version)}, up {report.uptime_s:.0f} s\n\n{aligned(rows)}"

    output.show(asdict(report), table)
    return 0 if report.status in READY else 1


def models(client: Client, _arguments: argparse.Namespace, output: Output) -> int:
    """Prints the served models."""
    served = client.models()

    def table() -> str:
        """Returns a line per model."""
        rows = [("MODEL", "BACKEND", "DIMENSIONS", "MAX TOKENS", "LANGUAGES", "LICENSE", "SPACE")]
        rows += [
            (
                m.name,
                m.backend,
                " ".join(map(str, m.dimensions)),
                str(m.max_tokens),
                str(len(m.languages) or "unknown"),
                m.license,
                m.space_id,
            )
            for m in served
        ]
        return aligned(rows)

    output.show({"models": [asdict(model) for model in served]}, table)
    return 0


COMMANDS: Mapping[str, Callable[[Client, argparse.Namespace, Output], int]] = MappingProxyType(
    {"embed": embed, "similarity": similarity, "nearest": nearest, "health": health, "models": models}
)


def embed_chunks(client: Client, given: Sequence[str], **arguments: Any) -> Iterator[Chunk]:
    """Yields all texts as vectors of one space and length, chunk by chunk; raises UsageError if there are none."""
    for start, texts in text_chunks(given):
        try:
            embeddings = client.embed(texts, **arguments)
        except IsoglossError as error:
            raise with_row_offset(error, start) from None
        arguments |= {"space_id": embeddings.space_id, "dimensions": embeddings.dimensions}
        yield Chunk(start, texts, embeddings)


def all_texts(given: Sequence[str]) -> list[str]:
    """Returns all texts; raises UsageError if there are none."""
    return [text for _, texts in text_chunks(given) for text in texts]


def text_chunks(given: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the row of a chunk's first text, and its texts; raises UsageError if there are none.

    Args:
        given: The texts of the command line; empty or a single - selects the lines of standard input.
    """
    start = 0
    for texts in _chunks(_stdin_lines() if not given or list(given) == ["-"] else given):
        yield start, texts
        start += len(texts)
    if not start:
        raise UsageError("no texts, neither as arguments nor on standard input")


def _stdin_lines() -> Iterator[str]:
    """Yields the lines of standard input that are not blank; raises InputError for invalid characters."""
    if sys.stdin is None:  # closed before the start
        return
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")  # a strict decoder fails without the number of the line
    for number, line in enumerate(sys.stdin, 1):
        text = line.rstrip("\r\n")
        try:
            text.encode()
        except UnicodeEncodeError:
            encoding = (getattr(sys.stdin, "encoding", None) or "utf-8").upper()
            raise InputError(f"standard input, line {number}: not valid {encoding}") from None
        if text and not text.isspace():
            yield text


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
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
