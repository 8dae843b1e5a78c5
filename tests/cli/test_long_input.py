"""Long standard input: embedded in chunks, into files and JSON, with errors that name rows among all texts."""

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
    """Provides a server; the command sends three texts per chunk."""
    monkeypatch.setattr(commands, "CHUNK_TEXTS", 3)
    with FakeServer(dimensions=16) as running:
        yield running


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns a function that runs the command with lines on stdin and returns exit code, stdout and stderr."""

    def command(lines: list[str], *argv: str) -> tuple[int, str, str]:
        """Runs the command in this process."""
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
    """Returns the vectors of LINES."""
    with Client(server.target) as client:
        return client.embed(LINES).vectors


def test_npy_writes_a_file_that_numpy_loads(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """--npy writes float32 [n, d], prints path, shape, model and space, and leaves no other file."""
    file = tmp_path / "vectors.npy"
    file.write_text("previous contents")
    code, out, err = run(LINES, "embed", "--npy", str(file))
    assert (code, err) == (0, "")
    assert out == f"{file}: float32 [8, 16], model fake, space fake-space\n"
    found = np.load(file)
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors(server))
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
    assert [len(received.texts) for received in server.requests if received.method == "Embed"][:3] == [3, 3, 2]


def test_npy_files_can_have_any_number_of_rows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header has space for a larger number of rows than was known at first."""
    monkeypatch.setattr(commands, "CHUNK_TEXTS", 1000)
    file = tmp_path / "vectors.npy"
    assert run(["a"] * 12_345, "embed", "--npy", str(file))[0] == 0
    assert np.load(file, mmap_mode="r").shape == (12_345, 16)


def test_npy_with_json_prints_what_the_file_lacks(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """--json prints model, space and the truncated rows among all texts."""
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
def test_a_failed_run_leaves_the_file_unchanged(
    run: Run, server: FakeServer, tmp_path: Path, before: bytes | None
) -> None:
    """If a later chunk fails, the file is unchanged, and the error has the row among all texts."""
    file = tmp_path / "vectors.npy"
    if before is not None:
        file.write_bytes(before)
    server.max_tokens = 2
    code, out, err = run([*LINES[:7], "one two three"], "embed", "--npy", str(file), "--truncation", "error")
    assert (code, out) == (1, "")
    assert "texts[7]" in err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_unusable_paths_are_refused_before_the_first_request(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """A folder is a usage error, a missing folder an error of one line; no request is sent."""
    assert run(LINES, "embed", "--npy", str(tmp_path))[0] == 2
    code, _, err = run(LINES, "embed", "--npy", str(tmp_path / "no" / "vectors.npy"))
    assert (code, err) == (1, f"isogloss: {tmp_path}/no/vectors.npy: cannot write: No such file or directory\n")
    assert server.requests == []


def test_no_texts_create_no_file(run: Run, tmp_path: Path) -> None:
    """An empty standard input is a usage error."""
    code, _, err = run([], "embed", "--npy", str(tmp_path / "vectors.npy"))
    assert code == 2
    assert "no texts" in err
    assert list(tmp_path.iterdir()) == []


def test_jsonl_prints_one_complete_object_per_text(run: Run, server: FakeServer) -> None:
    """Each line of --jsonl has all values of its text."""
    server.max_tokens = 1
    _, out, _ = run(["a", "b", "c", "d e"], "embed", "--jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert [entry.pop("vector")[:1] != [] for entry in found] == [True] * 4
    rest = {"model": "fake", "space_id": "fake-space", "token_count": 1}
    assert found == [
        {"row": row, "text": text, **rest, "truncated": row == 3} for row, text in enumerate(["a", "b", "c", "d e"])
    ]


def test_json_is_one_object_for_several_chunks(run: Run, server: FakeServer) -> None:
    """--json prints one object for any number of chunks."""
    found = json.loads(run(LINES, "embed", "--json")[1])
    assert found["texts"] == LINES
    assert np.array_equal(np.array(found["vectors"], np.float32), vectors(server))
    assert found["token_counts"] == [2] * 8


def test_the_table_has_a_line_per_text_for_several_chunks(run: Run) -> None:
    """The table has one line per text for any number of chunks."""
    assert len(run(LINES, "embed")[1].splitlines()) == 8


@pytest.mark.parametrize("other", [["--json"], ["--npy", "vectors.npy"]])
def test_jsonl_excludes_other_output_forms(run: Run, other: list[str]) -> None:
    """--jsonl with --json or --npy is a usage error."""
    assert run(LINES, "embed", "--jsonl", *other)[0] == 2


def test_a_space_that_changes_between_chunks_is_an_error(
    run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of two spaces are not combined in one output."""

    def lines() -> Iterator[str]:
        """Yields lines; changes the model of the server in between."""
        yield from LINES[:4]
        server.space_id = "other"
        yield from LINES[4:]

    for argv in (["embed", "--json"], ["nearest", "q"]):
        server.space_id = "fake-space"
        monkeypatch.setattr(commands.sys, "stdin", lines())  # type: ignore[attr-defined]
        assert main(argv, {"ISOGLOSS_SERVER": server.target}) == 1


def test_nearest_finds_the_best_of_all_chunks(run: Run, server: FakeServer) -> None:
    """The neighbours are the best of all chunks, ties ordered by row."""
    server.add_translations("umbrella", "Regenschirm", "paraguas")
    candidates = [*LINES, "paraguas", "umbrella", "rain", "umbrella"]
    found = json.loads(run(candidates, "nearest", "umbrella", "-k", "3", "--json")[1])
    assert [neighbor["row"] for neighbor in found["neighbors"]] == [9, 11, 8]
    assert found["neighbors"][2]["text"] == "paraguas"
    assert max(len(received.texts) for received in server.requests) == 4


def test_an_invalid_candidate_is_named_by_its_row_among_all(run: Run, server: FakeServer) -> None:
    """An error in a later chunk has the row among all candidates."""
    server.max_tokens = 2
    _, _, err = run([*LINES[:6], "one two three"], "nearest", "q", "--truncation", "error")
    assert "candidates[6]" in err
