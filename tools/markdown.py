"""Functions that render text and tables as Markdown, for the generated pages."""

import re
from collections.abc import Iterable, Sequence

# Names of the code in plain text: snake_case, UPPER_CASE, Message.field, each with or without an index, and long words
# in capitals, such as OVERLOADED; short ones, such as UTF, are abbreviations.
NAME = re.compile(
    r"(?<![\w`.-])"
    r"(?:(?:\w+\.)*[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+|[A-Z]\w+\.[a-z]\w*|[A-Z]{7,})"
    r"(?:\[\w+\])?(?![\w-])"
)
BULLET = re.compile(r"^ *\* ")


def code(text: object) -> str:
    """Returns `text`, or the name of a class, as inline code."""
    return f"`{text.__name__ if isinstance(text, type) else text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table. Cells are Markdown; bars in them are escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def prose(text: str) -> str:
    """Returns plain text as one line of Markdown: names become inline code, other special characters are escaped."""
    words = " ".join(text.split())
    parts = words.split("`")  # text between backticks is code already
    parts[::2] = [_with_code(part) for part in parts[::2]]
    return "`".join(parts)


def paragraphs(comment: str) -> str:
    """Returns a comment as paragraphs and lists; a blank line ends a paragraph, a line with a leading * is an item."""
    blocks: list[tuple[str, list[str]]] = []
    after_blank = True
    for line in comment.splitlines():
        bullet = BULLET.match(line)
        if bullet:
            blocks.append(("- ", [line[bullet.end() :]]))
        elif line.strip() and after_blank:
            blocks.append(("", [line]))
        elif line.strip():
            blocks[-1][1].append(line)
        after_blank = not line.strip()
    text = ""
    for index, (mark, lines) in enumerate(blocks):
        tight = mark and index and blocks[index - 1][0]
        text += ("\n" if text and not tight else "") + mark + prose(" ".join(lines)) + "\n"
    return text


def anchor(heading: str) -> str:
    """Returns the link fragment of a heading of one word."""
    return f"#{heading.lower()}"


def _with_code(text: str) -> str:
    pieces: list[str] = []
    end = 0
    for name in NAME.finditer(text):
        pieces += [_escaped(text[end : name.start()]), code(name[0])]
        end = name.end()
    return "".join([*pieces, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", text.replace("<", "&lt;"))
