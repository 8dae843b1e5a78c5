"""Servers that the tests share."""

from collections.abc import Iterator

import grpc
import pytest
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A real server with the bundled model and the default settings."""
    with ServerProcess() as process:
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
