"""Standard input of any length: chunk by chunk, vectors in a file, lines of JSON, errors at the rows of the whole."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from isogloss import Client
from isogloss.cli import commands, main
from isogloss.testing import FakeServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server; the command takes three texts at a time."""
    monkeypatch.setattr(commands, "CHUNK_TEXTS", 3)
    with FakeServer(dimensions=16) as running:
        yield running


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with lines on standard input; returns exit code, stdout and stderr."""

    def command(lines: list[str], *argv: str) -> tuple[int, str, str]:
        """Runs it in this process."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            code = main(list(argv), {"ISOGLOSS_SERVER": server.target})
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


LINES = [f"text {number}" for number in range(8)]


def vectors(server: FakeServer) -> np.ndarray:
    """What the client gets for LINES."""
    with Client(server.target) as client:
        return client.embed(LINES).vectors


def test_vectors_in_a_file(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """--npy writes float32 [n, d] that numpy reads, and prints where and in which space; nothing else is left."""
    file = tmp_path / "vectors.npy"
    file.write_text("what was there before")
    code, out, err = run(LINES, "embed", "--npy", str(file))
    assert (code, err) == (0, "")
    assert out == f"{file}: float32 [8, 16], model fake, space fake-space\n"
    found = np.load(file)
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors(server))
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
    assert [len(received.texts) for received in server.requests if received.method == "Embed"][:3] == [3, 3, 2]


def test_a_file_of_many_rows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows has room in the header however long it becomes."""
    monkeypatch.setattr(commands, "CHUNK_TEXTS", 1000)
    file = tmp_path / "vectors.npy"
    assert run(["a"] * 12_345, "embed", "--npy", str(file))[0] == 0
    assert np.load(file, mmap_mode="r").shape == (12_345, 16)


def test_a_file_as_json(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """With --json, programs read what is to be known beside the numbers; rows are those of the whole."""
    server.max_tokens = 2
    file = tmp_path / "vectors.npy"
    _, out, _ = run(["a", "b", "c", "d", "e f g"], "embed", "--npy", str(file), "--json")
    assert json.loads(out) == {
        "file": str(file),
        "rows": 5,
        "dimensions": 16,
        "model": "fake",
        "space_id": "fake-space",
        "truncated_rows": [4],
    }


@pytest.mark.parametrize("before", [None, b"before"])
def test_no_file_is_left_half(run: Run, server: FakeServer, tmp_path: Path, before: bytes | None) -> None:
    """Where a later chunk fails, the file is as it was, and the error names the row of the whole."""
    file = tmp_path / "vectors.npy"
    if before is not None:
        file.write_bytes(before)
    server.max_tokens = 2
    code, out, err = run([*LINES[:7], "one two three"], "embed", "--npy", str(file), "--truncation", "error")
    assert (code, out) == (1, "")
    assert "texts[7]" in err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_what_cannot_be_a_file_is_refused(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """A folder is wrong usage, a folder that is missing one line; neither costs a call."""
    assert run(LINES, "embed", "--npy", str(tmp_path))[0] == 2
    code, _, err = run(LINES, "embed", "--npy", str(tmp_path / "no" / "vectors.npy"))
    assert (code, err.count("\n")) == (1, 1)
    assert server.requests == []


def test_no_texts_make_no_file(run: Run, tmp_path: Path) -> None:
    """An empty standard input is wrong usage."""
    code, _, err = run([], "embed", "--npy", str(tmp_path / "vectors.npy"))
    assert code == 2
    assert "no texts" in err
    assert list(tmp_path.iterdir()) == []


def test_lines_of_json(run: Run, server: FakeServer) -> None:
    """--jsonl prints one object for each text, complete in itself."""
    server.max_tokens = 1
    _, out, _ = run(["a", "b", "c", "d e"], "embed", "--jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert [entry.pop("vector")[:1] != [] for entry in found] == [True] * 4
    rest = {"model": "fake", "space_id": "fake-space", "token_count": 1}
    assert found == [
        {"row": row, "text": text, **rest, "truncated": row == 3} for row, text in enumerate(["a", "b", "c", "d e"])
    ]


def test_one_object_of_several_chunks(run: Run, server: FakeServer) -> None:
    """--json is one object however many chunks there were."""
    found = json.loads(run(LINES, "embed", "--json")[1])
    assert found["texts"] == LINES
    assert np.array_equal(np.array(found["vectors"], np.float32), vectors(server))
    assert found["token_counts"] == [2] * 8


def test_readable_lines_of_several_chunks(run: Run) -> None:
    """People get a line for each text."""
    assert len(run(LINES, "embed")[1].splitlines()) == 8


@pytest.mark.parametrize("other", [["--json"], ["--npy", "vectors.npy"]])
def test_forms_that_exclude_each_other(run: Run, other: list[str]) -> None:
    """--jsonl with another form is wrong usage."""
    assert run(LINES, "embed", "--jsonl", *other)[0] == 2


def test_a_space_that_changes_meanwhile(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of two spaces never come into one output."""

    def lines() -> Iterator[str]:
        """Standard input during which the server gets another model."""
        yield from LINES[:4]
        server.space_id = "other"
        yield from LINES[4:]

    for argv in (["embed", "--json"], ["nearest", "q"]):
        server.space_id = "fake-space"
        monkeypatch.setattr(commands.sys, "stdin", lines())  # type: ignore[attr-defined]
        assert main(argv, {"ISOGLOSS_SERVER": server.target}) == 1


def test_neighbours_among_many(run: Run, server: FakeServer) -> None:
    """The nearest of all candidates are found, ties by lower row, though only some are held at a time."""
    server.add_translations("umbrella", "Regenschirm", "paraguas")
    candidates = [*LINES, "paraguas", "umbrella", "rain", "umbrella"]
    found = json.loads(run(candidates, "nearest", "umbrella", "-k", "3", "--json")[1])
    assert [neighbor["row"] for neighbor in found["neighbors"]] == [9, 11, 8]
    assert found["neighbors"][2]["text"] == "paraguas"
    assert max(len(received.texts) for received in server.requests) == 4


def test_a_bad_candidate_is_named_by_its_row(run: Run, server: FakeServer) -> None:
    """An error about a later chunk names the row of the whole."""
    server.max_tokens = 2
    _, _, err = run([*LINES[:6], "one two three"], "nearest", "q", "--truncation", "error")
    assert "candidates[6]" in err
