"""A graph cache that cannot be written: a full disk, or a folder without write access."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from isogloss import Client

from tests.support import shapes
from tests.support.server_process import ServerProcess, python_with_limits

NOT_KEPT = "serving from memory"


@contextlib.contextmanager
def serving(tmp_path: Path, cache: Path, *limits: str) -> Iterator[ServerProcess]:
    """Yields a server of a small packed model with the graph cache in `cache`."""
    folder = shapes.write(tmp_path / "model", shapes.SMALL)
    flags = ("--model", f"small={folder}", "--graph-cache", str(cache), "--precision", "f32")
    with ServerProcess(*flags, python=python_with_limits(tmp_path, *limits)) as server:
        yield server


def check_served_with_one_warning(server: ServerProcess) -> str:
    """Asserts that the server embeds texts and has logged one warning; returns the cause in it."""
    with Client(server.address) as client:
        assert client.embed(["one text", "and another"]).vectors.shape[0] == 2
    assert server.stop() == 0
    warnings = [json.loads(line) for line in server.lines if NOT_KEPT in line]
    assert len(warnings) == 1
    return str(warnings[0]["cause"])


def test_a_model_is_served_if_the_disk_is_full(tmp_path: Path) -> None:
    """If the graph cannot be written, the model is served, one warning is logged, and no partial file remains."""
    cache = tmp_path / "graphs"
    with serving(tmp_path, cache, "-f 8") as server:  # the kernel limits every file to a few kilobytes
        assert "File too large" in check_served_with_one_warning(server)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/graphs", "a file"])
def test_a_model_is_served_if_the_cache_folder_cannot_be_created(tmp_path: Path, place: str) -> None:
    """If the folder cannot be created, the model is served, and one warning is logged."""
    (tmp_path / "a file").touch()
    with serving(tmp_path, tmp_path / place / "inner") as server:
        check_served_with_one_warning(server)
