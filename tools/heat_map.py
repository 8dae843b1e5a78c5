"""Draws docs/heat-map.svg: the similarity of each pair of the demo's sentences under the bundled model.

    python -m tools.heat_map

The scores are from a real server, and the colours are those of the command line. The picture has a background of its
own, so that it looks the same on light and dark pages.
"""

import sys
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from unicodedata import bidirectional

import numpy as np
from isogloss import Client
from isogloss.cli.render import RAMP
from numpy.typing import NDArray

from examples.demo import ENGLISH, LANGUAGES, SAID, running_server

FILE = Path(__file__).parents[1] / "docs" / "heat-map.svg"
CELL, GAP, MARGIN = 17, 4, 24
LANGUAGE_WIDTH, LABEL_WIDTH = 76, 206
HEAD_HEIGHT, FOOT_HEIGHT = 64, 44
LEFT, TOP = MARGIN + LANGUAGE_WIDTH + LABEL_WIDTH, MARGIN + HEAD_HEIGHT
# Levels of red, green and blue in the terminal colours 16 to 231, which are a cube of 6 x 6 x 6.
LEVELS = (0, 95, 135, 175, 215, 255)
FONTS = "system-ui, 'Noto Sans', 'Noto Sans Arabic', 'Noto Sans Devanagari', 'Noto Sans CJK SC', sans-serif"
STYLE = f"""\
text {{ font-family: {FONTS}; font-size: 12px; fill: #1f2328; }}
.title {{ font-size: 17px; font-weight: 600; }}
.head {{ font-size: 11.5px; font-weight: 600; text-anchor: middle; }}
.faint {{ fill: #6e7781; }}
.end {{ text-anchor: end; }}
"""


def svg(scores: NDArray[np.float32], meanings: tuple[tuple[str, ...], ...]) -> str:
    """Returns the picture of the scores float32 [n, n]; the sentences are grouped by meaning."""
    side = place(len(scores) - 1) + CELL
    width, height = LEFT + side + MARGIN, TOP + side + FOOT_HEIGHT + MARGIN
    what = f"{len(meanings)} sentences in {len(LANGUAGES)} languages, each compared with all the others"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="what">',
        f'<title id="what">A heat map: {what}. Translations of each other are bright, all others dark.</title>',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#fdfdfb" stroke="#d0d7de"/>',
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 14}">{what}</text>',
        *heads(meanings),
        *labels(meanings),
        *cells(scores),
        *scale(float(scores.min()), float(scores.max()), TOP + side + FOOT_HEIGHT - 18),
    ]
    return "\n".join([*parts, "</svg>\n"])


def place(number: int) -> int:
    """Returns the distance in pixels from the first row or column to the row or column `number`."""
    return number * CELL + number // len(LANGUAGES) * GAP


def heads(meanings: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yields the heading of each group of columns: the English sentence."""
    for group, said in enumerate(meanings):
        middle = LEFT + place(group * len(LANGUAGES)) + len(LANGUAGES) * CELL // 2
        yield f'<text class="head" x="{middle}" y="{TOP - 10}">{escape(said[ENGLISH], quote=False)}</text>'


def labels(meanings: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yields the labels of each row: the language and the sentence."""
    for row, sentence in enumerate(sentence for said in meanings for sentence in said):
        y = TOP + place(row) + CELL - 4
        right_to_left = any(bidirectional(character) in {"R", "AL"} for character in sentence)
        # Right-to-left text starts at its right edge, next to the cells; other text ends there.
        flow = 'direction="rtl"' if right_to_left else 'class="end"'
        yield f'<text class="faint" x="{MARGIN}" y="{y}">{LANGUAGES[row % len(LANGUAGES)]}</text>'
        yield f'<text {flow} x="{LEFT - 8}" y="{y}">{escape(sentence, quote=False)}</text>'


def cells(scores: NDArray[np.float32]) -> Iterator[str]:
    """Yields a path for each colour; neighbours of one colour in a row are a single rectangle."""
    share = (scores - scores.min()) / (scores.max() - scores.min())
    steps = np.minimum(len(RAMP) - 1, (share * len(RAMP)).astype(int))
    paths: dict[int, str] = {}
    for row, line in enumerate(steps):
        breaks = [n for n in range(1, len(line)) if line[n] != line[n - 1] or n % len(LANGUAGES) == 0]
        for first, after in pairwise([0, *breaks, len(line)]):
            x, y, wide = LEFT + place(first), TOP + place(row), (after - first) * CELL
            paths[int(line[first])] = paths.get(int(line[first]), "") + f"M{x} {y}h{wide}v{CELL}h-{wide}z"
    for step, path in sorted(paths.items()):
        yield f'<path shape-rendering="crispEdges" fill="{colour(RAMP[step])}" d="{path}"/>'


def scale(low: float, high: float, y: int) -> Iterator[str]:
    """Yields the legend: the ramp of colours between the lowest and the highest score."""
    yield f'<text class="faint end" x="{LEFT - 8}" y="{y + 12}">cosine similarity {signed(low)}</text>'
    for step, number in enumerate(RAMP):
        yield f'<rect x="{LEFT + step * 20}" y="{y}" width="20" height="{CELL}" fill="{colour(number)}"/>'
    yield f'<text class="faint" x="{LEFT + len(RAMP) * 20 + 8}" y="{y + 12}">{signed(high)}</text>'


def signed(score: float) -> str:
    """Returns a score with two decimals and a minus sign instead of a hyphen."""
    return f"{score:.2f}".replace("-", "\N{MINUS SIGN}")


def colour(number: int) -> str:
    """Returns the terminal colour `number`, from 16 to 231, in the notation of SVG."""
    red, rest = divmod(number - 16, 36)
    green, blue = divmod(rest, 6)
    return f"#{LEVELS[red]:02x}{LEVELS[green]:02x}{LEVELS[blue]:02x}"


def main() -> int:
    """Scores the sentences with a server and writes the picture; returns the exit status."""
    with running_server() as address, Client(address) as client:
        scores = client.similarity([sentence for said in SAID for sentence in said]).values
    FILE.write_text(svg(scores, SAID), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
