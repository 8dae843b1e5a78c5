"""Tables and heat maps for terminals: column widths of every script, colours, printable characters."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isogloss.errors import printable
from isogloss.results import Neighbor

ELLIPSIS = "…"
# Marks around a label with right-to-left letters: without them, terminals that reorder text move the columns beside it.
# Both are invisible and have no width.
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"
RAMP = (17, 18, 24, 25, 31, 30, 36, 35, 41, 77, 113, 149, 185, 221)  # dark blue, green, yellow
BLACK_DIGITS_FROM = 6  # darker colours have white digits
LABEL_COLUMNS = 40
MIN_LABEL_COLUMNS = 8
SHOWN_NUMBERS = 5  # of each vector


def width(text: str) -> int:
    """Returns the width of `text` in columns: two for wide East Asian characters, none for combining marks."""
    return sum(map(_columns, text))


def fitted(text: str, columns: int) -> str:
    """Returns the printable `text`, padded on the right or cut with an ellipsis to exactly `columns` columns."""
    shown = text if width(text) <= columns else _cut(text, columns - 1) + ELLIPSIS
    return isolated(shown) + " " * (columns - width(shown))


def isolated(text: str) -> str:
    """Returns `text`, between directional isolates if it has right-to-left letters."""
    if any(unicodedata.bidirectional(character) in {"R", "AL"} for character in text):
        return f"{ISOLATE}{text}{POP_ISOLATE}"
    return text


def _cut(text: str, columns: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:place]
    return text


def _columns(character: str) -> int:
    # U+1160 to U+11FF are medial and final parts of Korean syllables, drawn over the initial part.
    if unicodedata.category(character) in {"Mn", "Me", "Cf"} or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def heat_map(
    values: ArrayLike,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    colour: bool,
    max_width: int | None = None,
) -> str:
    """Returns scores as lines of text, one per row.

    Rows and columns are numbered from 0. If the columns have other labels than the rows, a list of them precedes the
    table. Columns that exceed `max_width` continue in further tables below.

    Args:
        values: Scores [q, c].
        row_labels: Text of each row.
        column_labels: Text of each column.
        colour: True adds background colours, brighter for higher scores.
        max_width: Maximum width of the lines in columns of the terminal; None sets no maximum.
    """
    table = np.asarray(values, dtype=np.float64).reshape(len(row_labels), len(column_labels))
    texts = [[f"{value:z.2f}" for value in row] for row in table]
    cell = max([4, *(len(text) for row in texts for text in row)])
    low, high = (table.min(), table.max()) if table.size else (0.0, 0.0)
    labels, per_table = _layout(row_labels, len(column_labels), cell + 2, max_width)
    indent = " " * (max([0, *map(width, labels)]) + 1)

    lines = [] if list(row_labels) == list(column_labels) else [*_numbered(column_labels, LABEL_COLUMNS), ""]
    for start in range(0, max(1, len(column_labels)), per_table):
        columns = range(start, min(start + per_table, len(column_labels)))
        lines += [""] if start else []
        lines.append(indent + "".join(f"{number:>{cell + 1}} " for number in columns))
        for name, row, shown in zip(labels, table, texts, strict=True):
            cells = [f"{shown[column]:>{cell + 1}} " for column in columns]
            if colour:
                cells = [_painted(text, _share(row[c], low, high)) for text, c in zip(cells, columns, strict=True)]
            lines.append(f"{name} {''.join(cells)}")
    if colour and table.size:
        lines += ["", indent + _scale(low, high)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _layout(row_labels: Sequence[str], count: int, cell: int, max_width: int | None) -> tuple[list[str], int]:
    """Returns the numbered labels, and the number of score columns per table, for lines of at most `max_width`.

    Labels shrink to MIN_LABEL_COLUMNS to keep all columns in one table. In several tables, they take up to a third.
    """
    labels = _numbered(row_labels, LABEL_COLUMNS)
    if max_width is None:
        return labels, max(1, count)
    digits = len(str(max(0, len(row_labels) - 1))) + 2
    available = max_width - count * cell - 1 - digits
    if available < LABEL_COLUMNS:
        columns = available if available >= MIN_LABEL_COLUMNS else max(MIN_LABEL_COLUMNS, max_width // 3)
        labels = _numbered(row_labels, min(columns, LABEL_COLUMNS))
    used = max([0, *map(width, labels)]) + 1
    return labels, max(1, (max_width - used) // cell)


def neighbors_table(neighbors: Sequence[Neighbor], *, colour: bool) -> str:
    """Returns the neighbours of a query as lines of text, best first: score, row, and text if there is one."""
    if not neighbors:
        return "no neighbours\n"
    scores = [neighbor.score for neighbor in neighbors]
    low, high = min(0.0, *scores), max(1.0, *scores)  # the same colours for all tables of cosine scores
    texts = [f"{score:z.3f}" for score in scores]
    cell = max(5, *map(len, texts))
    digits = max(3, *(len(str(neighbor.row)) for neighbor in neighbors))
    lines = [f"{'score':>{cell + 1}}  {'row':>{digits}}  text"]
    for neighbor, text in zip(neighbors, texts, strict=True):
        score = f"{text:>{cell + 1}} "
        if colour:
            score = _painted(score, _share(neighbor.score, low, high))
        lines.append(f"{score} {neighbor.row:>{digits}}  {isolated(printable(neighbor.text or ''))}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def pair_table(values: NDArray[np.float32], queries: Sequence[str], candidates: Sequence[str], *, colour: bool) -> str:
    """Returns the scores of pairs, [n], as lines of text: score, query, candidate."""
    scores = values.tolist()
    low, high = min([0.0, *scores]), max([1.0, *scores])
    columns = min(LABEL_COLUMNS, max([0, *(width(printable(query)) for query in queries)]))
    lines = []
    for score, query, candidate in zip(scores, queries, candidates, strict=True):
        shown = f" {score:>z6.3f} "
        if colour:
            shown = _painted(shown, _share(score, low, high))
        lines.append(f"{shown} {fitted(printable(query), columns)}  {isolated(printable(candidate))}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def vector_table(vectors: NDArray[np.float32], texts: Sequence[str]) -> str:
    """Returns the vectors [n, d] as lines of text: the first numbers of each, then its text."""
    more = "" if vectors.shape[1] <= SHOWN_NUMBERS else f" … {vectors.shape[1]} numbers"
    rows = (" ".join(f"{number:+.4f}" for number in row[:SHOWN_NUMBERS]) for row in vectors)
    return "".join(f"{row}{more}  {isolated(printable(text))}\n" for row, text in zip(rows, texts, strict=True))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines of text with aligned columns."""
    shown = [[printable(cell) for cell in row] for row in rows]
    columns = [max(map(width, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(map(fitted, row, columns)) for row in shown)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _numbered(labels: Sequence[str], max_columns: int) -> list[str]:
    """Returns the labels after their numbers, all with the same width, cut to `max_columns` without the number."""
    digits = len(str(max(0, len(labels) - 1)))
    shown = [printable(label) for label in labels]
    columns = min(max_columns, max([0, *map(width, shown)]))
    return [f"{number:>{digits}}  {fitted(label, columns)}" for number, label in enumerate(shown)]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 1.0


def _painted(text: str, share: float) -> str:
    step = min(len(RAMP) - 1, int(share * len(RAMP)))
    digits = 16 if step >= BLACK_DIGITS_FROM else 231
    return f"\x1b[38;5;{digits};48;5;{RAMP[step]}m{text}\x1b[0m"


def _scale(low: float, high: float) -> str:
    steps = "".join(_painted("  ", step / len(RAMP)) for step in range(len(RAMP)))
    return f" {low:.2f} {steps} {high:.2f}"
