"""The isogloss command as a separate process: pipes and encodings."""

import json
import os
import subprocess
import sys
from typing import Any

from isogloss.testing import FakeServer


def process(server: FakeServer, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Starts the command as a separate process."""
    environment = {**os.environ, "ISOGLOSS_SERVER": server.target, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "isogloss.cli", *argv]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_the_command_reads_and_writes_utf_8(server: FakeServer) -> None:
    """The command reads UTF-8 from stdin and writes UTF-8."""
    started = process(server, "nearest", "おはよう", "--json", stdin=subprocess.PIPE)
    out, err = started.communicate("a\nおはよう\n".encode(), timeout=60)
    assert (started.returncode, err) == (0, b"")
    assert json.loads(out)["neighbors"][0]["text"] == "おはよう"


def test_a_closed_pipe_prints_no_error(server: FakeServer) -> None:
    """A reader that closes the pipe early, such as head, causes no output on stderr."""
    started = process(server, "embed", "--json", stdin=subprocess.PIPE)
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    started.stdin.write(b"text\n" * 2000)
    started.stdin.close()
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait(60) == 141


def test_invalid_utf_8_on_stdin_is_reported_with_its_line(server: FakeServer) -> None:
    """Invalid UTF-8 on standard input is an error of one line, with the number of the line."""
    started = process(server, "embed", stdin=subprocess.PIPE)
    _, err = started.communicate(b"a\n\xff\xfe\n", timeout=60)
    assert started.returncode == 1
    assert err == b"isogloss: standard input, line 2: not valid UTF-8\n"
