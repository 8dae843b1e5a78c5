"""How wide a text is on a terminal, and how to make it as wide as a column."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isogloss.results import Neighbor

ELLIPSIS = "…"
# Around a label with letters that run from right to left: keeps terminals that reorder text from moving the columns
# beside it. Both marks are invisible and take no column.
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"
RAMP = (17, 18, 24, 25, 31, 30, 36, 35, 41, 77, 113, 149, 185, 221)  # dark blue, green, yellow
BLACK_DIGITS_FROM = 6  # on the colours before it, digits are white
LABEL_COLUMNS = 40
SHOWN_NUMBERS = 5  # of a vector


def printable(text: str) -> str:
    """Returns `text` on one line, without characters that could command a terminal or reorder a line."""
    return "".join(_shown(character) for character in text)


def width(text: str) -> int:
    """Returns the columns that `text` takes: two for wide East Asian characters, none for marks that combine."""
    return sum(map(_columns, text))


def fitted(text: str, columns: int) -> str:
    """Returns `text` made exactly so wide: padded to the right, or cut with an ellipsis. It must be printable."""
    shown = text if width(text) <= columns else _cut(text, columns - 1) + ELLIPSIS
    return isolated(shown) + " " * (columns - width(shown))


def isolated(text: str) -> str:
    """Returns `text`, between invisible marks where it has letters that run from right to left."""
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
    # U+1160 to U+11FF are the later parts of a Korean syllable, drawn onto the first.
    if unicodedata.category(character) in {"Mn", "Me", "Cf"} or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _shown(character: str) -> str:
    match unicodedata.category(character):
        case "Cc" | "Zl" | "Zp":
            return " "
        case "Cs":
            return "\ufffd"
        case "Cf":
            # Joiners shape Indic and Arabic letters and emoji; the others, marks of direction among them, are dropped.
            return character if character in "\u200c\u200d" else ""
        case _:
            return character


def heat_map(values: ArrayLike, row_labels: Sequence[str], column_labels: Sequence[str], *, colour: bool) -> str:
    """Returns the scores [q, c] as lines of text, one a row; with `colour`, the nearer the brighter.

    Rows and columns are numbered from 0, as everywhere. Where the columns are the same texts as the rows, the rows'
    numbers explain them; else a list of the columns goes before the table.
    """
    table = np.asarray(values, dtype=np.float64).reshape(len(row_labels), len(column_labels))
    texts = [[f"{value:z.2f}" for value in row] for row in table]
    cell = max([4, *(len(text) for row in texts for text in row)])
    labels = list(_numbered(row_labels))
    label = max([0, *map(width, labels)])
    low, high = (table.min(), table.max()) if table.size else (0.0, 0.0)

    lines = [] if list(row_labels) == list(column_labels) else [*_numbered(column_labels), ""]
    lines.append(" " * (label + 1) + "".join(f"{number:>{cell + 1}} " for number in range(len(column_labels))))
    for name, row, shown in zip(labels, table, texts, strict=True):
        cells = (f"{text:>{cell + 1}} " for text in shown)
        if colour:
            cells = (_painted(text, _share(value, low, high)) for text, value in zip(cells, row, strict=True))
        lines.append(f"{name} {''.join(cells)}")
    if colour and table.size:
        lines += ["", " " * (label + 1) + _scale(low, high)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def neighbors_table(neighbors: Sequence[Neighbor], *, colour: bool) -> str:
    """Returns the neighbours of one query as lines of text, best first: score, row, and text where there is one."""
    if not neighbors:
        return "no neighbours\n"
    scores = [neighbor.score for neighbor in neighbors]
    low, high = min(0.0, *scores), max(1.0, *scores)  # so that the colours of several cosine tables mean the same
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
    """Returns the scores [n] of pairs as lines of text: score, query, candidate."""
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
    """Returns the first numbers of each vector [n, d] as lines of text, before what they stand for."""
    more = "" if vectors.shape[1] <= SHOWN_NUMBERS else f" … {vectors.shape[1]} numbers"
    rows = (" ".join(f"{number:+.4f}" for number in row[:SHOWN_NUMBERS]) for row in vectors)
    return "".join(f"{row}{more}  {isolated(printable(text))}\n" for row, text in zip(rows, texts, strict=True))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns `rows` of cells as lines of text whose columns are aligned."""
    shown = [[printable(cell) for cell in row] for row in rows]
    columns = [max(map(width, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(map(fitted, row, columns)) for row in shown)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _numbered(labels: Sequence[str]) -> Iterator[str]:
    """Yields the labels after their numbers, each as wide as the others and at most about LABEL_COLUMNS."""
    digits = len(str(max(0, len(labels) - 1)))
    shown = [printable(label) for label in labels]
    columns = min(LABEL_COLUMNS, max([0, *map(width, shown)]))
    return (f"{number:>{digits}}  {fitted(label, columns)}" for number, label in enumerate(shown))


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 1.0


def _painted(text: str, share: float) -> str:
    step = min(len(RAMP) - 1, int(share * len(RAMP)))
    digits = 16 if step >= BLACK_DIGITS_FROM else 231
    return f"\x1b[38;5;{digits};48;5;{RAMP[step]}m{text}\x1b[0m"


def _scale(low: float, high: float) -> str:
    steps = "".join(_painted("  ", step / len(RAMP)) for step in range(len(RAMP)))
    return f" {low:.2f} {steps} {high:.2f}"
