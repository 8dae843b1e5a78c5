"""Infinity behind the server: a real server with the API of OpenAI."""

import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import pytest
from isogloss import Client, ClientOptions
from isogloss.errors import UnavailableError
from prometheus_client.parser import text_string_to_metric_families

from tests.support import texts
from tests.support.server_process import ServerProcess
from tests.upstream.conftest import MODEL, OTHER
from tests.upstream.infinity import ANSWERED, Infinity

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(400)]

PER_CALL = 32  # texts of one call to another server than the provider's
MAX_CHARS = 250  # within the model's 256 tokens in every script


def many_scripts(count: int) -> list[str]:
    """Returns distinct texts of one or several sentences, all within the model's limit."""
    found = dict.fromkeys(text for text in texts.mixed(3 * count) if len(text) <= MAX_CHARS)
    return list(found)[:count]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of rows, float64 [n]."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


class Both(NamedTuple):
    """A server with the model twice: at Infinity, and in the server's own engine."""

    address: str
    metrics_url: str


@pytest.fixture(scope="module")
def both(infinity: Infinity, minilm: Path) -> Iterator[Both]:
    """A server with both models."""
    models = ("--model", infinity.source(MODEL), "--model", f"own={minilm}", "--precision", "f32")
    with ServerProcess("--cache-bytes", "0", *models, "--metrics-port", "0") as process:
        url = process.wait_for("serving metrics")["url"]
        yield Both(process.address, url)


def test_vectors_are_those_of_the_servers_own_engine(both: Both) -> None:
    """Texts of many scripts and lengths have the same vectors from both, in their order."""
    sentences = many_scripts(150)
    letters = [next((char for char in text if char.isalpha()), " ") for text in sentences]
    assert len({unicodedata.name(letter).split()[0] for letter in letters}) >= 8  # scripts
    with Client(both.address) as client:
        before = calls_made(both.metrics_url)
        theirs = client.embed(sentences, model=MODEL)
        calls = calls_made(both.metrics_url) - before
        ours = client.embed(sentences, model="own", truncation="error")  # an error if a text is over the limit
    assert ours.token_counts is not None
    assert min(ours.token_counts) < 10
    assert max(ours.token_counts) > 100
    assert calls == -(-len(sentences) // PER_CALL)
    assert cosines(theirs.vectors, ours.vectors).min() >= 0.9999
    assert theirs.total_tokens > 0
    assert theirs.space_id != ours.space_id


def calls_made(url: str) -> float:
    """Returns the number of calls to Infinity, by the server's metrics."""
    with urlopen(url, timeout=60) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(one.value for one in samples if one.name == "isogloss_provider_calls_total")


def test_a_repeated_text_has_one_vector(both: Both) -> None:
    """Equal texts, which are sent once, have equal vectors in each of their rows."""
    sentences = [*many_scripts(40), *many_scripts(40)]
    with Client(both.address) as client:
        rows = client.embed(sentences, model=MODEL).vectors
    assert np.array_equal(rows[:40], rows[40:])
    assert len(np.unique(rows, axis=0)) == 40


def test_an_unknown_model_is_one_line(infinity: Infinity) -> None:
    """A server with a model that Infinity does not have ends with status 1 and a line that names the model."""
    source = infinity.source("no-such-model")
    process = ServerProcess("--cache-bytes", "0", "--model", source)
    assert process.wait() == 1
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert source in line
    assert OTHER in line  # Infinity's message lists its models


def test_infinity_is_killed_and_restarted(minilm: Path) -> None:
    """If Infinity is killed in a call, the call is UNAVAILABLE and health DEGRADED; when it restarts, calls succeed."""
    options = ClientOptions(attempts=1)
    with (
        Infinity(minilm, MODEL) as infinity,
        ServerProcess("--cache-bytes", "0", "--model", infinity.source(MODEL)) as server,
    ):
        port = infinity.port
        with Client(server.address, options=options) as client, ThreadPoolExecutor() as threads:
            before = client.embed(["Guten Morgen", "Доброе утро"])
            under_way = threads.submit(client.embed, texts.mixed(1_000), timeout_s=300)
            for _ in range(3):
                infinity.wait_for(ANSWERED)
            infinity.kill()
            with pytest.raises(UnavailableError) as raised:
                under_way.result()
            assert raised.value.reason == "PROVIDER_UNAVAILABLE"
            server.wait_for("model degraded")
            health = client.health()
            assert health.status == "degraded"
            assert f"127.0.0.1:{port}" in health.models[0].detail
            with pytest.raises(UnavailableError):
                client.embed(["Guten Morgen"])
            with Infinity(minilm, MODEL, port=port):
                server.wait_for("model recovered")
                assert client.health().status == "serving"
                after = client.embed(["Guten Morgen", "Доброе утро"])
    assert after.space_id == before.space_id
    assert cosines(after.vectors, before.vectors).min() >= 0.9999
