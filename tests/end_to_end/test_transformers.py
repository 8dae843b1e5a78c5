"""A real server with two transformers, called through the client by many callers at the same time."""

import asyncio
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from isogloss import AsyncClient, Client
from isogloss.errors import SpaceMismatchError

from tests.support import shapes, texts
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of a BERT and an XLM-RoBERTa, with vectors of different dimensions."""
    folder = tmp_path_factory.mktemp("models")
    first = shapes.write(folder / "first", shapes.SMALL)
    other = dataclasses.replace(shapes.SMALL, model_type="xlm-roberta", pooling="cls", dense=24, normalize=True)
    second = shapes.write(folder / "second", other, seed=1)
    flags = ("--model", f"first={first}", "--model", f"second={second}", "--graph-cache", str(folder / "graphs"))
    with ServerProcess(*flags, "--cache-bytes", "0") as process:
        yield process


def test_each_model_is_served_under_its_name(two_models: ServerProcess) -> None:
    """The first model is the default; each has its own space, and is listed with its runtime."""
    with Client(two_models.address) as client:
        first, second = client.embed(["Good morning"]), client.embed(["Good morning"], model="second")
        assert (first.vectors.shape, second.vectors.shape) == ((1, 48), (1, 24))
        assert first.space_id != second.space_id
        assert [model.name for model in client.models()] == ["first", "second"]
        assert all(model.backend.startswith("openvino-") for model in client.models())
        with pytest.raises(SpaceMismatchError):
            client.similarity(first, second, model="second")


async def test_concurrent_calls_have_the_vectors_of_single_calls(two_models: ServerProcess) -> None:
    """Sixty concurrent calls of one to nine texts, beside cancelled ones, have the vectors of single calls."""
    lines = texts.mixed(300, seed=3)
    async with AsyncClient(two_models.address) as client:
        alone = np.concatenate([(await client.embed([line])).vectors for line in lines[:40]])
        calls = {
            first: asyncio.ensure_future(client.embed(lines[first : first + 1 + first % 9])) for first in range(60)
        }
        cancelled = [asyncio.ensure_future(client.embed(lines)) for _ in range(8)]
        await asyncio.sleep(0)
        for call in cancelled:
            call.cancel()
        for first, call in calls.items():
            vectors = (await call).vectors
            known = alone[first : first + len(vectors)]
            np.testing.assert_array_equal(vectors[: len(known)], known)
        await asyncio.gather(*cancelled, return_exceptions=True)


def test_embed_many_keeps_the_order(two_models: ServerProcess) -> None:
    """embed_many returns the vectors of embed for five hundred texts, in order."""
    lines = texts.mixed(500, seed=4)
    with Client(two_models.address) as client:
        many = np.concatenate([chunk.embeddings.vectors for chunk in client.embed_many(lines)])
        np.testing.assert_array_equal(many[::25], client.embed(lines[::25]).vectors)
