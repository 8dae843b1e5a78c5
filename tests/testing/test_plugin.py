"""The pytest fixtures and the examples of the module's docstring, run in a separate pytest."""

import subprocess
import sys
import textwrap
from pathlib import Path

from isogloss import testing


def examples() -> str:
    """Returns the indented blocks of the module's docstring as one file."""
    lines = (testing.__doc__ or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))


def pytest_of(folder: Path, content: str) -> str:
    """Runs a test file in its own folder with warnings as errors; returns the output of pytest."""
    (folder / "test_it.py").write_text(content)
    without = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout"]  # other plugins of this environment
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *without, "test_it.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_documented_examples_run(tmp_path: Path) -> None:
    """The documented examples pass, including fixtures, without naming the plugin."""
    assert "2 passed" in pytest_of(tmp_path, examples())


def test_the_plugin_does_not_import_the_client(tmp_path: Path) -> None:
    """A run without the fixtures imports neither this package nor grpc."""
    content = """
import sys

def test_nothing_is_loaded() -> None:
    assert "isogloss_pytest" in sys.modules
    assert not {"isogloss", "grpc", "numpy"} & set(sys.modules)
"""
    assert "1 passed" in pytest_of(tmp_path, content)
