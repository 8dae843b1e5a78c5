"""Reads the fenced blocks of the documents, and runs them."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / name for name in ("README.md", "client/README.md", "server/README.md")),
    *(ROOT / "docs").glob("*.md"),
]
ADDRESS = "localhost:50051"  # what the documents write for a server
FENCE = re.compile(r"^ *```(.*)$")
# Beside a print stands what it prints, in which ... stands for anything.
PROMISE = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its lines."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def needs_pytest(self) -> bool:
        """Whether it is a file of tests."""
        return "def test_" in self.text


def blocks_of(file: Path) -> list[Block]:
    """Returns the blocks of a file, in order."""
    found: list[Block] = []
    begun: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence and begun is None:
            begun, lines = (number, fence[1].strip()), []
        elif fence and begun is not None:
            found.append(Block(file, begun[0], begun[1], "\n".join([*lines, ""])))
            begun = None
        elif begun is not None:
            lines.append(line)
    assert begun is None, f"{file}: a block is not closed"
    return found


BLOCKS = [block for file in FILES for block in blocks_of(file)]


def of_language(language: str) -> list[Block]:
    """Returns all blocks in a language, of all files."""
    return [block for block in BLOCKS if block.language == language]


def run_python(block: Block, namespace: dict[str, Any], address: str) -> None:
    """Runs a block, and holds what it prints against what it says that it prints."""
    source = "\n" * block.line + block.text.replace(ADDRESS, address)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(source, str(block.file), "exec"), namespace)
    for promise in PROMISE.findall(block.text):
        pattern = re.escape(promise).replace(re.escape("..."), ".*")
        shown = printed.getvalue()
        assert re.search(f"^{pattern}$", shown, re.MULTILINE), (
            f"{block}: {promise!r} is not among what it prints: {shown}"
        )


def run_pytest(block: Block, folder: Path) -> None:
    """Runs a block that is a file of tests, in a pytest of its own."""
    (folder / "test_block.py").write_text(block.text, encoding="utf-8")
    without = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout"]  # other plugins of this environment
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *without, "test_block.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"


def commands_of(block: Block) -> list[str]:
    """Returns the commands of a shell block, one a line, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def run_shell(command: str, folder: Path, address: str) -> None:
    """Runs a command as a reader would: with the generator's tools and ours at hand, and the server of the test."""
    programs = [ROOT / ".venv-proto" / "bin", Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "ISOGLOSS_SERVER": address}
    line = command.replace(ADDRESS, address)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def check_make(target: str) -> None:
    """Asks make whether there is such a target, without making it."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def check_pip(folders: list[str]) -> None:
    """Checks that a line installs folders of this repository; tests/packages runs the line."""
    for folder in folders:
        assert (ROOT / folder.partition("[")[0] / "pyproject.toml").is_file(), f"{folder} has no distribution"


def serve_flags(command: str) -> list[str]:
    """Returns the flags of an `isogloss-server serve ...`, but for the port, which the test chooses."""
    words = shlex.split(command, comments=True)[2:]
    if "--port" in words:
        at = words.index("--port")
        del words[at : at + 2]
    return words


def grpc_probes(manifest: Any) -> list[str]:
    """Returns the names that a Kubernetes manifest's probes ask about, wherever they stand in it."""
    found = re.findall(r'"grpc": (\{[^}]*\})', json.dumps(manifest))
    return [json.loads(probe).get("service", "") for probe in found]
