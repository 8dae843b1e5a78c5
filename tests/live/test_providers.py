"""The real providers behind our contract: `CO_API_KEY=... OPENAI_API_KEY=... pytest -m live`."""

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
    """Returns float64 [n]: row by row, whatever the rows' lengths."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("input_type", InputType)
def test_every_input_type_is_taken(live: Live, client: Client, input_type: InputType) -> None:
    """Each input type gives finite vectors of unit length and the model's width, and a bill."""
    (model,) = client.models()
    answer = client.embed(SENTENCES, input_type=input_type)
    assert answer.vectors.shape == (len(SENTENCES), model.dimensions[0])
    assert np.allclose(np.linalg.norm(answer.vectors, axis=1), 1, atol=1e-5)
    assert answer.total_tokens > 0
    assert answer.token_counts == ()


def test_roles_differ_where_the_provider_has_them(live: Live, client: Client) -> None:
    """A query's vector is not the document's at Cohere, and is at OpenAI, which knows no input types."""
    queries, documents = (client.embed(SENTENCES, input_type=kind).vectors for kind in ("query", "document"))
    least = cosines(queries, documents).min()
    assert least < 0.999 if live.source.startswith("cohere") else least > 0.999


@pytest.mark.parametrize("truncation", ["end", "start", "error"])
def test_truncation_is_the_providers(live: Live, client: Client, truncation: str) -> None:
    """A text that is too long is cut or refused as asked; what the provider does not offer is refused by name."""
    if truncation not in live.truncations:
        with pytest.raises(InvalidArgumentError) as raised:
            client.embed(SENTENCES, truncation=truncation)
        assert raised.value.reason == "UNSUPPORTED_TRUNCATION"
        return
    if not live.long_words:
        pytest.skip("so long a text costs too much")
    begins, ends = "weather " * live.long_words + "invoice", "invoice " + "weather " * live.long_words
    if truncation == "error":
        with pytest.raises(InvalidArgumentError) as raised:
            client.embed([begins], truncation=truncation)
        assert raised.value.reason == "PROVIDER_REFUSED"
        return
    rows = client.embed([begins, ends, "weather " * live.long_words], truncation=truncation).vectors
    weather_alone = cosines(rows[:2], rows[[2, 2]])  # where the odd word was cut off, it is nothing but weather
    assert weather_alone.argmax() == (0 if truncation == "end" else 1)


def test_shortened_vectors_are_the_providers_own(live: Live, client: Client) -> None:
    """Our leading columns at unit length are what the provider itself gives when asked for so many dimensions."""
    if not live.shorter:
        pytest.skip("the model has one width")
    for dimensions in live.shorter:
        ours = client.embed(SENTENCES, input_type="document", dimensions=dimensions).vectors
        assert cosines(ours, live.directly(live.name, SENTENCES, dimensions)).min() >= 0.9999


def test_element_types_are_ours(live: Live, client: Client) -> None:
    """Each element type has the values of the floats by our definition; two calls' floats may differ by a trifle."""
    floats = client.embed(SENTENCES).vectors
    for element_type, least in (("float16", 0.9999), ("int8", 0.999), ("uint8", 0.999)):
        assert cosines(client.embed(SENTENCES, element_type=element_type).vectors, floats).min() >= least
    for element_type in ("ubinary", "binary"):
        signs = client.embed(SENTENCES, element_type=element_type).vectors
        assert (signs == np.where(floats > 0, 1, -1)).mean() > 0.99


def test_meaning_is_across_languages(live: Live, client: Client) -> None:
    """What means the same is nearer than what does not, whatever the language."""
    best = client.nearest("Good morning", ["The invoice is overdue", "Buenos días"], k=1)
    assert best[0].text == "Buenos días"


def test_more_than_one_calls_texts_keep_their_order(live: Live, client: Client) -> None:
    """Texts that take several calls come back in their order."""
    numbers = [f"The number {number}" for number in range(100)]
    rows = client.embed(numbers).vectors
    alone = client.embed([numbers[97], numbers[3]]).vectors
    assert cosines(rows[[97, 3]], alone).min() > 0.999


def test_a_wrong_key_is_one_line(live: Live) -> None:
    """A server whose key the provider refuses ends with status 1 and one line, which does not quote the key."""
    process = ServerProcess("--model", live.source, env={live.variable: WRONG_KEY})
    assert process.wait() == 1
    (line,) = [line for line in process.lines if not line.startswith("{")]
    assert "does not accept the server's key" in line
    assert WRONG_KEY not in "".join(process.lines)
