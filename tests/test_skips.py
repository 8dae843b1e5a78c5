"""Skips where CI=true: allowed if tests/skips.toml names them, a failure otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.skips import ALLOWED

ROOT = Path(__file__).parents[1]
SKIPPED_TEST = """
import pytest

@pytest.mark.skip(reason="as told")
def test_skipped():
    pass
"""
SKIPPED_MODULE = """
import pytest

pytest.importorskip("a_module_that_does_not_exist")
"""


def run(folder: Path, module: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_module.py").write_text(module)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.skips", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", [SKIPPED_TEST, SKIPPED_MODULE], ids=["test", "module"])
def test_an_unlisted_skip_fails_in_ci(tmp_path: Path, module: str) -> None:
    """A skip that the list does not name fails where CI=true, and says why the test was skipped."""
    done = run(tmp_path, module, "true")
    assert done.returncode != 0
    assert "skipped where CI=true, and not in skips.toml" in done.stdout


def test_a_skip_passes_elsewhere(tmp_path: Path) -> None:
    """Outside CI a skip is a skip."""
    assert run(tmp_path, SKIPPED_TEST, "").returncode == 0


def test_each_allowed_skip_has_a_reason_and_a_test() -> None:
    """Each entry of the list gives a reason and names a file or a folder of tests that exists."""
    for name, reason in ALLOWED.items():
        assert reason.endswith(".")
        assert (ROOT / name.partition("::")[0].removesuffix("*")).exists(), name
