"""Keys from the command line to the client: a real server follows the file that `isogloss-server keys` writes."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from isogloss import (
    AsyncClient,
    Client,
    ClientOptions,
    IsoglossError,
    KeyIgnoredWarning,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from isogloss_server.cli import main

from tests.support.keys import add_key
from tests.support.server_process import ServerProcess

RIGHTS: dict[str, dict[str, Any]] = {
    "full": {},
    "scoped": {"models": ("other",)},
    "small": {"texts_per_minute": 10},
    "split": {"texts_per_minute": 100},
    "bulk": {"texts_per_minute": 6000},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys file of the server."""
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def known(file: Path) -> dict[str, str]:
    """The keys that are in the file when the server starts, by the name of their caller."""
    return {name: add_key(file, name, **rights) for name, rights in RIGHTS.items()}


@pytest.fixture(scope="module")
def keyed_server(file: Path, known: dict[str, str]) -> Iterator[ServerProcess]:
    """A real server that requires keys."""
    with ServerProcess("--keys-file", str(file), "--log-level", "debug") as process:
        yield process


@pytest.fixture
def keys(file: Path, known: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `isogloss-server keys` on the server's file; returns the exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["keys", *arguments, "--keys-file", str(file)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def opened(server: ServerProcess, key: str | None, **options: Any) -> Client:
    """Returns a client with a key."""
    return Client(server.address, options=ClientOptions(api_key=key, timeout_s=30, **options))


def error_of(server: ServerProcess, key: str | None) -> IsoglossError | None:
    """Returns the error of an embed with a key, or None if it succeeds."""
    with opened(server, key) as client:
        try:
            client.embed(["a"])
        except IsoglossError as error:
            return error
        return None


def until(condition: Callable[[], Any]) -> None:
    """Returns once the condition holds; each attempt calls the server."""
    for _ in range(100_000):
        if condition():
            return
    raise AssertionError("it never held")


def test_an_added_key_is_accepted_and_a_revoked_one_is_not(keyed_server: ServerProcess, keys: Any) -> None:
    """The server follows `keys add` and `keys revoke` without a restart, and does not drop its clients."""
    status, key, explained = keys("add", "search")
    assert (status, key.count("\n")) == (0, 1)
    key = key.strip()
    assert key not in explained
    until(lambda: error_of(keyed_server, key) is None)
    with opened(keyed_server, key) as client:
        client.embed(["a", "b"])
        assert keys("revoke", "search")[0] == 0
        until(lambda: error_of(keyed_server, key))
        with pytest.raises(UnauthenticatedError) as refused:
            client.embed(["a"])
    assert (refused.value.reason, refused.value.retryable) == ("KEY_INVALID", False)


def test_a_rotated_key_overlaps_with_the_old_one(keyed_server: ServerProcess, keys: Any) -> None:
    """Both keys are valid during the overlap, with the same rights; without an overlap only the new one is."""
    old = keys("add", "rotated", "--method", "Embed", "--calls", "7")[1].strip()
    until(lambda: error_of(keyed_server, old) is None)
    new = keys("rotate", "rotated")[1].strip()
    until(lambda: error_of(keyed_server, new) is None)
    assert error_of(keyed_server, old) is None
    with opened(keyed_server, new) as client, pytest.raises(PermissionDeniedError) as denied:
        client.similarity(["a"], ["b"])
    assert denied.value.reason == "METHOD_NOT_ALLOWED"
    newest = keys("rotate", "rotated", "--overlap-hours", "0")[1].strip()
    until(lambda: error_of(keyed_server, newest) is None)
    errors = [error_of(keyed_server, key) for key in (old, new)]
    assert [error and error.reason for error in errors] == ["KEY_EXPIRED"] * 2
    assert keys("rotate", "rotated")[0] == 0
    assert keys("list")[1].count("\nrotated") == 2  # expired ones are removed


def test_the_list_has_rights_and_no_secret(keys: Any) -> None:
    """`keys list` prints the rights of each key; neither form has a digest or a key."""
    key = keys("add", "listed", "--model", "m", "--texts-per-minute", "60000", "--expires-days", "3")[1].strip()
    table, as_json = keys("list")[1], keys("list", "--json")[1]
    (line,) = [line for line in table.splitlines() if line.startswith("listed")]
    assert ("60,000 texts/min" in line, " m " in line, key.split("_")[1] in line) == (True, True, True)
    assert '"texts_per_minute": 60000' in as_json
    for shown in (table, as_json):
        assert key.split("_", 2)[2] not in shown
        assert "sha256" not in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["revoke", "nobody"], "unknown key 'nobody'; names in the file: "),
        (["rotate", "nobody"], "unknown key 'nobody'"),
        (["add", "two words"], "NAME must have"),
        (["add", "x", "--calls", "-1"], "--calls: "),
        (["add", "x", "--method", "Health"], "--method: "),
        (["add", "x", "--expires-days", "nan"], "--expires-days must be"),
        (["rotate", "full", "--overlap-hours", "-1"], "--overlap-hours must be"),
    ],
)
def test_a_wrong_argument_changes_nothing(keys: Any, file: Path, arguments: list[str], expected: str) -> None:
    """The exit status is 2, one line names the argument, and the file is as before."""
    before = file.read_bytes()
    status, out, err = keys(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert file.read_bytes() == before


def test_without_a_file_the_verbs_name_the_setting(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The flag and the variable are named; the variable is used."""
    monkeypatch.delenv("ISOGLOSS_KEYS_FILE", raising=False)
    assert main(["keys", "list"]) == 2
    assert "set --keys-file or ISOGLOSS_KEYS_FILE" in capsys.readouterr().err
    monkeypatch.setenv("ISOGLOSS_KEYS_FILE", "/no/such/file")
    assert main(["keys", "list"]) == 2
    assert "/no/such/file" in capsys.readouterr().err


def test_the_client_raises_what_is_missing(keyed_server: ServerProcess) -> None:
    """Without a key the exception says that one is required; it is not retried."""
    error = error_of(keyed_server, None)
    assert isinstance(error, UnauthenticatedError)
    assert (error.reason, error.retryable) == ("KEY_REQUIRED", False)
    assert "authorization: Bearer KEY" in error.message


def test_a_model_outside_the_scope_is_unknown_to_the_client(keyed_server: ServerProcess, known: Any) -> None:
    """The exceptions are those of a server without the model."""
    assert isinstance(error_of(keyed_server, known["scoped"]), NotFoundError)
    with opened(keyed_server, known["scoped"]) as client, pytest.raises(NotFoundError):
        client.models()


def test_a_used_up_quota_is_not_awaited_beyond_the_deadline(keyed_server: ServerProcess, known: Any) -> None:
    """The client raises at once what the server says, with the time to retry."""
    with opened(keyed_server, known["small"]) as client:
        client.embed(["a"] * 10)
        with pytest.raises(ResourceExhaustedError) as refused:
            client.embed(["a"] * 9, timeout_s=20)
    assert (refused.value.reason, refused.value.is_final) == ("QUOTA", True)
    assert 20 < (refused.value.retry_after_s or 0) <= 60


def test_a_call_above_a_minute_of_texts_is_split(keyed_server: ServerProcess, known: Any) -> None:
    """Each part fits the quota, so that the call fails for time alone, and not for its size."""
    with opened(keyed_server, known["split"]) as client, pytest.raises(ResourceExhaustedError) as refused:
        client.embed([f"text {number}" for number in range(150)], timeout_s=5)
    assert "used up" in refused.value.message


def test_embed_many_waits_for_its_quota(keyed_server: ServerProcess, known: Any) -> None:
    """A job above the quota loses no text: its chunks are sent again when the server says."""
    texts = [f"text {number}" for number in range(6050)]  # half a second above the quota
    with opened(keyed_server, known["bulk"]) as client:
        assert sum(len(chunk.embeddings) for chunk in client.embed_many(texts)) == len(texts)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_a_server_without_keys_makes_the_client_warn_once(server: ServerProcess, kind: str) -> None:
    """The first call of a client with a key warns, at the line of the program; later calls do not."""
    options = ClientOptions(target=server.address, api_key="unused")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "blocking":
            with Client(options=options) as client:
                client.embed(["a"])
                client.embed(["a"])
        else:
            async with AsyncClient(options=options) as asynchronous:
                await asynchronous.embed(["a"])
                await asynchronous.embed(["a"])
    assert [(warning.category, warning.filename) for warning in caught] == [(KeyIgnoredWarning, __file__)]
    assert "unused" not in str(caught[0].message)


def test_a_server_with_keys_causes_no_warning(keyed_server: ServerProcess, known: Any) -> None:
    """Warnings are errors in these tests; a call with a key that is checked has none."""
    assert error_of(keyed_server, known["full"]) is None


def test_no_key_is_in_the_log(keyed_server: ServerProcess, known: Any, file: Path) -> None:
    """Valid, wrong and malformed keys appear in no line, at level debug."""
    valid = known["full"]
    assert error_of(keyed_server, valid) is None
    wrong = [valid[:-8] + "ABCDEFGH", "Zq-SENTINEL-4f0e9b1c7a2d8e6f5b3a"]
    assert all(error_of(keyed_server, key) for key in wrong)
    file.chmod(0o666)
    until(lambda: any("not reloaded" in line for line in keyed_server.lines))
    file.chmod(0o600)
    shown = "".join(keyed_server.lines)
    assert "not reloaded" in shown
    for key in (valid, *wrong):
        secret = key.rpartition("_")[2]
        assert not [at for at in range(len(secret) - 11) if secret[at : at + 12] in shown]


REFUSED = {
    "damaged": (lambda file: file.write_text("{"), "Invalid JSON"),
    "an invalid entry": (lambda file: file.write_text(file.read_text().replace("caller", "")), "entry 1 (''): name"),
    "writable": (lambda file: file.chmod(0o666), "chmod go-w"),
    "missing": (lambda file: file.unlink(), "cannot read the keys file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_server_does_not_start_with_a_wrong_keys_file(tmp_path: Path, case: str) -> None:
    """The exit status is 2, and one line names the file and the problem."""
    add_key(tmp_path / "keys.json")
    change, expected = REFUSED[case]
    change(tmp_path / "keys.json")
    process = ServerProcess("--keys-file", str(tmp_path / "keys.json"))
    assert process.wait() == 2
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert str(tmp_path / "keys.json") in line
    assert expected in line


def test_a_server_beyond_loopback_without_keys_says_so(tmp_path: Path) -> None:
    """One warning names what is missing; with --require-security the server does not start."""
    with ServerProcess("--host", "0.0.0.0") as process:
        process.address  # noqa: B018 - waits until the server is ready
        (line,) = [line for line in process.lines if "unprotected" in line]
        assert "--keys-file" in line
    process = ServerProcess("--host", "0.0.0.0", "--require-security")
    assert process.wait() == 2
    assert "require_security: 0.0.0.0 can be reached without" in process.lines[-1]
    assert "--keys-file" in process.lines[-1]


def test_a_server_on_loopback_needs_no_protection() -> None:
    """--require-security accepts a server that only this machine can reach, and nothing is logged about it."""
    with ServerProcess("--host", "127.0.0.2", "--require-security") as process:
        process.address  # noqa: B018
        assert not [line for line in process.lines if "unprotected" in line]


def test_models_that_are_not_served_are_warned_of_at_start(tmp_path: Path) -> None:
    """A misspelt name in a scope is in the log."""
    add_key(tmp_path / "keys.json", models=("isogloss-statik",))
    with ServerProcess("--keys-file", str(tmp_path / "keys.json")) as process:
        assert process.wait_for("keys have models in their scopes that are not served")["models"] == "isogloss-statik"


@pytest.mark.parametrize("source", ["variable", "file"])
def test_the_command_sends_the_key(keyed_server: ServerProcess, known: Any, tmp_path: Path, source: str) -> None:
    """`isogloss` takes the key from ISOGLOSS_API_KEY or --key-file, and never from an argument."""
    key = known["full"]
    (tmp_path / "key").write_text(f"{key}\n")
    command = [sys.executable, "-m", "isogloss.cli", "models", "--server", keyed_server.address]
    command += ["--key-file", str(tmp_path / "key")] * (source == "file")
    variable = {"ISOGLOSS_API_KEY": key if source == "variable" else "wrong"}
    done = subprocess.run(command, env=variable, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "isogloss-static" in done.stdout
