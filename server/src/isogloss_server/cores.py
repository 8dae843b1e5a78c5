"""How many cores this process may really use, whatever the machine has."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Returns the cores of the process's affinity, or fewer where its cgroup's quota is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota_cores(CGROUP))))


def quota_cores(cgroup: Path) -> float:
    """Returns the cores' worth of time that a cgroup mounted at `cgroup` grants; infinite where it does not say.

    Version 2 says it in cpu.max, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu
    """
    words = _words(cgroup / "cpu.max") or [
        *_words(cgroup / "cpu" / "cpu.cfs_quota_us"),
        *_words(cgroup / "cpu" / "cpu.cfs_period_us"),
    ]
    if len(words) != 2 or words[0] in {"max", "-1"}:
        return math.inf
    return int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:  # no such version, or no cgroups at all
        return []
