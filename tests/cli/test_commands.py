"""The isogloss command: arguments, output for people and for programs, exit codes."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from isogloss import __version__
from isogloss.cli import main
from isogloss.v1 import embedding_pb2 as pb

from tests.support.scripted_server import DIMENSIONS, SPACE, Running, vector


@pytest.fixture
def run(scripted: Running, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on the scripted server; returns exit code, stdout and stderr."""

    def command(*argv: str, **environment: str) -> tuple[int, str, str]:
        """Runs it in this process."""
        try:
            code = main(list(argv), {"ISOGLOSS_SERVER": scripted.address, **environment})
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Puts `text` on standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_embed_prints_a_line_a_text(run: Any) -> None:
    """People see the first numbers of each vector."""
    code, out, err = run("embed", "a", "b")
    assert (code, err) == (0, "")
    assert [line.split()[-1] for line in out.splitlines()] == ["a", "b"]


def test_embed_as_json(run: Any) -> None:
    """Programs get every number."""
    _, out, _ = run("embed", "a", "おはよう", "--json")
    assert json.loads(out) == {
        "model": "default",
        "space_id": SPACE,
        "dimensions": DIMENSIONS,
        "token_counts": [1, 4],
        "truncated_rows": [],
        "texts": ["a", "おはよう"],
        "vectors": [vector("a").tolist(), vector("おはよう").tolist()],
    }


@pytest.mark.parametrize("words", [["embed", "a"], ["similarity", "a", "b"], ["nearest", "a", "b"]])
@pytest.mark.parametrize(("flags", "sent"), [([], 0), (["--truncation", "end"], pb.TRUNCATION_END)])
def test_a_truncation_left_unsaid_is_left_to_the_server(
    run: Any, scripted: Running, words: list[str], flags: list[str], sent: int
) -> None:
    """Without the flag the server does what the model can; with it, what was asked for."""
    assert run(*words, *flags)[0] == 0
    requests = [*scripted.script.requests("Embed"), *scripted.script.requests("Similarity")]
    assert [request.truncation for request in requests] == [sent]


def test_similarity_prints_a_map(run: Any) -> None:
    """Texts are compared with each other; a pipe gets no colours."""
    code, out, _ = run("similarity", "a", "a")
    assert (code, out) == (0, "         0     1\n0  a  1.00  1.00\n1  a  1.00  1.00\n")
    assert "\x1b" not in out


def test_similarity_as_json(run: Any) -> None:
    """Both sides and all scores are in the object."""
    _, out, _ = run("similarity", "a", "--candidate", "a", "--candidate", "b", "--json", "--metric", "dot")
    found = json.loads(out)
    assert (found["queries"], found["candidates"], found["metric"]) == (["a"], ["a", "b"], "dot")
    assert found["scores"] == [[float(vector("a") @ vector("a")), float(vector("a") @ vector("b"))]]


def test_pairs_as_json(run: Any) -> None:
    """Each text meets the candidate of the same place."""
    _, out, _ = run("similarity", "a", "b", "--candidate", "a", "--candidate", "b", "--pairwise", "--json")
    pairs = [{"query": text, "candidate": text, "score": 1.0} for text in "ab"]
    assert json.loads(out)["pairs"] == pairs


def test_pairs_are_readable(run: Any) -> None:
    """A line a pair."""
    assert run("similarity", "a", "--candidate", "a", "--pairwise")[1] == "  1.000  a  a\n"


