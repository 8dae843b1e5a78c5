"""`isogloss embed`: any number of texts, chunk by chunk, in one of four forms."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isogloss.cli.arguments import UsageError, model_arguments
from isogloss.cli.npy import NpyFile
from isogloss.cli.output import Output
from isogloss.cli.render import vector_table
from isogloss.cli.texts import Chunk, embedded
from isogloss.client import Client


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
