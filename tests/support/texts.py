"""Texts of various lengths from real sentences in many scripts."""

from pathlib import Path

import numpy as np

SENTENCES = Path(__file__).parents[2] / "benchmarks" / "texts.tsv"  # Tatoeba, CC BY 2.0 FR


def sentences() -> list[str]:
    """Returns a thousand sentences in 39 languages, in turn."""
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if not line.startswith("#")]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Returns texts of 1 to 16 sentences, most of them short; the same seed results in the same texts."""
    rng = np.random.default_rng(seed)
    lines = sentences()
    sizes = rng.choice([1, 1, 1, 1, 2, 3, 5, 16], count)
    starts = rng.integers(0, len(lines) - 16, count)
    return [" ".join(lines[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
