"""`isogloss-server models verify`, with the real sentence-transformers."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.sentence_transformers


def test_the_bundled_model_is_verified() -> None:
    """The bundled model has the vectors of sentence-transformers for texts in many scripts, and the command says so."""
    command = [sys.executable, "-m", "isogloss_server", "models", "verify", "isogloss-static"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    own, against = done.stdout.splitlines()
    assert own.endswith("passed the self-test")
    assert against.startswith("compared with sentence-transformers, no prompt: minimum cosine ")
