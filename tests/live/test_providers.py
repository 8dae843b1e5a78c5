"""The real providers behind the server: `CO_API_KEY=... OPENAI_API_KEY=... pytest -m live`."""

from collections.abc import Iterator

import numpy as np
import pytest
from isogloss import Client, ClientOptions, InputType
from isogloss.errors import InvalidArgumentError

from tests.live.providers import MODELS, Live
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.live

SENTENCES = ["Good morning", "Buenos días", "The invoice is overdue", "おはようございます", "Счёт просрочен"]
WRONG_KEY = "wrong-0123456789abcdefghijklmnopqrstuv"


@pytest.fixture(scope="module", params=MODELS, ids=lambda live: live.source)
def live(request: pytest.FixtureRequest) -> Live:
    """A model whose provider's key is set."""
    model: Live = request.param
    if not model.key:
        pytest.skip(f"{model.variable} is not set")
    return model


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Client]:
    """A client of a server with the model."""
    with (
        ServerProcess("--model", live.source) as process,
        Client(process.address, options=ClientOptions(timeout_s=100.0)) as client,
    ):
        yield client


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of rows, float64 [n]."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("input_type", InputType)
def test_every_input_type_is_supported(live: Live, client: Client, input_type: InputType) -> None:
    """Each input type has finite vectors of unit length and the model's dimensions, and billed tokens."""
    (model,) = client.models()
    embeddings = client.embed(SENTENCES, input_type=input_type)
    assert embeddings.vectors.shape == (len(SENTENCES), model.dimensions[0])
    assert np.allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-5)
    assert embeddings.total_tokens > 0
    assert embeddings.token_counts == ()


def test_input_types_change_the_vectors_of_cohere_alone(live: Live, client: Client) -> None:
    """A query's vector differs from the document's at Cohere, but not at OpenAI, which has no input types."""
    queries, documents = (client.embed(SENTENCES, input_type=kind).vectors for kind in ("query", "document"))
    lowest = cosines(queries, documents).min()
    assert lowest < 0.999 if live.source.startswith("cohere") else lowest > 0.999


@pytest.mark.parametrize("truncation", ["end", "start", "error"])
def test_truncations_are_those_of_the_provider(live: Live, client: Client, truncation: str) -> None:
    """A text over the limit is truncated or rejected as requested; an unsupported truncation is rejected."""
    if truncation not in live.truncations:
        with pytest.raises(InvalidArgumentError) as raised:
            client.embed(SENTENCES, truncation=truncation)
        assert raised.value.reason == "UNSUPPORTED_TRUNCATION"
        return
    if not live.long_words:
        pytest.skip("a text over the limit costs too much")
    begins, ends = "weather " * live.long_words + "invoice", "invoice " + "weather " * live.long_words
    if truncation == "error":
        with pytest.raises(InvalidArgumentError) as raised:
            client.embed([begins], truncation=truncation)
        assert raised.value.reason == "PROVIDER_REFUSED"
        return
    rows = client.embed([begins, ends, "weather " * live.long_words], truncation=truncation).vectors
    weather_alone = cosines(rows[:2], rows[[2, 2]])  # without the other word, the text is nothing but weather
    assert weather_alone.argmax() == (0 if truncation == "end" else 1)


def test_truncated_vectors_are_those_of_the_provider(live: Live, client: Client) -> None:
    """The leading columns with unit length are the provider's own vectors of these dimensions."""
    if not live.shorter:
        pytest.skip("the model has one number of dimensions")
    for dimensions in live.shorter:
        ours = client.embed(SENTENCES, input_type="document", dimensions=dimensions).vectors
        assert cosines(ours, live.directly(live.name, SENTENCES, dimensions)).min() >= 0.9999


def test_element_types_are_close_to_the_floats(live: Live, client: Client) -> None:
    """Each element type is close to the floats; floats of two calls may differ slightly."""
    floats = client.embed(SENTENCES).vectors
    for element_type, lowest in (("float16", 0.9999), ("int8", 0.999), ("uint8", 0.999)):
        assert cosines(client.embed(SENTENCES, element_type=element_type).vectors, floats).min() >= lowest
    for element_type in ("ubinary", "binary"):
        signs = client.embed(SENTENCES, element_type=element_type).vectors
        assert (signs == np.where(floats > 0, 1, -1)).mean() > 0.99


def test_translations_are_closest(live: Live, client: Client) -> None:
    """A translation is closer than an unrelated sentence in the same language."""
    best = client.nearest("Good morning", ["The invoice is overdue", "Buenos días"], k=1)
    assert best[0].text == "Buenos días"


def test_texts_of_several_calls_keep_their_order(live: Live, client: Client) -> None:
    """Texts that need several calls return in their order."""
    numbers = [f"The number {number}" for number in range(100)]
    rows = client.embed(numbers).vectors
    alone = client.embed([numbers[97], numbers[3]]).vectors
    assert cosines(rows[[97, 3]], alone).min() > 0.999


def test_a_wrong_key_is_one_line(live: Live) -> None:
    """A server whose key the provider rejects ends with status 1 and one line, which does not quote the key."""
    process = ServerProcess("--model", live.source, env={live.variable: WRONG_KEY})
    assert process.wait() == 1
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert "rejected the server's API key" in line
    assert WRONG_KEY not in "".join(process.lines)
