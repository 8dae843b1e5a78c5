"""A stderr that is not read, or closed: the server serves, and stops, as if it were."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

CALLS = 300  # their lines are several times the room of a pipe of PIPE_BYTES
PIPE_BYTES = 4096
SERVE = (sys.executable, "-m", "isogloss_server", "serve", "--port", "0")


def full_pipe() -> tuple[int, int]:
    """Returns the two ends of a pipe that has no room."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.write(writer, b"." * PIPE_BYTES)
    return reader, writer


def full_socket() -> tuple[int, int]:
    """Returns the two ends of a connection that has no room."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    try:
        while True:
            writer.send(b"." * 4096)
    except BlockingIOError:
        writer.setblocking(True)
    return reader.detach(), writer.detach()


def wait_for(file: Path, process: "subprocess.Popen[bytes]") -> str:
    """Returns the text of a file that the process writes."""
    while not file.exists():
        try:
            raise AssertionError(f"the server ended with status {process.wait(timeout=0.02)}")
        except subprocess.TimeoutExpired:
            continue
    return file.read_text()


@pytest.mark.parametrize("full", [full_pipe, full_socket])
@pytest.mark.parametrize("variables", [{}, {"GRPC_VERBOSITY": "DEBUG", "GRPC_TRACE": "http"}])
def test_a_full_stderr_delays_neither_calls_nor_the_stop(
    full: Any, variables: Mapping[str, str], tmp_path: Path
) -> None:
    """If stderr has no room, calls succeed and SIGTERM ends the server, also while gRPC's core writes to stderr."""
    reader, writer = full()
    file = tmp_path / "port"
    process = subprocess.Popen([*SERVE, "--port-file", file], stderr=writer, env={**os.environ, **variables})
    try:
        with grpc.insecure_channel(f"127.0.0.1:{wait_for(file, process).strip()}") as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            for _ in range(CALLS):
                assert stub.Embed(pb.EmbedRequest(texts=["one"]), timeout=60).embeddings.rows == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--port", "x"], 2), (["--prot", "1"], 2), (["--model", "/no/such/folder"], 2), (["--host", "a" * 70], 1)],
)
def test_a_full_stderr_does_not_delay_the_end_after_an_error(flags: list[str], expected: int) -> None:
    """A server that cannot start exits with its status if stderr has no room for the error."""
    reader, writer = full_pipe()
    process = subprocess.Popen([*SERVE, *flags], stderr=writer)
    try:
        assert process.wait(timeout=60) == expected
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def test_an_unexpected_exception_at_the_start_is_one_line_and_status_1(tmp_path: Path) -> None:
    """An exception that the server does not expect ends it with status 1, with the place in the log."""
    program = "from isogloss_server import app, cli; app.StopSignals = None; cli.run()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--log-format", "json"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "TypeError" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "isogloss-server: internal error: TypeError; the log has its place"


def test_closed_standard_streams_do_not_change_the_exit_status(tmp_path: Path) -> None:
    """A server whose parent process has closed stdin, stdout and stderr serves, and exits with status 0."""
    file = tmp_path / "port"
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SERVE, "--port-file", file])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{wait_for(file, process).strip()}") as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            assert stub.Embed(pb.EmbedRequest(texts=["one"])).embeddings.rows == 1
            streams = {str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert streams == {os.devnull}


@pytest.mark.parametrize("arguments", [["models", "list"], ["serve", "--port", "x"]])
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_change_the_status_of_a_command(arguments: list[str], closed: str) -> None:
    """A command exits with the same status if standard streams are closed."""
    program = [sys.executable, "-m", "isogloss_server", *arguments]
    usual = subprocess.run(program, capture_output=True, check=False)
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *program], capture_output=True, check=False)
    assert done.returncode == usual.returncode >= 0
