"""The four workloads of the comparison: number of callers, texts of a call, and lengths of the texts."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).with_name("texts.tsv")
SEED = 20261121
# Keeps nearly all texts below the truncation lengths (128 tokens of the multilingual model, 256 of all-MiniLM-L6-v2),
# because systems truncate at different lengths.
MAX_CHARS = 280


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One workload in a closed loop: each caller waits for the response before it makes its next call."""

    name: str
    callers: int
    texts_per_call: int
    calls: int  # measured
    warm_calls: int  # before the measured calls
    max_sentences: int  # joined into one text
    max_chars: int = MAX_CHARS
    streamed: bool = False  # systems with a bulk interface receive all texts through it
    description: str

    @property
    def measures_latency(self) -> bool:
        """True if a call waits for no other call.

        With several callers in a closed loop, the latency is the number of callers divided by the throughput.
        """
        return self.callers == 1


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="single",
            callers=64,
            texts_per_call=1,
            calls=1_500,
            warm_calls=256,
            max_sentences=2,
            max_chars=80,
            description="64 callers, one short text a call",
        ),
        Workload(
            name="batch",
            callers=8,
            texts_per_call=32,
            calls=150,
            warm_calls=24,
            max_sentences=8,
            description="8 callers, 32 texts of mixed lengths a call",
        ),
        Workload(
            name="bulk",
            callers=4,
            texts_per_call=500,
            calls=20,
            warm_calls=2,
            max_sentences=8,
            streamed=True,
            description="one caller with 10,000 texts of mixed lengths: through embed_many, "
            "to other systems in requests of 500 with four in flight",
        ),
        Workload(
            name="trickle",
            callers=1,
            texts_per_call=1,
            calls=200,
            warm_calls=20,
            max_sentences=2,
            max_chars=80,
            description="one caller, one short text at a time",
        ),
    )
}


def sentences() -> dict[str, list[str]]:
    """Returns the sentences of texts.tsv by language."""
    by_language = defaultdict(list)
    for language, sentence in _rows():
        by_language[language].append(sentence)
    return dict(by_language)


def mixed_sentences() -> list[str]:
    """Returns the sentences of texts.tsv in the order of the file, in which the languages alternate."""
    return [sentence for _, sentence in _rows()]


def _rows() -> list[list[str]]:
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def texts(workload: Workload, n: int) -> list[str]:
    """Returns n distinct texts of 1 to max_sentences sentences of one language, the same in every run.

    A text of k sentences has a probability proportional to 1/k. The texts are distinct so that caches have no effect.
    """
    rng = random.Random(SEED)  # noqa: S311 - not for cryptography
    by_language = list(sentences().values())
    counts = range(1, workload.max_sentences + 1)
    distinct: dict[str, None] = {}
    while len(distinct) < n:
        lines = rng.choice(by_language)
        count = rng.choices(counts, [1 / count for count in counts])[0]
        text = " ".join(rng.sample(lines, count))
        if len(text) <= workload.max_chars:
            distinct[text] = None
    return list(distinct)


def calls(workload: Workload) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the texts of each warm-up call and of each measured call."""
    size = workload.texts_per_call
    pool = texts(workload, (workload.warm_calls + workload.calls) * size)
    batches = [pool[first : first + size] for first in range(0, len(pool), size)]
    return batches[: workload.warm_calls], batches[workload.warm_calls :]


def probes() -> Sequence[str]:
    """Returns one sentence of each language, on which the vectors of the systems are compared."""
    return [lines[0] for lines in sentences().values()]
