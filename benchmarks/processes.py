"""Processes under measurement: start them on given cores, read their processor time and memory, stop them."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_LIMIT_S = 180.0
STOP_LIMIT_S = 15.0
POLL_INTERVAL_S = 0.002
MEMORY_INTERVAL_S = 0.2


class StartError(Exception):
    """A process ended before it was ready, or exceeded START_LIMIT_S; the message ends with the end of its log."""


@dataclass(frozen=True)
class RunningProcess:
    """A process that is ready.

    Attributes:
        address: The host and port that it serves on, or "" if it serves on its standard streams.
        pid: Its process id.
        started_s: Seconds from its start until it was ready.
        process: The handle of the process, with its pipes.
    """

    address: str
    pid: int
    started_s: float
    process: "subprocess.Popen[str]" = field(repr=False)

    def cpu_s(self) -> float:
        """Returns the processor time, user and system, of the process and its descendants in seconds."""
        return self._total(
            lambda process: sum(process.cpu_times()[:4])  # user, system, and both of children that have ended
        )

    def resident_bytes(self) -> int:
        """Returns the resident memory of the process and its descendants."""
        return int(self._total(lambda process: process.memory_info().rss))

    def anonymous_bytes(self) -> int:
        """Returns the part of the resident memory that is not backed by files or shared memory."""

        def anonymous(process: psutil.Process) -> int:
            memory = process.memory_info()
            return int(memory.rss - memory.shared)

        return int(self._total(anonymous))

    def memory_mb(self) -> dict[str, float]:
        """Returns the resident and the anonymous memory."""
        return {"resident": self.resident_bytes() / 1024**2, "anonymous": self.anonymous_bytes() / 1024**2}

    @contextmanager
    def peak_memory(self) -> "Iterator[dict[str, float]]":
        """Samples the memory during the block; yields the greatest values of memory_mb."""
        peak_mb, ended = self.memory_mb(), threading.Event()

        def sample() -> None:
            while not ended.wait(MEMORY_INTERVAL_S):
                peak_mb.update({kind: max(peak_mb[kind], mb) for kind, mb in self.memory_mb().items()})

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            yield peak_mb
        finally:
            ended.set()
            sampler.join()

    def threads(self) -> int:
        """Returns the number of threads of the process and its descendants."""
        return int(self._total(lambda process: process.num_threads()))

    def fds(self) -> int:
        """Returns the number of open file descriptors of the process and its descendants."""
        return int(self._total(lambda process: process.num_fds()))

    def _total(self, read: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += read(process)
        return total


@contextmanager
def started(
    command: Sequence[str],
    find_address: "Callable[[subprocess.Popen[str]], str | None]",
    *,
    cores: str = "",
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pipes: bool = False,
) -> Iterator[RunningProcess]:
    """Runs a command until the block ends.

    Args:
        command: The program and its arguments.
        find_address: Returns the address of the process once it is ready, or None before.
        cores: The cores to run on in the syntax of taskset, such as "1" or "0,1"; "" for all.
        variables: Environment variables in addition to those of this process.
        cwd: The working directory.
        pipes: Connects pipes to the standard input and output; otherwise the output goes to the log.

    Raises:
        StartError: The process ended before it was ready, or exceeded START_LIMIT_S.
    """
    pinned = [*(["taskset", "-c", cores] if cores else []), *command]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        start_s = time.perf_counter()
        process = subprocess.Popen(
            pinned,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else log,
            stderr=log,
            text=True,
            env=os.environ | dict(variables or {}),
            cwd=cwd,
        )
        try:
            while (address := find_address(process)) is None:
                if process.poll() is not None or time.perf_counter() - start_s > START_LIMIT_S:
                    log.seek(0)
                    raise StartError(f"{' '.join(command)} did not start:\n{log.read()[-2000:].strip()}")
                time.sleep(POLL_INTERVAL_S)
            yield RunningProcess(address, process.pid, time.perf_counter() - start_s, process)
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
    """Returns a `find_address` for a process that writes its port to `file`."""
    return lambda _process: f"127.0.0.1:{file.read_text().strip()}" if file.exists() else None


@contextmanager
def running_module(module: str, *arguments: str) -> Iterator[RunningProcess]:
    """Runs `python -m MODULE ARGUMENTS` until the block ends; the argument PORT_FILE becomes a path for the port.

    Raises:
        StartError: The process does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", module, *(str(port_file) if a == "PORT_FILE" else a for a in arguments)]
        with started(command, port_in(port_file)) as process:
            yield process


@contextmanager
def running_service() -> Iterator[RunningProcess]:
    """Runs isogloss-server with the bundled model, without access log and cache, until the block ends.

    Raises:
        StartError: The server does not start.
        SystemExit: The server wrote its port before it was SERVING.
    """
    flags = ("serve", "--port", "0", "--port-file", "PORT_FILE", "--no-access-log", "--cache-bytes", "0")
    with running_module("isogloss_server", *flags) as service:
        _check_serving(service.address)
        yield service


def _check_serving(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="isogloss.v1.EmbeddingService")
        )
    if check.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit("the server wrote its port before it was SERVING")
