"""`isogloss-server models`, as a process, with a hub on this machine."""

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
from tests.support.panicking_tokenizer import change_normalizer
from tests.support.server_process import ServerProcess

SPACE_ID = re.compile(r"space id +s1-[0-9a-f]{32}")
# A sentence-transformers with other vectors.
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
    """Runs the command with its own cache and hub."""

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
    """The command, with the hub of the test and an empty cache."""
    return Command(tmp_path / "home", fake.address)


def test_list_has_every_model(command: Command) -> None:
    """There is a line for the bundled model and each one in the catalog, which says whether it is on this disk."""
    status, out, err = command("list")
    assert (status, err) == (0, "")
    headings, bundled, *lines = out.splitlines()
    assert headings.split() == ["name", "dimensions", "tokens", "languages", "licence", "on", "this", "disk"]
    assert bundled.split()[0] == "isogloss-static"
    assert bundled.split()[-1] == "yes"
    assert [line.split()[0] for line in lines] == [known.name for known in KNOWN]
    assert {line.split()[-1] for line in lines} == {"no"}


def test_list_as_json_has_every_property(command: Command) -> None:
    """As JSON, each model has all properties in the catalog."""
    status, out, _ = command("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert len(rows) == len(KNOWN) + 1
    e5 = rows["multilingual-e5-base"]
    assert e5["prompts"]["document"] == "passage: "
    assert (e5["dimensions"], e5["max_tokens"], e5["license"], e5["folder"]) == ([768], 512, "MIT", None)
    assert rows["isogloss-static"]["folder"]


def test_pull_then_show(command: Command, fake: FakeHub) -> None:
    """A model is downloaded once, with nothing on stderr without a terminal, and then shown with its digests."""
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
    """A model that `models pull` downloaded is served by its name offline, without a request."""
    assert command("pull", f"owner/model@{COMMIT}")[0] == 0
    monkeypatch.setenv("HF_HOME", str(command.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with ServerProcess("--model", f"pulled=owner/model@{COMMIT}") as process:
        assert process.wait_for("model ready")["model"] == "pulled"


def test_a_model_that_the_hub_does_not_have_ends_the_start(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a model that the hub does not have ends with one line and status 1."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", fake.address)
    monkeypatch.setenv("NO_PROXY", "*")
    process = ServerProcess("--model", "owner/none")
    assert process.wait() == 1
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert line.startswith("isogloss-server: owner/none is neither a folder nor a public model on http://127.0.0.1")


def test_show_ends_with_the_space(command: Command) -> None:
    """A model on this disk is shown with the id of its space."""
    status, out, _ = command("show", "isogloss-static")
    assert status == 0
    assert SPACE_ID.fullmatch(out.splitlines()[-1])


def test_verify_without_sentence_transformers(command: Command, tmp_path: Path) -> None:
    """Without sentence-transformers, the self-test runs, and the command says that vectors were not compared."""
    (tmp_path / "sitecustomize.py").write_text('import sys; sys.modules["sentence_transformers"] = None')
    command.environment["PYTHONPATH"] = str(tmp_path)
    status, out, err = command("verify", "isogloss-static")
    assert (status, err) == (0, "")
    own, other = out.splitlines()
    assert own.endswith(": passed the self-test")
    assert other == "sentence-transformers is not installed: vectors not compared"


def test_verify_reports_vectors_that_differ(command: Command, tmp_path: Path) -> None:
    """Vectors that differ from those of sentence-transformers end with one line and status 1."""
    for name, text in {"sentence_transformers.py": OTHER_VECTORS, "transformers/utils/logging.py": NO_BARS}.items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text(text)
    command.environment["PYTHONPATH"] = str(tmp_path / "other")
    status, out, err = command("verify", "isogloss-static")
    assert status == 1
    assert "NOT within its precision" in out
    assert err == "isogloss-server: isogloss-static: its vectors differ from those of sentence-transformers\n"


@pytest.mark.parametrize(
    "library",
    [
        "raise ImportError('no\\nlibrary')",
        "class SentenceTransformer:\n def __init__(self, *a, **k): raise KeyError('no\\nlibrary')",
        "class SentenceTransformer:\n __init__ = lambda self, *a, **k: None\n def encode(self, *a, **k): 1 / 0",
        "class Panic(BaseException): pass\nraise Panic('no\\nlibrary')",
    ],
)
def test_verify_reports_a_library_that_fails(command: Command, tmp_path: Path, library: str) -> None:
    """An exception of sentence-transformers is one line and status 1, wherever it is raised."""
    for name, text in {"sentence_transformers.py": library, "transformers/utils/logging.py": NO_BARS}.items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text(text)
    command.environment["PYTHONPATH"] = str(tmp_path / "other")
    status, out, err = command("verify", "isogloss-static")
    assert (status, err.count("\n")) == (1, 1)
    assert out.endswith(": passed the self-test\n")
    assert re.match(
        "isogloss-server: (sentence-transformers cannot run |cannot load model isogloss-static: Panic)", err
    )


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_a_tokenizer_that_panics_is_one_line(command: Command, static_folder: Path, verb: str) -> None:
    """A library in Rust panics on files that it does not expect; the command ends as for other damage."""
    change_normalizer(static_folder, {"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    status, _, err = command(verb, str(static_folder))
    assert status == 1
    assert err.splitlines()[-1].startswith(f"isogloss-server: {static_folder}/tokenizer.json is not a tokenizer")
    assert "Traceback" not in err
    assert "stack backtrace" not in err


def test_verify_reports_damage(command: Command, static_folder: Path) -> None:
    """A model that fails its self-test is one line and status 1."""
    card = {"probes": [{"text": "one", "vector": [1.0, 2.0, 3.0]}]}
    (static_folder / "isogloss.json").write_text(json.dumps(card))
    status, out, err = command("verify", str(static_folder))
    assert (status, out) == (1, "")
    assert err == "isogloss-server: the model is damaged: its vectors differ from the known vectors\n"


def test_an_unknown_model_is_one_line(command: Command) -> None:
    """A model that the hub does not have ends with one line and status 1, an unknown name with status 2."""
    for words, expected, begin in (
        (("pull", "owner/none"), 1, "owner/none is neither a folder nor a public model on http://127.0.0.1"),
        (("show", "labse"), 2, "unknown model 'labse': neither"),
        (("verify", "/no/such/folder"), 2, "unknown model '/no/such/folder': neither"),
        (("show", "openai:none"), 2, "unknown model 'none' of OpenAI"),
    ):
        status, out, err = command(*words)
        assert (status, out) == (expected, "")
        assert err.startswith(f"isogloss-server: {begin}")
        assert err.count("\n") == 1


def test_an_invalid_setting_is_one_line_and_status_2(command: Command) -> None:
    """Models are loaded with the settings in the environment; an invalid one ends as it does for the server."""
    command.environment["ISOGLOSS_PORT"] = "many"
    status, out, err = command("verify", "isogloss-static")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("isogloss-server: ISOGLOSS_PORT must be")


def test_a_missing_argument_is_one_line_and_status_2(command: Command) -> None:
    """A verb without its model ends with one line and status 2."""
    status, _, err = command("pull")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_the_verbs(shell: str) -> None:
    """The script for a shell has the verbs of `models`."""
    command = [sys.executable, "-m", "isogloss_server", "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert all(verb in script for verb in ("models", "pull", "verify"))
