"""The cores, memory, connections and standard streams of this process, as the system reports and changes them."""

import contextlib
import ctypes
import math
import os
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")
DESCRIPTORS = Path("/proc/self/fd")
COMPUTING_NICE = 10  # a tenth of the processor time of an equally busy thread at 0
RELEASE_BYTES = 64 * 1024 * 1024  # growth of the process from which on the allocator is made to return memory,
RELEASE_CHECKS, MAX_RELEASE_CHECKS = 8, 2400  # once in as many checks


def usable_cores() -> int:
    """Returns the number of cores in the process's affinity, limited by the quota of its cgroup; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota_cores(CGROUPS, OWN_CGROUP))))


def lower_thread_priority() -> None:
    """Lowers the priority of this thread beside the other threads of the process, if the system is Linux.

    For threads that compute: the event loop and gRPC need a core for a short time, but need it at once.
    """
    if sys.platform == "linux":  # elsewhere, a nice value is that of the whole process
        with contextlib.suppress(OSError):  # a sandbox forbids it
            os.nice(COMPUTING_NICE)


def quota_cores(cgroups: Path, own: Path) -> float:
    """Returns the lowest CPU quota of the process's cgroup and its ancestors.

    Version 2 has the quota in cpu.max, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu

    Args:
        cgroups: The mount point of the cgroup file system.
        own: The file that names the process's cgroup.

    Returns:
        The quota in cores; infinite if there is none.
    """
    lines = [line.partition("::")[2] for line in _words(own) if line.startswith("0::")]
    own_path = PurePosixPath(lines[0].lstrip("/") if lines else "")
    version_2 = [_words(cgroups / folder / "cpu.max") for folder in (own_path, *own_path.parents)]
    version_1 = [*_words(cgroups / "cpu" / "cpu.cfs_quota_us"), *_words(cgroups / "cpu" / "cpu.cfs_period_us")]
    quotas = [words for words in (*version_2, version_1) if len(words) == 2 and words[0] not in {"max", "-1"}]
    return min((int(quota) / int(period) for quota, period in quotas), default=math.inf)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:  # another version of cgroups, or none
        return []


def open_closed_streams() -> None:
    """Opens the null device in the place of stdin, stdout and stderr, where the parent process has closed them.

    Otherwise a socket would have their number, and what a library prints would reach a caller.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def resident_mb() -> int:
    """Returns the resident memory of the process in MiB, shared and file-backed pages included; 0 if unknown."""
    return _status("VmRSS")


def anonymous_mb() -> int:
    """Returns the anonymous memory of the process in MiB: what each further process would need too; 0 if unknown."""
    return _status("RssAnon")


def anonymous_bytes() -> int:
    """Returns the anonymous memory of the process in bytes; 0 if unknown."""
    return _status("RssAnon", 1024)


def _status(name: str, unit: float = 1 / 1024) -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(int(line.split()[1]) * unit) for line in lines if line.startswith(f"{name}:")), 0)


def address(host: str, port: int) -> str:
    """Returns HOST:PORT, as in URLs: with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class FreedMemory:
    """Makes the allocator return freed memory to the operating system, when the process is larger than it was.

    The allocator does not report what it could return, and an attempt costs milliseconds. So attempts become rare while
    they return little.
    """

    def __init__(self, process_bytes: Callable[[], int] = anonymous_bytes) -> None:
        """Takes `process_bytes`, which returns the memory of the process."""
        self._process_bytes = process_bytes
        self._lowest_bytes = process_bytes()
        self._last_bytes = self._lowest_bytes  # after the last attempt
        self._checks = 0  # since then
        self._interval = RELEASE_CHECKS

    def is_due(self, *, soon: bool = False) -> bool:
        """Returns whether `release` should be called; call it about four times a second.

        Args:
            soon: Much memory may just have been freed, so that earlier attempts do not matter.
        """
        size_bytes = self._process_bytes()
        self._lowest_bytes = min(self._lowest_bytes, size_bytes)
        self._checks += 1
        if size_bytes - self._last_bytes >= RELEASE_BYTES:
            self._interval = RELEASE_CHECKS
        interval = RELEASE_CHECKS if soon else self._interval
        return self._checks >= interval and size_bytes - self._lowest_bytes >= RELEASE_BYTES

    def release(self) -> None:
        """Returns what the allocator can return."""
        before_bytes = self._process_bytes()
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        self._last_bytes = self._process_bytes()
        helped = before_bytes - self._last_bytes >= RELEASE_BYTES // 8
        self._interval = RELEASE_CHECKS if helped else min(2 * self._interval, MAX_RELEASE_CHECKS)
        self._checks = 0


def close_connections(peers: Collection[str]) -> int:
    """Closes this process's connections to `peers`, addresses as gRPC writes them; returns the number of connections.

    gRPC offers no way to end a call of a server from outside. Its sockets are found by the addresses of their peers.
    """
    addresses = set(map(_address, peers))
    closed = 0
    for descriptor in [*DESCRIPTORS.iterdir()] if DESCRIPTORS.exists() else []:
        with contextlib.suppress(OSError):  # closed meanwhile, or not a connection
            duplicate = os.dup(int(descriptor.name))  # stays this connection, even if gRPC closes its own descriptor
            try:
                closed += _close_if_to(addresses, duplicate)
            finally:
                os.close(duplicate)
    return closed


def _close_if_to(addresses: Collection[tuple[str, int]], descriptor: int) -> bool:
    connection = socket.socket(fileno=descriptor)
    try:
        if connection.family not in {socket.AF_INET, socket.AF_INET6}:
            return False
        host, port = connection.getpeername()[:2]
        if (host.removeprefix("::ffff:"), port) not in addresses:
            return False
        connection.shutdown(socket.SHUT_RDWR)
        return True
    finally:
        connection.detach()


def _address(peer: str) -> tuple[str, int]:
    """Returns host and port of an address such as ipv4:127.0.0.1:80 or ipv6:%5B::1%5D:80."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]").removeprefix("::ffff:"), int(port) if port.isdigit() else 0
