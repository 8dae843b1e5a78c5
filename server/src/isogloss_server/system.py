"""The process's cores and memory, as the operating system reports them, its standard streams, and addresses."""

import math
import os
import sys
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")


def usable_cores() -> int:
    """Returns the number of cores in the process's affinity, limited by the quota of its cgroup; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota_cores(CGROUPS, OWN_CGROUP))))


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


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:")), 0)


def address(host: str, port: int) -> str:
    """Returns HOST:PORT, as in URLs: with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
