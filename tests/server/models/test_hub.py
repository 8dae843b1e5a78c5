"""Models of the hub, against a fake hub on this machine: downloads, the cache, and error messages."""

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
    monkeypatch.setattr(
        constants, "HF_HUB_OFFLINE", False
    )  # also if the environment sets it: the hub is on this machine
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


def error_of(source: str) -> str:
    """Returns the message of the error that a model's source raises; it is one line."""
    with pytest.raises(ModelFilesError) as raised:
        model_folder.locate(source)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("source", ["owner/model", f"owner/model@{COMMIT}"])
def test_needed_files_are_downloaded_once(fake: FakeHub, source: str) -> None:
    """Weights, tokenizer and configurations are downloaded, other files are not; a second time, nothing is."""
    folder = model_folder.locate(source)
    assert set(fake.fetched) == NEEDED
    assert max(Counter(fake.fetched).values()) == 1
    assert folder.revision == COMMIT
    assert static.load(folder).card.dimensions == (3,)
    requests = len(fake.agents)
    assert model_folder.locate(source) == folder
    assert len(fake.agents) == requests


def test_a_known_model_has_its_pinned_commit_and_its_catalog_entry(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name is downloaded at its pinned commit, and the folder has its catalog entry."""
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


def test_a_downloaded_model_needs_no_hub(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded model is found when the hub has become unreachable."""
    folder = model_folder.locate("owner/model")
    _point_at(_unused_address(), monkeypatch)
    assert model_folder.locate("owner/model") == folder


def test_an_incomplete_snapshot_of_another_program_is_completed(
    fake: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot without a list of its files is completed, and used as it is if the hub is unreachable."""
    model_folder.locate("owner/model")
    others = cache.with_name("others")
    shutil.copytree(cache, others, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(others))
    snapshot = others / "models--owner--model" / "snapshots" / COMMIT
    (snapshot / "1_Pooling" / "config.json").unlink()
    with monkeypatch.context() as alone:
        _point_at(_unused_address(), alone)
        assert model_folder.locate("owner/model").path == snapshot
    assert not (snapshot / "1_Pooling" / "config.json").exists()
    assert model_folder.locate("owner/model").path == snapshot
    assert (snapshot / "1_Pooling" / "config.json").is_file()


def test_an_interrupted_download_resumes(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted download is reported, is not used as a model, and keeps the files that are complete."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between the library's attempts
    fake.cut_at["tokenizer.json"] = 0
    assert error_of("owner/model").startswith("the download of owner/model was interrupted: start it again")
    hub_model = catalog.resolve("owner/model")
    assert hub_model is not None
    assert hub.cached(hub_model) is None
    fake.cut_at.clear()
    whole = NEEDED - {"tokenizer.json"}
    assert model_folder.locate("owner/model").read("tokenizer.json").data
    assert sorted(name for name in fake.fetched if name in whole) == sorted(whole)


def test_an_unreachable_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection, the error says where to pull the model, or to use a folder."""
    monkeypatch.setenv("NO_PROXY", "*")
    address = _unused_address()
    _point_at(address, monkeypatch)
    line = error_of("LaBSE")
    assert line.startswith("sentence-transformers/LaBSE@")
    assert f"is not on this disk, and {address} is unreachable" in line
    assert line.endswith(
        "run `isogloss-server models pull LaBSE` on a machine with access, or name a folder with its files"
    )


def test_offline_mode(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE, there is no request, and the error says that it is set."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of("owner/model")
    assert not fake.agents


def test_an_unknown_model(fake: FakeHub) -> None:
    """For a name that is neither a folder nor on the hub, the error suggests to check it."""
    assert error_of("owner/none").startswith(
        f"owner/none is neither a folder nor a public model on {fake.address}: check the name"
    )


@pytest.mark.parametrize("source", ["owner/a--b", "owner/..", "owner/model.git"])
def test_an_invalid_name(fake: FakeHub, source: str) -> None:
    """For a name that is not a valid hub id, the error is one line, and there is no request."""
    assert error_of(source).startswith(f"{source} is neither a folder nor a valid hub id")
    assert not fake.agents


def test_an_unknown_revision(fake: FakeHub) -> None:
    """For an unknown revision, the error has the page that lists the model's revisions."""
    assert error_of("owner/model@v9") == (
        f"owner/model has no revision v9: {fake.address}/owner/model/commits/main lists revisions"
    )


def test_a_gated_model_requires_a_token(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated model is refused with its page and HF_TOKEN; with a token it is downloaded."""
    fake.gated.add("owner/model")
    line = error_of("owner/model")
    assert line.startswith("owner/model is gated: accept its terms at http://127.0.0.1")
    assert "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_something")
    assert model_folder.locate("owner/model").revision == COMMIT


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "set HF_TOKEN to a token that may read it"), (500, "retry later")]
)
def test_an_error_status_of_the_hub(fake: FakeHub, status: int, advice: str) -> None:
    """For a denied request, the error names the token; for a failure of the hub, it suggests a retry."""
    fake.status = status
    line = error_of("owner/model")
    assert f"HTTP {status}" in line
    assert line.endswith(advice)


def test_too_little_disk_space_is_reported_before_the_download(fake: FakeHub, cache: Path) -> None:
    """If the disk is too small for the model, the error has both sizes, and nothing is downloaded."""
    fake.claimed_bytes = 10**18
    line = error_of("owner/model")
    assert line.startswith("owner/model needs 4,000,000,000,001 MB on the disk of ")
    assert line.endswith("free space, or set HF_HOME to a folder on another disk")
    assert not fake.fetched


def test_a_full_disk(fake: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fills up during the download, the error is one line that says so."""
    fetch = file_download.http_get

    def fetch_onto_a_full_disk(url: str, _: BinaryIO, **more: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            fetch(url, full, **more)

    monkeypatch.setattr(file_download, "http_get", fetch_onto_a_full_disk)
    assert (
        error_of("owner/model")
        == f"the disk of {cache} is full: free space, or set HF_HOME to a folder on another disk"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "model.safetensors",
            "unsupported model owner/model: it has no safetensors weights, and pickled weights are never loaded",
        ),
        ("modules.json", "unsupported model owner/model: it has no modules.json"),
    ],
)
def test_an_unsupported_model_is_not_downloaded(fake: FakeHub, name: str, line: str) -> None:
    """A model with pickled weights alone, or in another layout, is rejected before the download."""
    (fake.models["owner/model"] / name).unlink()
    assert error_of("owner/model").startswith(line)
    assert not fake.fetched


def test_no_telemetry(fake: FakeHub) -> None:
    """The hub receives the name and version of the library, but nothing about the user or other packages."""
    model_folder.locate("owner/model")
    assert constants.HF_HUB_DISABLE_TELEMETRY
    assert {agent.split("; ")[1].split("/")[0] for agent in fake.agents} == {"hf_hub"}
    assert not any("torch" in agent or "agent/" in agent for agent in fake.agents)


def _unused_address() -> str:
    """Returns an address that no server listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_user_without_a_home_is_told_to_set_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user has no home folder, the error names the variable, and nothing counts as cached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~no-such-user/.cache/huggingface/hub")
    assert hub.cached(HubModel("owner/model", "main", "owner/model")) is None
    assert "no home folder" in error_of("owner/model")
    assert "HF_HOME" in error_of("owner/model")
