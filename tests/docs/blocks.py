"""Reads and runs the fenced code blocks of the documents."""

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
ADDRESS = "localhost:50051"  # the address of the server in the documents
FENCE = re.compile(r"^ *```(.*)$")
# A comment after a print has its output, in which ... matches anything.
EXPECTED = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its file, first line, language and text."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def needs_pytest(self) -> bool:
        """Whether the block is a file of tests."""
        return "def test_" in self.text


def blocks_of(file: Path) -> list[Block]:
    """Returns the blocks of a file, in order."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, lines = (number, fence[1].strip()), []
        elif fence and opened is not None:
            found.append(Block(file, opened[0], opened[1], "\n".join([*lines, ""])))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{file}: a block is not closed"
    return found


BLOCKS = [block for file in FILES for block in blocks_of(file)]


def of_language(language: str) -> list[Block]:
    """Returns all blocks in a language, of all files."""
    return [block for block in BLOCKS if block.language == language]


def run_python(block: Block, namespace: dict[str, Any], address: str) -> None:
    """Runs a block and compares its output with the comments after its prints."""
    source = "\n" * block.line + block.text.replace(ADDRESS, address)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(source, str(block.file), "exec"), namespace)
    for expected in EXPECTED.findall(block.text):
        pattern = re.escape(expected).replace(re.escape("..."), ".*")
        shown = printed.getvalue()
        assert re.search(f"^{pattern}$", shown, re.MULTILINE), (
            f"{block}: the output {shown!r} does not contain {expected!r}"
        )


def run_pytest(block: Block, folder: Path) -> None:
    """Runs a block that is a file of tests in a separate pytest."""
    (folder / "test_block.py").write_text(block.text, encoding="utf-8")
    disabled = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-p",
        "no:timeout",
    ]  # plugins that a user of the example may not have
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *disabled, "test_block.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"


def commands_of(block: Block) -> list[str]:
    """Returns the commands of a shell block, one for each line, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def run_shell(command: str, folder: Path, address: str) -> None:
    """Runs a command with the tools of both environments on the PATH, and the server at `address`."""
    programs = [ROOT / ".venv-proto" / "bin", Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "ISOGLOSS_SERVER": address}
    line = f"set -o pipefail; {command.replace(ADDRESS, address)}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def check_make(target: str) -> None:
    """Checks that make has a target, without running it."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def check_pip(folders: list[str]) -> None:
    """Checks that a line installs folders of this repository; tests/packages runs the line."""
    for folder in folders:
        assert (ROOT / folder.partition("[")[0] / "pyproject.toml").is_file(), f"{folder} has no distribution"


def serve_flags(command: str) -> list[str]:
    """Returns the flags of a command `isogloss-server serve`, without the port, which the test sets."""
    words = shlex.split(command, comments=True)[2:]
    if "--port" in words:
        at = words.index("--port")
        del words[at : at + 2]
    return words


def grpc_probes(manifest: Any) -> list[str]:
    """Returns the service names of all gRPC probes in a Kubernetes manifest."""
    found = re.findall(r'"grpc": (\{[^}]*\})', json.dumps(manifest))
    return [json.loads(probe).get("service", "") for probe in found]
