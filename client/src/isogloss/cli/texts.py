"""The texts of a command: its arguments, or the lines of standard input, which may be any number."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isogloss.cli.arguments import UsageError
from isogloss.client import Client
from isogloss.errors import FieldViolation, IsoglossError
from isogloss.results import Embeddings

# What is held in memory at a time; the client cuts it further where the server's limits ask for that.
CHUNK_TEXTS = 1024
CHUNK_CHARACTERS = 2**21

NO_TEXTS = "no texts, neither as arguments nor on standard input"
ROW = re.compile(r"(?<!queries\.texts\.)\btexts\[(\d+)\]")


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
