"""Servers and model folders that the tests share."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import settings
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess
from tests.support.skips import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]  # hooks of pytest

settings.register_profile("untimed", deadline=None)  # how long a test takes says more of the machine than of the code
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A real server with the bundled model and the default settings, but for the cache.

    It would answer for the model where a text comes again, and so for whatever a test holds against what came before.
    """
    with ServerProcess("--cache-bytes", "0") as process:
        yield process


@pytest.fixture(scope="session")
def small_server() -> Iterator[ServerProcess]:
    """A real server whose limits are soon reached."""
    limits = {"texts": 8, "request-bytes": 4096, "response-bytes": 5000, "pairs": 20}
    with ServerProcess(*(f"--max-{name}={limit}" for name, limit in limits.items())) as process:
        yield process


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """The generated stub on the default server."""
    with grpc.insecure_channel(server.address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


@pytest.fixture
def small_stub(small_server: ServerProcess) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """The generated stub on the server with small limits."""
    with grpc.insecure_channel(small_server.address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


@pytest.fixture
def static_folder(tmp_path: Path) -> Path:
    """A static model of four words in three dimensions, whose normaliser drops exclamation marks."""
    from safetensors.numpy import save_file  # here, since the client's tests also run where no server is
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder = tmp_path / "model"
    folder.mkdir()
    words = ["<unk>", "one", "two", "three", "four"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("!", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.arange(1, 16, dtype=np.float16).reshape(5, 3)
    save_file({"embedding.weight": table}, folder / "model.safetensors")
    (folder / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}]'
    )
    return folder
