"""The exit statuses of a server that cannot start: 2 if a setting is wrong, 1 for every other cause."""

import socket
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess

COHERE = "cohere:embed-v4.0"
# flags, with the placeholders of `places`; exit status; part of the error
CAUSES = [
    (["--port", "1.5"], 2, "--port must be"),
    (["--config", "/no/such/file"], 2, "cannot read the config file"),
    (["--model", "no-such-model"], 2, "unknown model 'no-such-model'"),
    (["--model", "mine=/no/such/folder"], 2, "unknown model '/no/such/folder'"),
    (["--model", "openai:none"], 2, "unknown model 'none' of OpenAI"),
    (["--model", "openai:x@ftp://host"], 2, "invalid URL"),
    (["--model", COHERE], 2, "requires an API key"),
    (["--model", COHERE, "--cohere-key-file", "/no/such/key"], 2, "cannot read the key file"),
    (["--model", COHERE, "--cohere-key-file", "EMPTY"], 2, "is empty"),
    (["--model", COHERE, "--cohere-key-file", "FOLDER"], 2, "cannot read the key file"),
    (["--model", COHERE, "--cohere-key-file", "KEY"], 2, "invalid key in"),
    (["--cache-redis-url", "http://localhost"], 2, "cache_redis_url"),
    (["--tls-cert", "/no/such/cert", "--tls-key", "KEY"], 2, "the file of --tls-cert, /no/such/cert: No such file"),
    (["--tls-cert", "KEY", "--tls-key", "KEY"], 2, "/key, does not consist of certificates in PEM"),
    (["--model", "FOLDER"], 1, "has no file modules.json"),
    (["--port", "PORT"], 1, "the port is in use"),
    (["--metrics-port", "PORT"], 1, "for metrics"),
    (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1"),
    (["--port-file", "/no/such/folder/port"], 1, "cannot write the port file"),
]


@pytest.mark.parametrize(("flags", "status", "expected"), CAUSES, ids=[" ".join(flags) for flags, _, _ in CAUSES])
def test_the_exit_status_says_if_a_setting_is_wrong(
    flags: list[str], status: int, expected: str, tmp_path: Path
) -> None:
    """A server that cannot start prints one line, and exits with the status of its cause."""
    (tmp_path / "key").write_text("two words")
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        places = {"KEY": tmp_path / "key", "EMPTY": tmp_path / "empty", "FOLDER": tmp_path, "PORT": port}
        words = [str(places.get(word, word)) for word in flags]
        process = ServerProcess(*words, env={"CO_API_KEY": None, "OPENAI_API_KEY": None})
        assert process.wait() == status
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert line.startswith("isogloss-server: ")
    assert expected in line
