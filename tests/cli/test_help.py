"""Help texts and completion scripts of the command."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isogloss.cli import main
from isogloss.cli.arguments import SHELLS, parser
from isogloss.testing import FakeServer

VERBS = ["embed", "similarity", "nearest", "health", "models", "completion"]


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each verb."""
    [verbs] = [action for action in parser({})._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(verbs.choices)


def examples() -> Iterator[str]:
    """Yields every line below "example:" in the help texts."""
    for help_text in [parser({}).format_help(), *(verb.format_help() for verb in verb_parsers().values())]:
        lines = help_text.rpartition("example:\n")[2].splitlines()
        assert lines
        yield from (line.strip() for line in lines)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Provides the environment of a shell with the command on its PATH and a server."""
    with FakeServer() as server:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Some versions of gRPC log to stderr by default.
        own = {"PATH": path, "ISOGLOSS_SERVER": server.target, "PYTHONUTF8": "1", "GRPC_VERBOSITY": "NONE"}
        yield {**os.environ, **own}


def bash(line: str, environment: dict[str, str], folder: Path) -> str:
    """Returns the output of a line of bash; fails the test if bash fails or prints to stderr."""
    command = ["bash", "--norc", "-c", line]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("example", list(examples()))
def test_examples_of_the_help_run(example: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Each example in a help text runs without changes."""
    (tmp_path / "sentences.txt").write_text("The station is on the left.\nIl pleut.\n駅は左にあります。\n")
    if "completion" in example:
        pytest.importorskip("shtab")
    printed = bash(example, environment, tmp_path)
    assert printed or "completion" in example


def test_the_help_lists_each_verb_on_one_line() -> None:
    """The help of the program has one line per verb."""
    listed = re.findall(r"^    ([a-z]+) {2,}\S.*$", parser({}).format_help(), re.MULTILINE)
    assert listed == VERBS == list(verb_parsers())


# Completes a line in the way of readline: the last word is the one under the cursor.
COMPLETE = """
. ./completion
completer=$(complete -p isogloss | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=({words}); COMP_CWORD={last}; COMPREPLY=()
"$completer" isogloss "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf "%s\\n" "${{COMPREPLY[@]}}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the completion script of a shell; skips the test without shtab."""
    pytest.importorskip("shtab")
    assert main(["completion", shell], {"ISOGLOSS_SERVER": "server.example:1"}) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], VERBS),
        (["ne"], ["nearest"]),
        (["embed", "--el"], ["--element-type"]),
        (["embed", "--element-type", "ub"], ["ubinary"]),
        (["similarity", "a", "--metric", ""], ["cosine", "dot", "euclidean", "manhattan"]),
        (["embed", "--npy", "two w"], ["two words.npy"]),
        (["health", "--root-certificates", "two w"], ["two words.npy"]),
        (["health", "--key-file", "two w"], ["two words.npy"]),
        (["nearest", "-k", ""], []),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes_verbs_flags_values_and_files(
    words: list[str],
    expected: list[str],
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the script, bash completes verbs, flags, values of flags, and file names."""
    (tmp_path / "two words.npy").touch()
    (tmp_path / "completion").write_text(script("bash", capsys))
    typed = " ".join(f"'{word}'" for word in ["isogloss", *words])
    printed = bash(COMPLETE.format(words=typed, last=len(words)), environment, tmp_path)
    assert printed.splitlines() == (expected or [""])


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_contain_every_verb_and_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script of each shell has all verbs, all long flags and their values, but no values of the environment."""
    written = script(shell, capsys)
    for name, verb in verb_parsers().items():
        assert name in written
        for flag in (flag for action in verb._actions for flag in action.option_strings if flag.startswith("--")):
            assert (f"-l {flag[2:]}" if shell == "fish" else flag) in written
    assert "manhattan" in written
    assert "server.example" not in written


def test_completion_without_shtab_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without shtab the command prints one line that says what to install, with exit code 2."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as raised:
        main(["completion", "bash"], {})
    printed = capsys.readouterr()
    assert (raised.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert "pip install 'isogloss[completion]'" in printed.err
