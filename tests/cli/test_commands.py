"""The isogloss command: arguments, tables, JSON and exit codes."""

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from isogloss import ServingStatus, __version__
from isogloss.cli import main
from isogloss.testing import FakeServer
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake import DIMENSIONS, SPACE, fake_server, messages, vector
from tests.support.lying_server import altered, lying_server


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that runs the command and returns its exit code, stdout and stderr."""

    def command(*argv: str, **environment: str) -> tuple[int, str, str]:
        """Runs the command in this process."""
        try:
            code = main(list(argv), {"ISOGLOSS_SERVER": server.target, **environment})
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def set_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Puts `text` on standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_embed_prints_a_line_per_text(run: Any) -> None:
    """The table has one line per text."""
    code, out, err = run("embed", "a", "b")
    assert (code, err) == (0, "")
    assert [line.split()[-1] for line in out.splitlines()] == ["a", "b"]


def test_embed_json_has_all_numbers(run: Any) -> None:
    """--json prints texts, vectors, token counts, model and space."""
    _, out, _ = run("embed", "a", "おはよう", "--json")
    assert json.loads(out) == {
        "model": "default",
        "space_id": SPACE,
        "dimensions": DIMENSIONS,
        "token_counts": [1, 1],
        "truncated_rows": [],
        "texts": ["a", "おはよう"],
        "vectors": [vector("a").tolist(), vector("おはよう").tolist()],
    }


@pytest.mark.parametrize("words", [["embed", "a"], ["similarity", "a", "b"], ["nearest", "a", "b"]])
@pytest.mark.parametrize(("flags", "sent"), [([], 0), (["--truncation", "end"], pb.TRUNCATION_END)])
def test_an_absent_truncation_flag_stays_absent_in_requests(
    run: Any, server: FakeServer, words: list[str], flags: list[str], sent: int
) -> None:
    """Without --truncation the request has none; with it, the value of the flag."""
    assert run(*words, *flags)[0] == 0
    requests = [*messages(server, "Embed"), *messages(server, "Similarity")]
    assert [request.truncation for request in requests] == [sent]


def test_similarity_prints_a_heat_map(run: Any) -> None:
    """The texts are compared with each other; a pipe gets no colours."""
    code, out, _ = run("similarity", "a", "a")
    assert (code, out) == (0, "         0     1\n0  a  1.00  1.00\n1  a  1.00  1.00\n")
    assert "\x1b" not in out


def test_similarity_json_has_both_sides_and_all_scores(run: Any) -> None:
    """--json prints queries, candidates, metric and scores."""
    _, out, _ = run("similarity", "a", "--candidate", "a", "--candidate", "b", "--json", "--metric", "dot")
    found = json.loads(out)
    assert (found["queries"], found["candidates"], found["metric"]) == (["a"], ["a", "b"], "dot")
    assert found["scores"] == [pytest.approx([1.0, float(vector("a") @ vector("b"))], abs=1e-6)]


def test_pairwise_json_has_each_text_with_its_candidate(run: Any) -> None:
    """Each text is compared with the candidate in the same position."""
    _, out, _ = run("similarity", "a", "b", "--candidate", "a", "--candidate", "b", "--pairwise", "--json")
    pairs = [{"query": text, "candidate": text, "score": 1.0} for text in "ab"]
    assert json.loads(out)["pairs"] == pairs


def test_pairwise_prints_a_line_per_pair(run: Any) -> None:
    """The table has one line per pair."""
    assert run("similarity", "a", "--candidate", "a", "--pairwise")[1] == "  1.000  a  a\n"


def test_nearest_reads_candidates_from_stdin(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without candidates, the lines of standard input are searched, except blank ones."""
    set_stdin(monkeypatch, "b\n\na\r\n  \nc\n")
    _, out, _ = run("nearest", "a", "-k", "1", "--json")
    assert json.loads(out) == {
        "model": "default",
        "space_id": SPACE,
        "metric": "cosine",
        "query": "a",
        "neighbors": [{"row": 1, "text": "a", "score": 1.0}],
    }


