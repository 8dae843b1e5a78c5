"""Cores and memory that this process may use, as the operating system counts them."""

import math
import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")


def usable_cores() -> int:
    """Returns the cores of the process's affinity, or fewer where its cgroup's quota is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota_cores(CGROUPS, OWN_CGROUP))))


def quota_cores(cgroups: Path, own: Path) -> float:
    """Returns the cores' worth of time that the least quota from the process's cgroup up to the root grants.

    `cgroups` is where they are mounted, `own` the file that names the process's. It is infinite where none is set.
    Version 2 says it in cpu.max, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu
    """
    lines = [line.partition("::")[2] for line in _words(own) if line.startswith("0::")]
    place = PurePosixPath(lines[0].lstrip("/") if lines else "")
    second = [_words(cgroups / folder / "cpu.max") for folder in (place, *place.parents)]
    first = [*_words(cgroups / "cpu" / "cpu.cfs_quota_us"), *_words(cgroups / "cpu" / "cpu.cfs_period_us")]
    set_ones = [words for words in (*second, first) if len(words) == 2 and words[0] not in {"max", "-1"}]
    return min((int(quota) / int(period) for quota, period in set_ones), default=math.inf)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:  # no such version, or no cgroups at all
        return []


def resident_mb() -> int:
    """Returns the memory that is resident, pages mapped from files and shared with others included."""
    return _status("VmRSS")


def anonymous_mb() -> int:
    """Returns the memory that is this process's own: what another process with the same model needs as well."""
    return _status("RssAnon")


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:")), 0)
