"""A model's name or folder to its files."""

import hashlib
from pathlib import Path

import pytest
from isogloss_server.errors import ModelFilesError
from isogloss_server.models import model_folder
from isogloss_server.models.model_folder import BUNDLED


def test_the_bundled_model_is_found_by_its_name() -> None:
    """The bundled model needs no folder and no hub, and has the revision that its card tells."""
    folder = model_folder.locate(BUNDLED)
    assert folder.revision == folder.card.revision != ""
    assert folder.known is None


def test_a_folder_is_taken_before_a_name(static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there is the model, though the hub may have one of that name."""
    owner = static_folder.parent / "owner"
    owner.mkdir()
    static_folder.rename(owner / "model")
    monkeypatch.chdir(owner.parent)
    folder = model_folder.locate("owner/model")
    assert (folder.path, folder.revision, folder.known) == (Path("owner/model"), "", None)


def test_the_digest_is_the_files(static_folder: Path) -> None:
    """A file's digest is the sha256 of what is in it."""
    expected = hashlib.sha256((static_folder / "tokenizer.json").read_bytes()).hexdigest()
    assert model_folder.locate(str(static_folder)).digest("tokenizer.json") == expected


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("labse", "did you mean LaBSE?"),
        ("nothing-like-it", "`isogloss-server models list` lists the known ones"),
        ("/no/such/folder", "`isogloss-server models list` lists the known ones"),
    ],
)
def test_what_is_nothing_says_what_it_could_be(source: str, hint: str) -> None:
    """What is no folder and no name is one line, with the name that was meant or where the names are."""
    with pytest.raises(ModelFilesError) as raised:
        model_folder.locate(source)
    assert str(raised.value).startswith(
        f"model {source!r} is neither 'isogloss-static', a folder, a known name nor a hub id; "
    )
    assert str(raised.value).endswith(hint)
