"""The error if sentence-transformers is not installed."""

import sys
from pathlib import Path

import pytest
from isogloss_server import factory
from isogloss_server.errors import UnsupportedModelError
from isogloss_server.models import model_folder
from isogloss_server.settings.declarations import Settings

from tests.support import shapes


def test_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with the setting of the backend, but without the library, reports in one line how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)  # makes its import fail
    monkeypatch.delitem(sys.modules, "isogloss_server.models.sentence_transformers", raising=False)
    folder = model_folder.locate(str(shapes.write(tmp_path / "model", shapes.SMALL)))
    with pytest.raises(UnsupportedModelError) as raised:
        factory.read(folder, Settings(backend="sentence-transformers"))
    assert "pip install 'isogloss-server[sentence-transformers]'" in str(raised.value)
    assert "\n" not in str(raised.value)
