"""The number of cores that the process may use, and names of addresses."""

import math
import os
from pathlib import Path

import pytest
from isogloss_server import system
from isogloss_server.system import quota_cores, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"a/b/cpu.max": "200000 100000", "a/cpu.max": "max 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_the_lowest_quota_counts(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    """The lowest quota of the process's cgroup and its ancestors counts, in either version of cgroups."""
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    for name, text in files.items():
        (tmp_path / "cgroups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroups" / name).write_text(text + "\n")
    assert quota_cores(tmp_path / "cgroups", own) == cores


def test_cores_are_limited_by_the_affinity() -> None:
    """There is at least one core, and not more than in the process's affinity."""
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("host", "expected"), [("::1", "[::1]:80"), ("::", "[::]:80"), ("127.0.0.1", "127.0.0.1:80"), ("host", "host:80")]
)
def test_an_ipv6_address_has_brackets(host: str, expected: str) -> None:
    """The port cannot be taken for a part of the address."""
    assert system.address(host, 80) == expected
