"""The install lines of the documents, each run in an empty environment."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").glob("*.md")]
LOCKS = ("development", "sentence-transformers")
IN_PROSE = re.compile(r"`(pip install\s[^`]+)`")
IN_A_BLOCK = re.compile(r"^(?:\$ )?(pip install .+?)(?: +#.*)?$", re.MULTILINE)
LINES = sorted(
    {
        " ".join(line.split())
        for document in DOCUMENTS
        for pattern in (IN_PROSE, IN_A_BLOCK)
        for line in pattern.findall(document.read_text(encoding="utf-8"))
    }
)


def versions(folder: Path) -> Path:
    """Writes the locked versions without hashes: with one of them, pip asks for those of our own folders too."""
    texts = [(ROOT / "constraints" / f"{lock}.txt").read_text() for lock in LOCKS]
    lines = {line.rstrip(" \\") for text in texts for line in text.splitlines() if "==" in line}
    file = folder / "versions.txt"
    file.write_text("\n".join(sorted(lines)))
    return file


def empty_environment(folder: Path) -> Path:
    """Returns the programs of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def stays_empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which nothing is installed."""
    return empty_environment(tmp_path_factory.mktemp("empty") / "environment")


def run_line(line: str, programs: Path) -> None:
    """Runs a line in the root of the repository, with the programs of an environment first on the path."""
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    limits = str(versions(programs.parent))
    environment = {**os.environ, "PATH": path, "PIP_CONSTRAINT": limits, "PIP_QUIET": "1"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def test_the_documents_have_install_lines() -> None:
    """The documents have install lines for the client, the server, and the server with each of its extras."""
    extras = {extra for line in LINES for extra in re.findall(r"\[([\w-]+)\]", line)}
    assert {"pip install ./client", "pip install ./client ./server"} < set(LINES)
    assert extras == set(metadata.metadata("isogloss-server").get_all("Provides-Extra") or [])


@pytest.mark.parametrize("line", [line for line in LINES if "[" not in line])
def test_an_install_line_installs_commands_that_start(line: str, tmp_path: Path) -> None:
    """The commands that a line without an extra installs run with --help."""
    programs = empty_environment(tmp_path / "environment")
    run_line(line, programs)
    for command in {"isogloss", *(["isogloss-server"] if "server" in line else [])}:
        subprocess.run([programs / command, "--help"], check=True, capture_output=True)


@pytest.mark.parametrize("line", [line for line in LINES if "[" in line])
def test_an_install_line_with_an_extra_resolves(line: str, stays_empty: Path) -> None:
    """A line with an extra resolves; the test installs nothing, because torch is large."""
    run_line(f"{line} --dry-run", stays_empty)