def test_nearest_reads_candidates_from_stdin(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without candidates the lines of standard input are searched, blank ones left out."""
    typed(monkeypatch, "b\n\na\r\n  \nc\n")
    _, out, _ = run("nearest", "a", "-k", "1", "--json")
    assert json.loads(out) == {
        "model": "default",
        "space_id": SPACE,
        "metric": "cosine",
        "query": "a",
        "neighbors": [{"row": 1, "text": "a", "score": 1.0}],
    }


def test_nearest_prints_a_table(run: Any) -> None:
    """Score, row, text."""
    assert run("nearest", "a", "a", "--min-score", "0.9")[1] == " score  row  text\n 1.000    0  a\n"


def test_a_dash_reads_stdin(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single - stands for the lines of standard input."""
    typed(monkeypatch, "a\nb")
    assert json.loads(run("embed", "-", "--json")[1])["texts"] == ["a", "b"]


def test_health(run: Any, scripted: Running) -> None:
    """A server that serves, if slowly, is exit code 0; what is wrong is to be read."""
    code, out, _ = run("health")
    assert code == 0
    assert out.startswith("degraded: version 9.9, up 3 s\n")
    assert "slow" in out
    assert json.loads(run("health", "--json")[1])["models"][0]["status"] == "degraded"
    assert run("health", "--model", "newer")[0] == 1


def test_models(run: Any) -> None:
    """Every model with its dimensions and space."""
    code, out, _ = run("models")
    assert code == 0
    assert out.splitlines()[1].split() == ["default", "16", "8", "0", "1", SPACE]
    assert json.loads(run("models", "--json")[1])["models"][0]["dimensions"] == [16, 8]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["translate", "a"],
        ["embed", "a", "--element-type", "float64"],
        ["embed", "a", "--timeout-s", "0"],
        ["nearest"],
        ["nearest", "a", "b", "-k", "0"],
        ["nearest", "a", "b", "-k", "abc"],
        ["nearest", "a", "b", "-k", "5000000000"],
        ["embed", "a", "--dimensions", "-1"],
        ["health", "--server", "http://localhost:1"],
        ["similarity", "a", "--pairwise"],
    ],
)
def test_wrong_usage_is_exit_code_2(run: Any, argv: list[str]) -> None:
    """What is wrong is one line on stderr, and nothing on stdout."""
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("isogloss: ")
    assert err.count("\n") == 1
    assert "--help" in err


def test_no_texts_are_wrong_usage(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty standard input is not sent."""
    typed(monkeypatch, "\n \n")
    code, _, err = run("embed")
    assert code == 2
    assert "no texts" in err


def test_other_errors_are_one_line_and_exit_code_1(run: Any, scripted: Running) -> None:
    """The line says what happened and which text is at fault; there is no traceback."""
    scripted.script.bad_texts = {"bad"}
    code, out, err = run("embed", "a", "bad")
    assert (code, out) == (1, "")
    assert err == "isogloss: texts[1] is wrong [EMPTY_TEXT]\n"


def test_nobody_listens(run: Any) -> None:
    """A server that is not there is one line."""
    code, _, err = run("health", "--server", "127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("isogloss: ")
    assert "UNAVAILABLE" in err


def test_a_missing_certificate_file_is_one_line(run: Any) -> None:
    """The file is named."""
    code, _, err = run("health", "--root-certificates", "/nonexistent/ca.pem")
    assert (code, err.count("\n")) == (1, 1)
    assert "/nonexistent/ca.pem" in err


def test_colours_only_when_asked(run: Any) -> None:
    """A pipe has none unless told; with --color always NO_COLOR does not matter."""
    assert "\x1b" not in run("similarity", "a", "b")[1]
    assert "\x1b" in run("similarity", "a", "b", "--color", "always")[1]
    assert "\x1b" in run("nearest", "a", "b", "--color", "always", NO_COLOR="1")[1]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_colours(
    run: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    """On a terminal there are colours, unless the environment asks for none."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert ("\x1b" in run("similarity", "a", "b", **environment)[1]) is coloured


def test_the_key_comes_from_the_environment(run: Any, scripted: Running) -> None:
    """There is no flag for the key; the variable's is sent."""
    run("health", ISOGLOSS_API_KEY="secret-key")
    assert scripted.script.calls[0].metadata["authorization"] == "Bearer secret-key"
    code, out, _ = run("--help")
    assert code == 0
    assert "ISOGLOSS_API_KEY" in out
    assert run("health", "--api-key", "x")[0] == 2


def test_the_version(run: Any) -> None:
    """--version names program and version."""
    assert run("--version")[:2] == (0, f"isogloss {__version__}\n")


def test_ctrl_c_is_clean(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt is exit code 130 without a word."""

    def interrupted() -> Any:
        """Stands for reading, when Ctrl-C comes."""
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"__iter__": lambda self: interrupted()})())
    assert run("embed") == (130, "", "")
