"""One row as the cache keeps it, and the way between such rows and what Embedders give."""

from collections.abc import Sequence

import numpy as np

from isogloss_server.models.base import Embedded

# A row's float32 numbers as bytes, its token count (None where a provider does not tell), and whether its text was cut.
# A plain tuple, since the garbage collector stops looking at those of which nothing can be in a cycle.
Entry = tuple[bytes, int | None, bool]


def entries_of(embedded: Embedded) -> list[Entry]:
    """Returns each row by itself, holding on to nothing of the others."""
    data, size = embedded.rows.tobytes(), embedded.rows.shape[1] * embedded.rows.itemsize
    n, counts = len(embedded.rows), embedded.token_counts
    tokens: Sequence[int | None] = [None] * n if counts is None else counts.tolist()
    entries = [(data[at * size : (at + 1) * size], tokens[at], False) for at in range(n)]
    for at in embedded.truncated_rows:
        entries[at] = (*entries[at][:2], True)
    return entries


def joined(entries: Sequence[Entry], computed: Sequence[Embedded], *, waited_s: float) -> Embedded:
    """Returns the rows of `entries`, of which some come from what was `computed` for this call.

    Where token counts are known, a row counts as many as when it was computed; a provider bills what it computed.
    """
    rows = np.frombuffer(b"".join([row for row, _, _ in entries]), np.float32).reshape(len(entries), -1)
    tokens = [count for _, count, _ in entries if count is not None]
    known = len(tokens) == len(entries)
    return Embedded(
        rows=rows,
        token_counts=np.array(tokens, np.int64) if known else None,
        truncated_rows=tuple([row for row, (_, _, cut) in enumerate(entries) if cut]),
        total_tokens=sum(tokens) if known else sum(part.total_tokens for part in computed),
        cached_rows=len(entries) - sum(len(part.rows) for part in computed),
        tokenization_s=sum(part.tokenization_s for part in computed),
        queue_s=waited_s + sum(part.queue_s for part in computed),
        inference_s=sum(part.inference_s for part in computed),
    )
