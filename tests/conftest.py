"""Servers and model folders that tests share."""

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

settings.register_profile("untimed", deadline=None)  # the time of a test depends on the load of the machine
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A real server with the bundled model and the default settings, but without a cache.

    A cache would return stored rows for repeated texts, where tests compare computed ones.
    """
    with ServerProcess("--cache-bytes", "0") as process:
        yield process


@pytest.fixture(scope="session")
def small_server() -> Iterator[ServerProcess]:
    """A real server with small limits."""
    limits = {"texts": 8, "request-bytes": 4096, "response-bytes": 5000, "pairs": 20}
    with ServerProcess(*(f"--max-{name}={limit}" for name, limit in limits.items())) as process:
        yield process


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """The generated stub, connected to `server`."""
    with grpc.insecure_channel(server.address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


@pytest.fixture
def small_stub(small_server: ServerProcess) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """The generated stub, connected to `small_server`."""
    with grpc.insecure_channel(small_server.address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


@pytest.fixture
def static_folder(tmp_path: Path) -> Path:
    """A folder with a static model of four words in three dimensions, whose normalizer removes exclamation marks."""
    from safetensors.numpy import (
        save_file,
    )  # not at the top: the client is also tested without the server's dependencies
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
