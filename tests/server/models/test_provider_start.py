"""The start of a provider's model: its key, the first call, and the errors that end the start."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.monitoring import State
from isogloss_server.engine.registry import ReadyModel, Registry, ServedModel
from isogloss_server.errors import DomainError, ProviderSetupError, SettingsError
from isogloss_server.factory import connect
from isogloss_server.models.interfaces import Urgency
from isogloss_server.settings.declarations import Settings
from isogloss_server.settings.sources import CERTIFICATE_VARIABLES, PROXY_VARIABLES, provider_key

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted, changed
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, SMALL

LOCAL = "openai:all-MiniLM-L6-v2"


@contextlib.asynccontextmanager
async def connected(
    fake: FakeProvider, source: str, clock: ManualClock, key: Path, **settings: Any
) -> AsyncIterator[tuple[ServedModel, ReadyModel]]:
    """Connects a model as the server does."""
    address = fake.address + ("" if source.startswith("cohere") else "/v1")
    model = Registry(["m"]).get("m")
    chosen = Settings(cohere_key_file=key, openai_key_file=key, **settings)
    with contextlib.closing(Executor(1)) as loader:
        ready = await clock.run_until_done(
            connect(model, f"{source}@{address}", chosen, loader, clock, loader.comparisons), limit_s=100
        )
    model.serve(ready)
    try:
        yield model, ready
    finally:
        embedder: Any = ready.embedder
        embedder.close()
        await embedder._closing


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return file


@pytest.mark.parametrize(("source", "columns"), [(LIGHT, 384), (SMALL, 1536), (LOCAL, 384)])
async def test_a_model_starts_after_one_small_call(key: Path, source: str, columns: int) -> None:
    """At the start one short text is embedded; its vector has the dimensions of a model that is not in the catalog."""
    with FakeProvider(key=KEY) as fake:
        async with connected(fake, source, ManualClock(), key) as (model, ready):
            assert (model.health.state, ready.embedder.card.dimensions[0]) == (State.SERVING, columns)
    assert [len(request.texts) for request in fake.requests] == [1]


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_known_model_whose_provider_is_down_starts_degraded(key: Path, source: str) -> None:
    """It starts DEGRADED with the reason, sends no texts, and recovers when a probe succeeds."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(status=503)
        async with connected(fake, source, clock, key) as (model, ready):
            assert (model.health.state, "503" in model.health.detail, len(fake.requests)) == (State.DEGRADED, True, 1)
            with pytest.raises(Exception, match="503") as raised:
                await ready.embedder.embed(["one"], InputType.QUERY, Truncation.ERROR, Urgency())
            assert (getattr(raised.value, "reason", ""), len(fake.requests)) == ("PROVIDER_UNAVAILABLE", 1)
            fake.always = None
            embedder: Any = ready.embedder
            await clock.run_until_done(embedder.breaker._probing, limit_s=100)
            assert (model.health.state, model.health.detail) == (State.SERVING, "")
            assert len((await embedder.embed(["one"], InputType.QUERY, Truncation.ERROR, Urgency())).rows) == 1


async def test_a_model_of_unknown_dimensions_is_retried(key: Path) -> None:
    """The first call to a server that is not up yet is retried until it succeeds."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.script.extend([Scripted(status=503)] * 4)
        async with connected(fake, LOCAL, clock, key) as (model, _):
            assert model.health.state is State.SERVING
    assert len(fake.requests) == 5


async def test_retries_at_the_start_are_limited(key: Path) -> None:
    """After the provider's time limit the start fails with the reason."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(status=503)
        with pytest.raises(ProviderSetupError, match="503"):
            async with connected(fake, LOCAL, clock, key, provider_timeout_s=10):
                pass
    assert clock.now_s <= 1010
    assert len(fake.requests) > 2


