"""`isogloss-server models ...`, as a process, with a hub on this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isogloss_server.models.catalog import KNOWN

from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.server_process import ServerProcess

SPACE_ID = re.compile(r"space id +s1-[0-9a-f]{32}")
# A sentence-transformers with another opinion.
OTHER_VECTORS = """
import numpy as np

class SentenceTransformer:
    def __init__(self, folder, **_): pass
    def encode(self, texts, **_): return np.ones((len(texts), 256), np.float32)
"""
NO_BARS = "def disable_progress_bar(): pass"


@pytest.fixture
def fake(static_folder: Path) -> Iterator[FakeHub]:
    """A hub with the model `owner/model`."""
    with FakeHub() as fake:
        fake.models["owner/model"] = static_folder
        yield fake


class Command:
    """Runs the command with a cache and a hub of its own."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.home = home
        hub = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = {**hub, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"}

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Returns exit status, stdout and stderr."""
        command = [sys.executable, "-m", "isogloss_server", "models", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, encoding="utf-8", check=False, timeout=100
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def command(fake: FakeHub, tmp_path: Path) -> Command:
    """The command, on the hub of the test and an empty cache."""
    return Command(tmp_path / "home", fake.address)


def test_list_has_every_name(command: Command) -> None:
    """A line for the bundled model and for each of the catalogue, and whether it is on this disk."""
    status, out, err = command("list")
    assert (status, err) == (0, "")
    headings, bundled, *lines = out.splitlines()
    assert headings.split() == ["name", "dimensions", "tokens", "languages", "licence", "on", "this", "disk"]
    assert bundled.split()[0] == "isogloss-static"
    assert bundled.split()[-1] == "yes"
    assert [line.split()[0] for line in lines] == [known.name for known in KNOWN]
    assert {line.split()[-1] for line in lines} == {"no"}


def test_list_as_json_has_every_fact(command: Command) -> None:
    """As JSON, each model comes with all that the catalogue knows."""
    status, out, _ = command("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert len(rows) == len(KNOWN) + 1
    e5 = rows["multilingual-e5-base"]
    assert e5["prompts"]["document"] == "passage: "
    assert (e5["dimensions"], e5["max_tokens"], e5["license"], e5["folder"]) == ([768], 512, "MIT", None)
    assert rows["isogloss-static"]["folder"]


def test_pull_then_show(command: Command, fake: FakeHub) -> None:
    """A model is pulled once, with nothing on stderr where no terminal is, and then shown with its digests."""
    assert "not on this disk" in command("show", "owner/model")[1]
    assert not fake.agents
    status, out, err = command("pull", "owner/model", "owner/model")
    assert (status, err) == (0, "")
    folder = command.home / "hub" / "models--owner--model" / "snapshots" / COMMIT
    assert out == f"owner/model at {COMMIT}: {folder}\n" * 2
    assert sorted(fake.fetched) == ["model.safetensors", "modules.json", "tokenizer.json"]
    shown = command("show", "owner/model")[1]
    assert str(folder) in shown
    assert "StaticEmbedding" in shown
    assert shown.count(" bytes  ") == 3


def test_a_pulled_model_serves_without_a_hub(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `models pull` fetched is served by its name where the hub is out of reach, and nobody is asked for it."""
    assert command("pull", f"owner/model@{COMMIT}")[0] == 0
    monkeypatch.setenv("HF_HOME", str(command.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with ServerProcess("--model", f"pulled=owner/model@{COMMIT}") as process:
        assert process.wait_for("model ready")["model"] == "pulled"


def test_a_model_that_cannot_be_had_is_one_line_and_status_1(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told a model which the hub does not have ends with the line that says so."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", fake.address)
    monkeypatch.setenv("NO_PROXY", "*")
    process = ServerProcess("--model", "owner/none")
    assert process.wait() == 1
    (line,) = process.lines
    assert line.startswith("isogloss-server: there is no folder owner/none, and no such model on http://127.0.0.1")


def test_show_ends_with_the_space(command: Command) -> None:
    """What is on this disk is shown with the space that a server would answer in."""
    status, out, _ = command("show", "isogloss-static")
    assert status == 0
    assert SPACE_ID.fullmatch(out.splitlines()[-1])


def test_verify_says_what_was_not_compared(command: Command, tmp_path: Path) -> None:
    """Without sentence-transformers, the server's own checks are made, and the command says that it made no others."""
    (tmp_path / "sitecustomize.py").write_text('import sys; sys.modules["sentence_transformers"] = None')
    command.environment["PYTHONPATH"] = str(tmp_path)
    status, out, err = command("verify", "isogloss-static")
    assert (status, err) == (0, "")
    own, other = out.splitlines()
    assert own.endswith(": the server's own checks passed")
    assert other == "sentence-transformers is not installed: its vectors were not compared"


def test_verify_tells_a_model_that_is_off(command: Command, tmp_path: Path) -> None:
    """Vectors that are not those of sentence-transformers end with one line and status 1."""
    for name, text in {"sentence_transformers.py": OTHER_VECTORS, "transformers/utils/logging.py": NO_BARS}.items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text(text)
    command.environment["PYTHONPATH"] = str(tmp_path / "other")
    status, out, err = command("verify", "isogloss-static")
    assert status == 1
    assert "OFF by more than its precision" in out
    assert err == "isogloss-server: isogloss-static: its vectors are not those of sentence-transformers\n"


def test_verify_finds_damage(command: Command, static_folder: Path) -> None:
    """A model that fails the start-up checks is one line and status 1."""
    card = {"probes": [{"text": "one", "vector": [1.0, 2.0, 3.0]}]}
    (static_folder / "isogloss.json").write_text(json.dumps(card))
    status, out, err = command("verify", str(static_folder))
    assert (status, out) == (1, "")
    assert err == "isogloss-server: the model is damaged: its vectors differ from the known vectors\n"


def test_what_cannot_be_had_is_one_line_and_status_1(command: Command) -> None:
    """A model that the hub does not have, and a name that is none, end with one line and status 1."""
    for words, begin in {
        ("pull", "owner/none"): "isogloss-server: there is no folder owner/none, and no such model on http://127.0.0.1",
        ("show", "labse"): "isogloss-server: model 'labse' is neither",
        ("verify", "/no/such/folder"): "isogloss-server: model '/no/such/folder' is neither",
    }.items():
        status, out, err = command(*words)
        assert (status, out) == (1, "")
        assert err.startswith(begin)
        assert err.count("\n") == 1


def test_a_wrong_setting_is_one_line_and_status_2(command: Command) -> None:
    """Models are loaded with the settings of the environment; a wrong one ends as it does for the server."""
    command.environment["ISOGLOSS_PORT"] = "many"
    status, out, err = command("verify", "isogloss-static")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("isogloss-server: ISOGLOSS_PORT must be")


def test_wrong_words_are_one_line_and_status_2(command: Command) -> None:
    """A verb without its model ends with one line and status 2."""
    status, _, err = command("pull")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_the_verbs(shell: str) -> None:
    """The script for a shell knows the verbs of `models`."""
    command = [sys.executable, "-m", "isogloss_server", "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert all(verb in script for verb in ("models", "pull", "verify"))
