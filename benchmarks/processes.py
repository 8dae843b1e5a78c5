"""Server processes under measurement: started on cores of their own, watched with their children, stopped."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_LIMIT_S = 180.0
STOP_LIMIT_S = 15.0
POLL_S = 0.002
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A process ended, or was not ready in time; the message's last line is that of its log."""


@dataclass(frozen=True)
class Running:
    """A process that is ready; `started_s` is how long that took from its start, `process` what talks to it."""

    address: str
    pid: int
    started_s: float
    process: "subprocess.Popen[str]" = field(repr=False)

    def pids(self) -> list[int]:
        """Returns the process and all that come from it."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                parents[int(entry.name)] = int(fields[1])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def status(self, name: str) -> int:
        """Returns a number of /proc/PID/status in KiB, such as VmRSS, over the process and its children."""
        return sum(_status(pid, name) for pid in self.pids())

    def cpu_s(self) -> float:
        """Returns the seconds of processor time that the process and its children have taken."""
        # User and system time, its own and that of children that have ended.
        return sum(sum(map(int, fields[11:15])) for pid in self.pids() if (fields := _stat(pid))) / TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the third on; none where the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def started(
    command: Sequence[str],
    ready: "Callable[[subprocess.Popen[str]], str | None]",
    *,
    cores: str = "",
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    talks: bool = False,
) -> Iterator[Running]:
    """Runs a command on `cores` ("1", "0,1", "" = all) until the block ends.

    It is ready when `ready` returns its address, which may be empty; None means not yet. With `talks`, its standard
    input and output are pipes; else its output goes to its log.

    Raises:
        StartError: it ended before, or START_LIMIT_S went by.
    """
    pinned = [*(["taskset", "-c", cores] if cores else []), *command]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            pinned,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else log,
            stderr=log,
            text=True,
            env=os.environ | dict(variables or {}),
            cwd=folder,
        )
        try:
            while (address := ready(process)) is None:
                if process.poll() is not None or time.perf_counter() - began_s > START_LIMIT_S:
                    log.seek(0)
                    raise StartError(f"{' '.join(command)} did not start:\n{log.read()[-2000:].strip()}")
                time.sleep(POLL_S)
            yield Running(address, process.pid, time.perf_counter() - began_s, process)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.communicate(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def port_in(file: Path) -> "Callable[[subprocess.Popen[str]], str | None]":
    """Returns what tells that a process has written its port to a file."""
    return lambda _process: f"127.0.0.1:{file.read_text().strip()}" if file.exists() else None


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Running]:
    """Runs `python -m MODULE ARGUMENTS`, in which PORT_FILE stands for the file to write the port to.

    Raises:
        StartError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", module, *(str(port_file) if a == "PORT_FILE" else a for a in arguments)]
        with started(command, port_in(port_file)) as process:
            yield process


@contextmanager
def running_service() -> Iterator[Running]:
    """Runs isogloss-server with the bundled model, without the access log and the cache, until it is SERVING.

    Raises:
        StartError: it does not start.
    """
    flags = ("serve", "--port", "0", "--port-file", "PORT_FILE", "--no-access-log", "--cache-bytes", "0")
    with running("isogloss_server", *flags) as service:
        check_serving(service.address)
        yield service


def check_serving(address: str) -> None:
    """Sees that a service that has told its port is SERVING.

    Raises:
        SystemExit: it is not.
    """
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="isogloss.v1.EmbeddingService")
        )
    if check.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit("the server told its port before it was SERVING")
