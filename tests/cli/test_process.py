"""The isogloss command as a process of its own: pipes and encodings."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.support.scripted_server import Running


def process(server: Running, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Starts the command as a process of its own."""
    environment = {**os.environ, "ISOGLOSS_SERVER": server.address, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "isogloss.cli", *argv]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_as_a_process(scripted: Running) -> None:
    """The installed command reads stdin and writes UTF-8."""
    started = process(scripted, "nearest", "おはよう", "--json", stdin=subprocess.PIPE)
    out, err = started.communicate("a\nおはよう\n".encode(), timeout=60)
    assert (started.returncode, err) == (0, b"")
    assert json.loads(out)["neighbors"][0]["text"] == "おはよう"


def test_a_closed_pipe_is_clean(scripted: Running) -> None:
    """A reader that has seen enough, such as head, causes no complaint."""
    started = process(scripted, "embed", "--json", stdin=subprocess.PIPE)
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    started.stdin.write(b"text\n" * 2000)
    started.stdin.close()
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait(60) == 141


def test_bytes_that_are_no_text_are_one_line(scripted: Running) -> None:
    """Standard input that is no UTF-8 is refused, without a traceback."""
    started = process(scripted, "embed", stdin=subprocess.PIPE)
    _, err = started.communicate(b"a\n\xff\xfe\n", timeout=60)
    assert started.returncode == 1
    assert err.startswith(b"isogloss: ")
    assert err.count(b"\n") == 1
