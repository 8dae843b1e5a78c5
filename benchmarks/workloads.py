"""The four loads: how many callers, how many texts a call, and which texts."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).with_name("texts.tsv")
SEED = 20261121
# The longest joined text, in characters: within 128 tokens of the multilingual model for all but a few texts, and
# within 256 of all-MiniLM-L6-v2, since not all systems cut at the same length.
MAX_CHARS = 280


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One load. A caller makes its next call when the last one is answered."""

    name: str
    callers: int
    texts_per_call: int
    calls: int  # timed
    warm_calls: int  # before them, untimed
    max_sentences: int  # that are joined into one text
    max_chars: int = MAX_CHARS
    streamed: bool = False  # whether a service with a bulk interface takes all texts through that
    says: str


WORKLOADS = {
    work.name: work
    for work in (
        Workload(
            name="single",
            callers=64,
            texts_per_call=1,
            calls=1_500,
            warm_calls=256,
            max_sentences=2,
            max_chars=80,
            says="64 callers, one short text a call",
        ),
        Workload(
            name="batch",
            callers=8,
            texts_per_call=32,
            calls=150,
            warm_calls=24,
            max_sentences=8,
            says="8 callers, 32 texts of mixed lengths a call",
        ),
        Workload(
            name="bulk",
            callers=4,
            texts_per_call=500,
            calls=20,
            warm_calls=2,
            max_sentences=8,
            streamed=True,
            says="one caller with 10,000 texts of mixed lengths: through embed_many, "
            "from peers in requests of 500 with four in flight",
        ),
        Workload(
            name="trickle",
            callers=1,
            texts_per_call=1,
            calls=200,
            warm_calls=20,
            max_sentences=2,
            max_chars=80,
            says="one caller, one short text at a time",
        ),
    )
}


def sentences() -> dict[str, list[str]]:
    """Returns the shipped sentences by language."""
    found = defaultdict(list)
    for line in TEXTS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            language, sentence = line.split("\t")
            found[language].append(sentence)
    return dict(found)


def texts(work: Workload, n: int) -> list[str]:
    """Returns n texts, no two alike, the same in every run: each of 1 to max_sentences sentences of one language.

    One sentence is as likely as two to three or as four to eight, roughly: short texts are the more frequent. No text
    comes twice, so that no cache answers for a model.
    """
    rng = random.Random(SEED)  # noqa: S311 - nothing secret
    by_language = list(sentences().values())
    counts = range(1, work.max_sentences + 1)
    found: dict[str, None] = {}
    while len(found) < n:
        lines = rng.choice(by_language)
        count = rng.choices(counts, [1 / count for count in counts])[0]
        text = " ".join(rng.sample(lines, count))
        if len(text) <= work.max_chars:
            found[text] = None
    return list(found)


def calls(work: Workload) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the texts of each call: those to warm up with, and those to time."""
    size = work.texts_per_call
    pool = texts(work, (work.warm_calls + work.calls) * size)
    cut = [pool[first : first + size] for first in range(0, len(pool), size)]
    return cut[: work.warm_calls], cut[work.warm_calls :]


def probes() -> Sequence[str]:
    """Returns one sentence of each language, which every system's vectors are compared on."""
    return [lines[0] for lines in sentences().values()]
