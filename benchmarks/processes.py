"""Server processes under measurement: started, watched, stopped."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_LIMIT_S = 60.0


@dataclass(frozen=True)
class Running:
    """A server process that has told its port; `started_s` is how long that took from its start."""

    address: str
    pid: int
    started_s: float

    def status(self, name: str) -> int:
        """Returns a number of /proc/PID/status in KiB, such as VmRSS."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def cpu_s(self) -> float:
        """Returns the seconds of processor time that the process has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # user and system time, in the kernel's hundredths


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Running]:
    """Runs `python -m MODULE ARGUMENTS`, in which PORT_FILE stands for the file to write the port to."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        command = [sys.executable, "-m", module, *(str(port_file) if a == "PORT_FILE" else a for a in arguments)]
        began_s = time.perf_counter()
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream)
        try:
            while not port_file.exists():
                if process.poll() is not None or time.perf_counter() - began_s > START_LIMIT_S:
                    raise SystemExit(f"{module} did not start:\n{log.read_text()}")
                time.sleep(0.002)
            started_s = time.perf_counter() - began_s
            yield Running(f"127.0.0.1:{port_file.read_text().strip()}", process.pid, started_s)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def running_service() -> Iterator[Running]:
    """Runs isogloss-server with the bundled model and without the access log, until it is SERVING."""
    flags = ("serve", "--port", "0", "--port-file", "PORT_FILE", "--no-access-log")
    with running("isogloss_server", *flags) as service:
        with grpc.insecure_channel(service.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="isogloss.v1.EmbeddingService")
            )
        if check.status != health_pb2.HealthCheckResponse.SERVING:
            raise SystemExit("the server told its port before it was SERVING")
        yield service
