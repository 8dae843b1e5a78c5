"""Finding the files of a model by its name or folder."""

import hashlib
import shutil
from pathlib import Path

import pytest
from isogloss_server.errors import ModelFilesError, SettingsError
from isogloss_server.models import model_folder
from isogloss_server.models.model_folder import BUNDLED


def test_the_bundled_model_is_found_by_its_name() -> None:
    """The bundled model needs neither a folder nor the hub, and has the revision of its card."""
    folder = model_folder.locate(BUNDLED)
    assert folder.revision == folder.card.revision != ""
    assert folder.known is None


def test_a_folder_takes_precedence_over_a_name(static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing folder is the model, even if the hub may have a model of that name."""
    owner = static_folder.parent / "owner"
    owner.mkdir()
    static_folder.rename(owner / "model")
    monkeypatch.chdir(owner.parent)
    folder = model_folder.locate("owner/model")
    assert (folder.path, folder.revision, folder.known) == (Path("owner/model"), "", None)


def test_the_digest_is_the_sha256(static_folder: Path) -> None:
    """A file's digest is the sha256 of its content."""
    expected = hashlib.sha256((static_folder / "tokenizer.json").read_bytes()).hexdigest()
    assert model_folder.locate(str(static_folder)).digest("tokenizer.json") == expected


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("labse", "did you mean 'LaBSE'?"),
        ("nothing-like-it", "`isogloss-server models list` lists the known models"),
        ("/no/such/folder", "`isogloss-server models list` lists the known models"),
    ],
)
def test_an_unknown_model_gets_a_suggestion(source: str, hint: str) -> None:
    """For a source that is neither a folder nor a name, the error suggests the closest name, or the list."""
    with pytest.raises(SettingsError) as raised:
        model_folder.locate(source)
    expected = f"unknown model {source!r}: neither bundled, a folder, a known name nor a hub id; "
    assert str(raised.value).startswith(expected)
    assert str(raised.value).endswith(hint)


@pytest.fixture
def repository(static_folder: Path, tmp_path: Path) -> Path:
    """A repository of the hub's cache with two revisions, whose files are links to others."""
    path = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        (path / "snapshots" / commit).mkdir(parents=True)
        for file in static_folder.iterdir():
            (path / "snapshots" / commit / file.name).symlink_to(file)
    return path


def test_a_repository_of_the_hubs_cache_is_its_main_revision(repository: Path) -> None:
    """The folder of the repository stands for the revision of main, which becomes the model's."""
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    folder = model_folder.locate(str(repository))
    assert (folder.path, folder.revision) == (repository / "snapshots" / ("b" * 40), "b" * 40)


def test_a_repository_of_the_hubs_cache_without_main_is_its_only_revision(repository: Path) -> None:
    """A revision that was downloaded by its commit has no name; of several, one must be named."""
    with pytest.raises(ModelFilesError, match=f"has the revisions {'a' * 40}, {'b' * 40}; name the folder of one"):
        model_folder.locate(str(repository))
    shutil.rmtree(repository / "snapshots" / ("a" * 40))
    assert model_folder.locate(str(repository)).path.name == "b" * 40
    shutil.rmtree(repository / "snapshots" / ("b" * 40))
    with pytest.raises(ModelFilesError, match="has no revision"):
        model_folder.locate(str(repository))