def test_nearest_prints_a_table(run: Any) -> None:
    """The table has score, row and text."""
    assert run("nearest", "a", "a", "--min-score", "0.9")[1] == " score  row  text\n 1.000    0  a\n"


def test_a_dash_reads_stdin(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single - selects the lines of standard input."""
    set_stdin(monkeypatch, "a\nb")
    assert json.loads(run("embed", "-", "--json")[1])["texts"] == ["a", "b"]


def test_health_can_wait_until_the_server_serves(run: Any, server: FakeServer) -> None:
    """With --wait the command asks again until the server is ready, or until --timeout-s."""
    server.status = ServingStatus.NOT_SERVING
    code, _, err = run("health", "--wait", "--timeout-s", "0.3")
    assert code == 1
    assert "within 0.3 s" in err
    server.on_request = lambda _: setattr(server, "status", ServingStatus.SERVING)
    assert run("health", "--wait")[0] == 0


def test_health_exits_with_0_if_serving_or_degraded(run: Any, server: FakeServer) -> None:
    """A degraded server is exit code 0, with its detail in the table; an unknown status is exit code 1."""
    server.status, server.status_detail = ServingStatus.DEGRADED, "slow"
    code, out, _ = run("health")
    assert code == 0
    assert re.match(rf"degraded: version {re.escape(__version__)}, up \d+ s\n", out)
    assert "slow" in out
    assert json.loads(run("health", "--json")[1])["models"][0]["status"] == "degraded"
    server.status = ServingStatus.UNKNOWN
    assert run("health")[0] == 1


def test_models_prints_dimensions_and_space(run: Any) -> None:
    """The table has each model with its dimensions and space."""
    code, out, _ = run("models")
    assert code == 0
    assert out.splitlines()[1].split() == ["default", "fake", "16", "8", "512", "unknown", "Apache-2.0", SPACE]
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
    """The error is one line on stderr, and stdout is empty."""
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("isogloss: ")
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embed", "a", "--timeout-s", "0"], "--timeout-s must be finite and at least 0.001, not 0.0"),
        (["embed", "a", "--npy", "-"], "argument --npy: standard output (-) is not supported; name a file"),
        (["health", "--server", "http://x"], "--server (or ISOGLOSS_SERVER) must have the form 'host:port'"),
        (["nearest"], "the following arguments are required: QUERY (see"),
        (["nearest", "a", "--metirc", "dot"], "unknown flag --metirc; did you mean --metric?"),
        (["nearest", "a", "--metirc=dot"], "unknown flag --metirc; did you mean --metric?"),
        (["health", "--frobnicate"], "unknown flag --frobnicate (see isogloss health --help)"),
        (["health", "fake"], "unexpected argument 'fake'"),
        (["health", "--", "fake"], "unexpected argument 'fake'"),
        (["embed", "-x"], "unknown flag -x; write -- before texts that begin with - (see isogloss embed --help)"),
        (["embed", "-hello"], "unknown flag -hello; did you mean --help?"),
        (["embed", "a", "\udcff"], "argument TEXT: not valid UTF-8"),
        (["nearest", "\udcff", "a"], "argument QUERY: not valid UTF-8"),
        (["similarity", "a", "--candidate", "\udcff"], "argument --candidate: not valid UTF-8"),
        (["embed", "a", "--model", "\udcff"], "argument --model: not valid UTF-8"),
        (["similarity", "a", "--candidate", "-x"], "argument --candidate: expected one argument; write FLAG=VALUE if"),
        (["nearest", "a", "b", "--min-score", "x"], "argument --min-score: must be a number, not 'x'"),
        (["embed", "a", "--timeout-s", "soon"], "argument --timeout-s: must be a number, not 'soon'"),
        (
            ["embed", "a", "--dimensions", "9" * 5000],
            "argument --dimensions: must be a whole number, not a str of 5000",
        ),
        (["embed", "a", "--npy", ""], "argument --npy: must name a file"),
        (["embed", "a", "--json", "--jsonl"], "--jsonl cannot be combined with --json or --npy (see isogloss embed"),
        (["completion"], "the following arguments are required: SHELL"),
    ],
)
def test_usage_errors_name_the_flag(run: Any, argv: list[str], message: str) -> None:
    """The message has the flag or argument as the user writes it, and a suggestion for a mistyped flag."""
    assert run(*argv)[2].startswith(f"isogloss: {message}")


def test_an_unknown_value_of_a_flag_lists_the_values(run: Any) -> None:
    """The values are those to type, not members of an enum."""
    err = run("embed", "a", "--truncation", "x")[2]
    assert re.search(r"--truncation: .*choose from '?end'?, '?start'?, '?error'?\)", err)


def test_a_text_that_the_server_refuses_is_named_by_its_argument(run: Any, server: FakeServer) -> None:
    """The line names the query, without control characters that the server may have sent."""
    field = "queries.texts.texts[0]\x1b[31m"
    message = f"{field} is wrong"
    server.fail_next("Similarity", code="INVALID_ARGUMENT", reason="EMPTY_TEXT", message=message, fields=[field])
    assert re.fullmatch(r"isogloss: query \[31m is wrong \[EMPTY_TEXT, request \w+\]\n", run("nearest", "a", "b")[2])


@pytest.mark.parametrize(
    "argv",
    [
        ["nearest", "Where?", "-k", "1", "I like tea", "--json", "Here"],
        ["nearest", "-k1", "Where?", "I like tea", "--json", "--", "Here"],
        ["nearest", "--json", "-k", "1", "--", "Where?", "I like tea", "Here"],
        ["nearest", "Where?", "--metric=cosine", "I like tea", "Here", "-k", "1", "--json"],
    ],
)
def test_flags_may_stand_between_texts(run: Any, server: FakeServer, argv: list[str]) -> None:
    """The texts are those that are neither flags nor their values, in order."""
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert len(json.loads(out)["neighbors"]) == 1
    [request] = messages(server, "Similarity")
    assert request.queries.texts.texts == ["Where?"]
    assert request.candidates.texts.texts == ["I like tea", "Here"]


def test_arguments_after_two_dashes_are_texts(run: Any) -> None:
    """Texts after -- may begin with -, look like a flag, or be -- itself."""
    texts = ["-x", "--json", "--", "-", "-h"]
    assert json.loads(run("embed", "a", "--json", "--", *texts)[1])["texts"] == ["a", *texts]
    assert json.loads(run("similarity", "--json", "-1 degree", "--", "-2")[1])["queries"] == ["-1 degree", "-2"]


HOSTILE = "a\x1b[2J\x07\r\nb\x9b31m\u202ec\u2066\u2028d\x7f\U000e0041"


def checked(printed: str) -> None:
    """Asserts that a terminal obeys nothing in `printed`."""
    for line in printed.split("\n"):
        controls = [character for character in line if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"}]
        assert set(controls) <= {"\u2068", "\u2069"}  # the command's own, around right-to-left labels


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("method", "path", "argv"),
    [
        ("Health", "version", ["health"]),
        ("Health", "models.0.detail", ["health"]),
        ("Health", "models.0.model", ["health"]),
        ("ListModels", "models.0.name", ["models"]),
        ("ListModels", "models.0.space_id", ["models"]),
        ("ListModels", "models.0.backend", ["models"]),
        ("ListModels", "models.0.license", ["models"]),
        ("ListModels", "models.0.revision", ["models"]),
        ("ListModels", "models.0.languages", ["models"]),
        ("Embed", "model", ["embed", "a"]),
        ("Embed", "space_id", ["embed", "a", "--npy", "vectors.npy"]),
        ("Similarity", "model", ["similarity", "a", "b"]),
        ("Similarity", "space_id", ["nearest", "a", "b"]),
    ],
)
def test_words_of_a_hostile_server_do_not_control_the_terminal(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, argv: list[str], flags: list[str]
) -> None:
    """Tables print no control characters of a server; JSON escapes them and keeps the value."""
    monkeypatch.chdir(tmp_path)

    def change(response: Any) -> None:
        """Puts the hostile word into the response."""
        *parents, name = path.split(".")
        for parent in parents:
            response = response[int(parent)] if parent.isdecimal() else getattr(response, parent)
        if name == "languages":
            response.languages.append(HOSTILE)
        else:
            setattr(response, name, HOSTILE)

    with lying_server(**altered(method, change)) as target:
        code, out, err = run(*argv, *flags, "--server", target)
    assert (code, err) == (0, "")
    checked(out)
    if flags:
        assert HOSTILE in words(json.loads(out))


def words(value: Any) -> Iterator[str]:
    """Yields all strings in a value of JSON."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from words(item)


def test_errors_of_a_hostile_server_do_not_control_the_terminal(run: Any, server: FakeServer) -> None:
    """An error is one line, whatever its message, reason and fields contain."""
    server.fail_next("Embed", code="NOT_FOUND", reason=HOSTILE, message=HOSTILE, fields=[f"{HOSTILE}x"])
    code, out, err = run("embed", "a")
    assert (code, out, err.count("\n")) == (1, "", 1)
    checked(err)


def test_json_keeps_texts_of_every_script_readable(run: Any) -> None:
    """Only characters that control a terminal are escaped; the value is the same."""
    texts = ["おはよう\u3000世界", "नमस्ते", "a\u202eb"]
    out = run("embed", *texts, "--json")[1]
    assert json.loads(out)["texts"] == texts
    assert texts[0] in out
    assert texts[1] in out
    assert "a\\u202eb" in out


def test_the_heat_map_fits_the_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the lines of the heat map are at most as wide as the terminal."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run("similarity", "--color", "never", *(f"a long text with the number {n}" for n in range(8)))
    assert max(map(len, out.splitlines())) <= 40
    assert {"0", "7"} < set(out.split())


def test_no_texts_are_wrong_usage(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty standard input is a usage error."""
    set_stdin(monkeypatch, "\n \n")
    code, _, err = run("embed")
    assert code == 2
    assert "no texts" in err


def test_other_errors_are_one_line_and_exit_code_1(run: Any, server: FakeServer) -> None:
    """The line has the message and the invalid text's row, without a traceback."""
    wrong = {"message": "texts[1] is wrong", "fields": ["texts[1]"]}
    server.fail_next("Embed", code="INVALID_ARGUMENT", reason="EMPTY_TEXT", **wrong)
    code, out, err = run("embed", "a", "b")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"isogloss: texts\[1\] is wrong \[EMPTY_TEXT, request \w+\]\n", err)


def test_an_unreachable_server_is_one_line(run: Any) -> None:
    """A target without a server prints one line."""
    code, _, err = run("health", "--server", "127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("isogloss: ")
    assert "UNAVAILABLE" in err


def test_a_missing_certificate_file_is_named(run: Any) -> None:
    """The error is one line with the path of the file."""
    code, _, err = run("health", "--root-certificates", "/nonexistent/ca.pem")
    assert (code, err.count("\n")) == (1, 1)
    assert "/nonexistent/ca.pem" in err


@pytest.fixture
def tls_files(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Provides the files and the name that a client needs, and the address of a server with mutual TLS."""
    authority = trustme.CA()
    of_server, own = authority.issue_cert("embeddings.example"), authority.issue_cert("client")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair = (of_server.private_key_pem.bytes(), of_server.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    with fake_server(credentials=credentials) as server:
        yield {
            "server": server.target,
            "root-certificates": str(tmp_path / "ca.pem"),
            "client-certificate": str(tmp_path / "cert.pem"),
            "client-key": str(tmp_path / "key.pem"),
            "server-name": "embeddings.example",
        }


def test_tls_is_set_by_flags(run: Any, tls_files: dict[str, str]) -> None:
    """The command connects with mutual TLS."""
    flags = [word for name, value in tls_files.items() for word in (f"--{name}", value)]
    assert run("health", *flags)[0] == 0


def test_tls_is_set_by_variables(run: Any, tls_files: dict[str, str]) -> None:
    """Each flag of TLS has a variable."""
    variables = {f"ISOGLOSS_{name.upper().replace('-', '_')}": value for name, value in tls_files.items()}
    assert run("health", **variables)[0] == 0


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False), ("", False)])
def test_a_variable_switches_tls_on(run: Any, value: str, refused: bool) -> None:
    """ISOGLOSS_TLS=1 is --tls, which fails with a server of plain text."""
    code, _, err = run("health", ISOGLOSS_TLS=value)
    assert (code == 1) is refused
    assert ("does not use TLS" in err) is refused


@pytest.mark.parametrize(
    ("flags", "status", "expected"),
    [
        (
            ["--client-certificate", "CERT"],
            2,
            "--client-certificate (or ISOGLOSS_CLIENT_CERTIFICATE) requires --client-key (or ISOGLOSS_CLIENT_KEY)",
        ),
        (
            ["--client-key", "KEY"],
            2,
            "ISOGLOSS_CLIENT_KEY) requires --client-certificate (or ISOGLOSS_CLIENT_CERTIFICATE)",
        ),
        (
            ["--root-certificates", "KEY"],
            2,
            "--root-certificates (or ISOGLOSS_ROOT_CERTIFICATES) must consist of certificates in PEM",
        ),
        (["--client-key", "/no/such/key"], 1, "/no/such/key: No such file or directory"),
        (["--server-name", "a b"], 2, "ISOGLOSS_SERVER_NAME) must be a host name"),
    ],
)
def test_wrong_flags_of_tls_are_named(
    run: Any, tls_files: dict[str, str], flags: list[str], status: int, expected: str
) -> None:
    """The error names the flag or the file."""
    places = {"CERT": tls_files["client-certificate"], "KEY": tls_files["client-key"]}
    code, _, err = run("health", *(places.get(word, word) for word in flags))
    assert (code, err.count("\n")) == (status, 1)
    assert expected in err


def test_pipes_have_no_colours_unless_requested(run: Any) -> None:
    """A pipe gets colours only with --color always, which overrides NO_COLOR."""
    assert "\x1b" not in run("similarity", "a", "b")[1]
    assert "\x1b" in run("similarity", "a", "b", "--color", "always")[1]
    assert "\x1b" in run("nearest", "a", "b", "--color", "always", NO_COLOR="1")[1]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_terminals_have_colours_unless_disabled(
    run: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    """A terminal gets colours, unless the environment disables them."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert ("\x1b" in run("similarity", "a", "b", **environment)[1]) is coloured


def test_the_api_key_is_read_from_the_environment_only(run: Any, server: FakeServer) -> None:
    """ISOGLOSS_API_KEY is sent; there is no flag for it."""
    run("health", ISOGLOSS_API_KEY="secret-key")
    assert server.requests[0].metadata["authorization"] == "Bearer secret-key"
    code, out, _ = run("--help")
    assert code == 0
    assert "ISOGLOSS_API_KEY" in out
    assert run("health", "--api-key", "x")[0] == 2


def test_version_prints_program_and_version(run: Any) -> None:
    """--version prints the program's name and version."""
    assert run("--version")[:2] == (0, f"isogloss {__version__}\n")


def test_ctrl_c_exits_with_130_and_no_output(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt is exit code 130 without any output."""

    def interrupted() -> Any:
        """Raises as Ctrl-C does during a read."""
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"__iter__": lambda self: interrupted()})())
    assert run("embed") == (130, "", "")
