"""How many cores the process may use."""

import math
import os
from pathlib import Path

import pytest
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
def test_the_least_quota_counts(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    """Of the cgroups from the process's own up to the root, in either version, the one that grants least counts."""
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    for name, text in files.items():
        (tmp_path / "cgroups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroups" / name).write_text(text + "\n")
    assert quota_cores(tmp_path / "cgroups", own) == cores


def test_no_more_than_the_affinity_allows() -> None:
    """There is at least one core, and no more than the process may run on."""
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
