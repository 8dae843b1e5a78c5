"""Where sentence-transformers is not installed, whoever wants it is told how to get it."""

import sys
from pathlib import Path

import pytest
from isogloss_server import factory
from isogloss_server.errors import UnsupportedModelError
from isogloss_server.models import model_folder
from isogloss_server.settings.declarations import Settings

from tests.support import shapes


def test_the_way_to_the_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told to use the library, and does not have it, says in one line how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)  # Python's own way to say that there is none
    monkeypatch.delitem(sys.modules, "isogloss_server.models.sentence_transformers", raising=False)
    folder = model_folder.locate(str(shapes.write(tmp_path / "model", shapes.SMALL)))
    with pytest.raises(UnsupportedModelError) as raised:
        factory.read(folder, Settings(backend="sentence-transformers"))
    assert "pip install 'isogloss-server[sentence-transformers]'" in str(raised.value)
    assert "\n" not in str(raised.value)
