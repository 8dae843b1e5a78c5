"""Help and completion, as a shell gets them."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isogloss.cli.arguments import parser
from isogloss.cli.completion import SHELLS, script
from isogloss.testing import FakeServer

VERBS = ["embed", "similarity", "nearest", "health", "models", "completion"]


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    [verbs] = [action for action in parser({})._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(verbs.choices)


def examples() -> Iterator[str]:
    """Every line under "example:" in the helps."""
    for help_text in [parser({}).format_help(), *(verb.format_help() for verb in verb_parsers().values())]:
        lines = help_text.rpartition("example:\n")[2].splitlines()
        assert lines
        yield from (line.strip() for line in lines)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment of a shell that finds the command and a server."""
    with FakeServer() as server:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Some versions of gRPC tell of themselves on stderr unless told not to.
        own = {"PATH": path, "ISOGLOSS_SERVER": server.target, "PYTHONUTF8": "1", "GRPC_VERBOSITY": "NONE"}
        yield {**os.environ, **own}


def bash(line: str, environment: dict[str, str], folder: Path) -> str:
    """Returns what a line of bash prints; the test fails where it fails or complains."""
    command = ["bash", "--norc", "-c", line]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("example", list(examples()))
def test_examples_work(example: str, environment: dict[str, str], tmp_path: Path) -> None:
    """The examples at the end of each help run as they stand."""
    (tmp_path / "sentences.txt").write_text("The station is on the left.\nIl pleut.\n駅は左にあります。\n")
    printed = bash(example, environment, tmp_path)
    assert printed or "completion" in example


def test_the_help_has_a_line_for_each_verb() -> None:
    """The program's help lists its verbs with a line each."""
    listed = re.findall(r"^    ([a-z]+) {2,}\S.*$", parser({}).format_help(), re.MULTILINE)
    assert listed == VERBS == list(verb_parsers())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], [*VERBS, "-h", "--help", "--version"]),
        (["ne"], ["nearest"]),
        (["embed", "--el"], ["--element-type"]),
        (["embed", "--element-type", "ub"], ["ubinary"]),
        (["similarity", "--metric", "=", "e"], ["euclidean"]),
        (["similarity", "a", "--metric", "="], ["cosine", "dot", "euclidean", "manhattan"]),
        (["embed", "--npy", "two w"], ["two words.npy"]),
        (["nearest", "-k", ""], []),
        (["completion", ""], ["bash", "zsh", "fish", "-h", "--help"]),
        (["unknown", ""], []),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    """A bash that has read the script completes verbs, flags, their values, and files."""
    (tmp_path / "two words.npy").touch()
    (tmp_path / "completion").write_text(script("bash", parser({})))
    typed = " ".join(f"'{word}'" for word in ["isogloss", *words])
    line = (
        f'. ./completion; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _isogloss; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert bash(line, environment, tmp_path).splitlines() == (expected or [""])
    assert "-F _isogloss isogloss" in bash(". ./completion; complete -p isogloss", environment, tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_name_every_verb_and_flag(shell: str) -> None:
    """No verb and no long flag is missing in any shell's script, and nothing of the environment is in it."""
    written = script(shell, parser({}))
    for name, verb in verb_parsers().items():
        assert name in written
        for flag in (flag for action in verb._actions for flag in action.option_strings if flag.startswith("--")):
            assert (f"-l {flag[2:]}" if shell == "fish" else flag) in written
    assert "manhattan" in written


def test_zsh_descriptions_are_escaped() -> None:
    """Brackets and colons of a description would end it in zsh."""
    written = script("zsh", parser({}))
    assert r"'--npy=[write float32 \[texts, dimensions\] for numpy.load, whole or not at all]:file:_files'" in written
    assert r"(default\: localhost\:50051)]:host\:port:'" in written


def test_the_environment_is_not_in_the_script(environment: dict[str, str], tmp_path: Path) -> None:
    """A script that is kept does not tell the server of the day that it was made."""
    assert environment["ISOGLOSS_SERVER"] not in bash("isogloss completion zsh", environment, tmp_path)
