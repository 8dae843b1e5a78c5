"""Pytest hooks that turn a skip into a failure where CI=true, unless tests/skips.toml names the test."""

import os
import tomllib
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import pytest

FILE = Path(__file__).parents[1] / "skips.toml"
ALLOWED: dict[str, str] = tomllib.loads(FILE.read_text(encoding="utf-8"))
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
IN_CI = os.environ.get("CI") == "true"


def checked(report: Report) -> Report:
    """Returns the report, as a failure if it is of a skip that is not allowed."""
    expected = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and not expected and not any(fnmatchcase(report.nodeid, name) for name in ALLOWED):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true, and not in {FILE.name}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Checks the report of a test."""
    return checked((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Checks the report of a module, which may be skipped as a whole."""
    return checked((yield))
