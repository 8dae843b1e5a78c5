"""A graph cache that cannot be written: the disk is full, or the folder is not to be written to."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from isogloss import Client

from tests.support import shapes
from tests.support.limited import python_with
from tests.support.server_process import ServerProcess

NOT_KEPT = "cannot cache the compiled graph"


@contextlib.contextmanager
def serving(tmp_path: Path, cache: Path, *limits: str) -> Iterator[ServerProcess]:
    """A server with a small packed model and this folder for its graphs."""
    folder = shapes.write(tmp_path / "model", shapes.SMALL)
    flags = ("--model", f"small={folder}", "--graph-cache", str(cache), "--precision", "f32")
    with ServerProcess(*flags, python=python_with(tmp_path, *limits)) as server:
        yield server


def check_served_with_one_warning(server: ServerProcess) -> str:
    """Asserts that the server answers and has warned once; returns the cause."""
    with Client(server.address) as client:
        assert client.embed(["one text", "and another"]).vectors.shape[0] == 2
    assert server.stop() == 0
    warnings = [json.loads(line) for line in server.lines if NOT_KEPT in line]
    assert len(warnings) == 1
    return str(warnings[0]["cause"])


def test_a_full_disk_costs_a_compilation(tmp_path: Path) -> None:
    """Where there is no room for the graph, the model is served all the same; one line says so; no part is left."""
    cache = tmp_path / "graphs"
    with serving(tmp_path, cache, "-f 8") as server:  # the kernel ends every file after a few kilobytes
        assert "File too large" in check_served_with_one_warning(server)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/graphs", "a file"])
def test_a_folder_that_cannot_be_made_costs_a_compilation(tmp_path: Path, place: str) -> None:
    """Where the folder may not be written to, or is none, the model is served all the same, and one line says so."""
    (tmp_path / "a file").touch()
    with serving(tmp_path, tmp_path / place / "inner") as server:
        check_served_with_one_warning(server)
