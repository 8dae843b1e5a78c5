"""A real redis-server that the test starts, kills and hinders."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

INSTALLED = Path(__file__).parents[2] / ".redis" / "usr"  # where `make test-redis` unpacks it
PATIENCE_S = 60


def binary() -> Path | None:
    """Returns the redis-server to use, from PATH or from where `make test-redis` put one."""
    own = INSTALLED / "bin" / "redis-server"
    found = shutil.which("redis-server")
    return Path(found) if found else own if own.exists() else None


class RedisServer:
    """Runs redis-server on a free port, which it keeps over restarts."""

    def __init__(self, *options: str, password: str = "") -> None:
        """`options` are those of its command line."""
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._password = password
        self._folder = tempfile.TemporaryDirectory()  # a replica writes there what its master sends
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.client = redis.Redis(port=self.port, password=password or None, socket_timeout=PATIENCE_S)
        self.start()

    @property
    def url(self) -> str:
        """What a server is told, password and all."""
        return (
            f"redis://:{self._password}@127.0.0.1:{self.port}/0" if self._password else f"redis://127.0.0.1:{self.port}"
        )

    def start(self) -> None:
        """Starts it, and returns once it answers."""
        libraries = ":".join(str(folder) for folder in INSTALLED.glob("lib/*"))
        program, place = (
            binary(),
            ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name],
        )
        assert program is not None
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if INSTALLED in program.parents else None
        self._process = subprocess.Popen([program, *place, *self._options], stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"Ready to accept connections" in line:
                self._reader = threading.Thread(target=self._process.stdout.read)  # else it would block
                self._reader.start()
                return
        raise AssertionError("redis-server ended at once")

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def hang(self, *, on: bool) -> None:
        """Stops the whole process, or lets it go on; the kernel takes connections and bytes for it meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def values(self) -> dict[bytes, bytes]:
        """Returns all that it holds."""
        names: Any = self.client.keys("*")
        values: Any = self.client.mget(names) if names else []
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.kill()
        self._folder.cleanup()


class Proxy:
    """Stands before a port of this machine, and holds answers back while the test says so."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """What a server is told."""
        return f"redis://127.0.0.1:{self.port}"

    def hang(self, *, on: bool) -> None:
        """Lets no answer through from now on, or all."""
        (self._flowing.clear if on else self._flowing.set)()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # closed
            behind = socket.create_connection(("127.0.0.1", self._target))
            self._open += [caller, behind]
            threading.Thread(target=_pump, args=(caller, behind, None), daemon=True).start()
            threading.Thread(target=_pump, args=(behind, caller, self._flowing), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who waits in accept
        self._listener.close()
        for one in self._open:
            one.close()


def _pump(source: socket.socket, target: socket.socket, flowing: threading.Event | None) -> None:
    try:
        while data := source.recv(65536):
            if flowing is not None:
                flowing.wait()
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # one of the two is gone


def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds, which asks another process each time."""
    for _ in range(1_000_000):
        if condition():
            return
    raise AssertionError("it never came true")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