@pytest.mark.parametrize(
    ("scripted", "word"),
    [
        (Scripted(status=401), "key"),
        (Scripted(status=403), "key"),
        (Scripted(status=404), "model"),
        (changed(lambda rows: rows[:, :-1]), "383"),
        (Scripted(body=b"<html>"), "is invalid: HTTP 200, unreadable body"),
        (Scripted(status=400), "rejected the request"),
    ],
)
async def test_a_permanent_failure_ends_the_start(key: Path, scripted: Scripted, word: str) -> None:
    """A rejected key, an unknown model and vectors with other dimensions end the start at the first call."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = scripted
        with pytest.raises(ProviderSetupError, match=word):
            async with connected(fake, LIGHT, clock, key):
                pass
    assert (len(fake.requests), clock.requested_sleeps_s) == (2 if scripted.status == 400 else 1, [])  # base64, floats


@pytest.mark.parametrize("bad", [f"{KEY}\nsecond line", f"{KEY}\x07", f"{KEY} ü", " \n"])
def test_an_invalid_key_is_not_quoted(tmp_path: Path, bad: str) -> None:
    """A file with an invalid key is rejected by its name; the error does not quote its content."""
    file = tmp_path / "key"
    file.write_text(bad, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        provider_key("cohere", Settings(cohere_key_file=file))
    assert str(file) in str(raised.value)
    assert KEY[:8] not in str(raised.value)


def test_the_key_file_overrides_the_variable(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key in the file is used, without its line end; else that of the variable; neither is ever shown."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-variable")
    of_file = provider_key("openai", Settings(openai_key_file=key))
    of_variable = provider_key("openai", Settings())
    monkeypatch.delenv("OPENAI_API_KEY")
    assert of_file is not None
    assert of_variable is not None
    assert (of_file.get_secret_value(), of_variable.get_secret_value()) == (KEY, "of-the-variable")
    assert provider_key("openai", Settings()) is None
    assert KEY not in repr(of_file) + str(of_file)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_the_providers_own_words_are_in_the_startup_error(key: Path, status: int) -> None:
    """The line that ends the start has what the provider says, which only it knows."""
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(status=status, body=b'{"error": {"message": "trial keys\\nexpired in May"}}')
        with pytest.raises(ProviderSetupError, match="trial keys expired in May"):
            async with connected(fake, LOCAL, ManualClock(), key):
                pass


async def test_health_has_the_words_of_probes_only(key: Path) -> None:
    """Health is read by everybody, so it quotes no answer to a caller's text, but that to a probe."""
    clock = ManualClock()
    said = Scripted(status=401, body=b'{"message": "the key expired"}')
    with FakeProvider(key=KEY) as fake:
        async with connected(fake, LIGHT, clock, key) as (model, ready):
            fake.always = said
            with pytest.raises(DomainError, match="the key expired"):
                await ready.embedder.embed(["one"], InputType.QUERY, Truncation.ERROR, Urgency())
            assert "HTTP 401" in model.health.detail
            assert "expired" not in model.health.detail


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:1", "socksio"),
        ("https_proxy", "SOCKS5h://user:secret@127.0.0.1:1", "socksio"),
        ("HTTP_PROXY", "ftp://user:secret@127.0.0.1", "invalid URL of a proxy"),
        ("HTTPS_PROXY", "http://user:secret@127.0.0.1:port", "invalid URL of a proxy"),
        ("SSL_CERT_FILE", "/nowhere/secret.pem", "No such file"),
        ("SSL_CERT_FILE", "/", "Is a directory"),
        ("SSL_CERT_FILE", __file__, "not a PEM file"),
    ],
)
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_variable_that_the_http_library_rejects_ends_the_start(
    key: Path, monkeypatch: pytest.MonkeyPatch, source: str, variable: str, value: str, words: str
) -> None:
    """The error is one line with the name of the variable, and without its value, which may hold a password."""
    for name in (*PROXY_VARIABLES, *map(str.upper, PROXY_VARIABLES), *CERTIFICATE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with FakeProvider(key=KEY) as fake, pytest.raises(ProviderSetupError) as raised:
        async with connected(fake, source, ManualClock(), key):
            pass
    assert variable in str(raised.value)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
