"""Models of the hub, against a hub on this machine: what is fetched, what is kept, and what is said when it fails."""

import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from huggingface_hub import constants, file_download
from isogloss_server.errors import ModelFilesError
from isogloss_server.models import catalog, hub, model_folder, static
from isogloss_server.models.catalog import HubModel

from tests.support.fake_hub import COMMIT, FakeHub

NEEDED = {"modules.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the environment says: the hub is on this machine
    return tmp_path / "cache"


@pytest.fixture
def fake(static_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the model `owner/model`, which has more files than are needed."""
    for name in ("1_Pooling/config.json", "pytorch_model.bin", "onnx/model.safetensors", "code.py", "README.md"):
        (static_folder / name).parent.mkdir(exist_ok=True)
        (static_folder / name).write_text("{}")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with FakeHub() as fake:
        fake.models["owner/model"] = static_folder
        _point_at(fake.address, monkeypatch)
        yield fake


def _point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def said(source: str) -> str:
    """Returns the one line that a model that cannot be had ends in."""
    with pytest.raises(ModelFilesError) as raised:
        model_folder.locate(source)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("source", ["owner/model", f"owner/model@{COMMIT}"])
def test_what_is_needed_is_fetched_once(fake: FakeHub, source: str) -> None:
    """Weights, tokenizer and configurations are fetched, nothing else is, and the second time nothing at all."""
    folder = model_folder.locate(source)
    assert set(fake.fetched) == NEEDED
    assert max(Counter(fake.fetched).values()) == 1
    assert folder.revision == COMMIT
    assert static.load(folder).card.dimensions == (3,)
    asked = len(fake.agents)
    assert model_folder.locate(source) == folder
    assert len(fake.agents) == asked


def test_a_known_model_comes_at_its_commit_with_its_row(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the catalogue is fetched from its place at its pinned commit, and the folder knows its row."""
    row = catalog.KnownModel(
        hub_id="owner/model",
        revision=COMMIT,
        dimensions=(3,),
        max_tokens=8,
        modules=(),
        pooling="mean",
        languages=("en",),
        license="MIT",
        prompts={"query": "q: "},
    )
    monkeypatch.setattr(catalog, "KNOWN", (row,))
    assert model_folder.locate("model").known is row
    assert model_folder.locate("owner/model").known is row
    assert catalog.resolve("model") == HubModel("owner/model", COMMIT, "model", row)


def test_a_pulled_model_is_found_without_a_hub(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is found when the hub cannot be reached any more."""
    folder = model_folder.locate("owner/model")
    _point_at(_nobody(), monkeypatch)
    assert model_folder.locate("owner/model") == folder


def test_what_another_program_left_is_made_whole(fake: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of which nothing says what is missing is completed, and taken as it is where nobody can be asked."""
    model_folder.locate("owner/model")
    others = cache.with_name("others")
    shutil.copytree(cache, others, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(others))
    snapshot = others / "models--owner--model" / "snapshots" / COMMIT
    (snapshot / "1_Pooling" / "config.json").unlink()
    with monkeypatch.context() as alone:
        _point_at(_nobody(), alone)
        assert model_folder.locate("owner/model").path == snapshot
    assert not (snapshot / "1_Pooling" / "config.json").exists()
    assert model_folder.locate("owner/model").path == snapshot
    assert (snapshot / "1_Pooling" / "config.json").is_file()


def test_what_broke_off_goes_on(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that breaks off says so, is not taken for a model, and does not fetch again what arrived whole."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between the library's attempts
    fake.cut_at["tokenizer.json"] = 0
    assert said("owner/model").startswith("the download of owner/model broke off: start it again")
    wanted = catalog.resolve("owner/model")
    assert wanted is not None
    assert hub.cached(wanted) is None
    fake.cut_at.clear()
    whole = NEEDED - {"tokenizer.json"}
    assert model_folder.locate("owner/model").file("tokenizer.json").stat().st_size > 0
    assert sorted(name for name in fake.fetched if name in whole) == sorted(whole)


def test_no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection, the line says where to pull, or to give a folder."""
    monkeypatch.setenv("NO_PROXY", "*")
    address = _nobody()
    _point_at(address, monkeypatch)
    line = said("LaBSE")
    assert line.startswith("sentence-transformers/LaBSE@")
    assert f"is not on this disk, and {address} cannot be reached" in line
    assert line.endswith(
        "run `isogloss-server models pull LaBSE` where there is a connection, or give a folder with its files"
    )


def test_offline_mode(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE, nobody is asked, and the line says that it is set."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in said("owner/model")
    assert not fake.agents


def test_no_such_model(fake: FakeHub) -> None:
    """A name that neither a folder nor the hub has is told to be checked."""
    assert said("owner/none").startswith(f"there is no folder owner/none, and no such model on {fake.address}")


@pytest.mark.parametrize("source", ["owner/a--b", "owner/..", "owner/model.git"])
def test_what_can_be_no_name(fake: FakeHub, source: str) -> None:
    """A name that no model of the hub can have is one line, and nobody is asked."""
    assert said(source).startswith(f"{source} is no folder, and no name that a model on {fake.address} can have")
    assert not fake.agents


def test_no_such_revision(fake: FakeHub) -> None:
    """A revision that the model does not have is told, with the page that lists them."""
    assert said("owner/model@v9").startswith("owner/model has no revision v9: look for one at http://127.0.0.1")


def test_a_gated_model_wants_a_token(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated model is refused with its page and HF_TOKEN, and given to who has one."""
    fake.gated.add("owner/model")
    line = said("owner/model")
    assert line.startswith("owner/model is gated: accept its terms at http://127.0.0.1")
    assert "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_something")
    assert model_folder.locate("owner/model").revision == COMMIT


@pytest.mark.parametrize(
    ("status", "way"), [(403, "set HF_TOKEN to a token that may read it"), (500, "try again later")]
)
def test_a_hub_that_does_not_answer_as_it_should(fake: FakeHub, status: int, way: str) -> None:
    """A refusal is about the token, a fault of the hub passes."""
    fake.status = status
    line = said("owner/model")
    assert f"HTTP {status}" in line
    assert line.endswith(way)


def test_too_little_room_is_told_before_anything_is_fetched(fake: FakeHub, cache: Path) -> None:
    """Where the hub tells sizes, a disk that is too small is told with both figures, and nothing is fetched."""
    fake.claimed_bytes = 10**18
    line = said("owner/model")
    assert line.startswith("owner/model needs 4,000,000,000,001 MB on the disk of ")
    assert line.endswith("make room, or set HF_HOME to a folder on another disk")
    assert not fake.fetched


def test_a_full_disk(fake: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while fetching is one line that says so."""
    fetch = file_download.http_get

    def fetch_onto_a_full_disk(url: str, _: BinaryIO, **more: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            fetch(url, full, **more)

    monkeypatch.setattr(file_download, "http_get", fetch_onto_a_full_disk)
    assert said("owner/model") == f"the disk of {cache} is full: make room, or set HF_HOME to a folder on another disk"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("model.safetensors", "owner/model has no weights as safetensors, and pickled ones are never read"),
        ("modules.json", "owner/model has no modules.json: it is no model of sentence-transformers"),
    ],
)
def test_what_cannot_be_served_is_not_fetched(fake: FakeHub, name: str, line: str) -> None:
    """A model with pickled weights alone, or in another layout, is refused before anything is fetched."""
    (fake.models["owner/model"] / name).unlink()
    assert said("owner/model").startswith(line)
    assert not fake.fetched


def test_no_telemetry(fake: FakeHub) -> None:
    """The hub learns the library and its version, and nothing of who asks or what else is installed."""
    model_folder.locate("owner/model")
    assert constants.HF_HUB_DISABLE_TELEMETRY
    assert {agent.split("; ")[1].split("/")[0] for agent in fake.agents} == {"hf_hub"}
    assert not any("torch" in agent or "agent/" in agent for agent in fake.agents)


def _nobody() -> str:
    """Returns an address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
