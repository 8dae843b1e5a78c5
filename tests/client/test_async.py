"""AsyncClient has the methods and results of Client, as coroutines."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from isogloss import (
    AsyncClient,
    CallCancelledError,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
    Vectors,
)
from isogloss.testing import FakeServer

from tests.support.fake import SPACE, vector

TEXTS = [f"text {number}" for number in range(12)]


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[AsyncClient]:
    """Provides an asyncio client connected to the scripted server."""
    async with AsyncClient(server.target) as opened:
        yield opened


def public(kind: type) -> dict[str, Any]:
    """Returns the public methods of a class, and its constructor."""
    members = inspect.getmembers(kind, inspect.isfunction)
    return {name: member for name, member in members if not name.startswith("_") or name == "__init__"}


def test_both_clients_have_the_same_methods() -> None:
    """Names, arguments, defaults and results are equal; those of AsyncClient are coroutines."""
    assert set(public(Client)) == set(public(AsyncClient))
    for name, method in public(Client).items():
        twin = public(AsyncClient)[name]
        if name == "embed_many":  # takes asynchronous texts as well, and is iterated
            assert _plain(method) == _plain(twin)
            continue
        assert inspect.signature(method) == inspect.signature(twin), name
        assert inspect.iscoroutinefunction(twin) == (name != "__init__"), name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_argument_is_documented(kind: type) -> None:
    """The docstring of each public method has an entry for each of its arguments, and no other entries."""
    methods = {name: method for name, method in public(kind).items() if name != "__init__"}
    for name, method in methods.items():
        arguments = [argument for argument in inspect.signature(method).parameters if argument != "self"]
        section = (inspect.getdoc(method) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^    (\w+): ", section, re.MULTILINE) == arguments, name


def test_both_clients_have_the_same_docstrings() -> None:
    """A method has the same docstring in both clients, except embed_many, whose sources differ."""
    for name in set(public(Client)) - {"__init__", "embed_many"}:
        assert inspect.getdoc(getattr(Client, name)) == inspect.getdoc(getattr(AsyncClient, name)), name


def _plain(method: Any) -> list[tuple[str, Any, Any]]:
    """Returns the names, defaults and kinds of a method's arguments."""
    return [(p.name, p.default, p.kind) for p in inspect.signature(method).parameters.values()]


async def test_both_clients_return_equal_results(aclient: AsyncClient, client: Client, server: FakeServer) -> None:
    """Each method returns the same from both clients, split or not."""
    server.max_pairs = 20
    server.max_texts = 5
    stored = Vectors(np.array([vector(text) for text in TEXTS]), SPACE)
    blocking = await asyncio.to_thread(
        lambda: (
            client.embed(TEXTS).vectors,
            client.similarity(TEXTS, stored).values,
            client.pairwise(TEXTS, stored).values,
            client.nearest("text 3", stored),
            client.nearest_many(TEXTS, TEXTS, k=2),
            client.health().status,
            client.models(),
        )
    )
    awaited = (
        (await aclient.embed(TEXTS)).vectors,
        (await aclient.similarity(TEXTS, stored)).values,
        (await aclient.pairwise(TEXTS, stored)).values,
        await aclient.nearest("text 3", stored),
        await aclient.nearest_many(TEXTS, TEXTS, k=2),
        (await aclient.health()).status,
        await aclient.models(),
    )
    for one, other in zip(blocking, awaited, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


async def test_concurrent_calls_get_their_own_responses(aclient: AsyncClient, server: FakeServer) -> None:
    """Calls of several tasks at once each return their own vectors."""
    server.max_texts = 2
    found = await asyncio.gather(*(aclient.embed([text, "b", "c"]) for text in TEXTS))
    assert all(np.array_equal(one.vectors[0], vector(text)) for one, text in zip(found, TEXTS, strict=True))


async def test_cancelling_a_call_cancels_the_request_on_the_server(aclient: AsyncClient, server: FakeServer) -> None:
    """asyncio.CancelledError is raised unchanged, and the server observes the cancellation."""
    with server.hold("Embed") as gate:
        task = asyncio.create_task(aclient.embed(["a"]))
        await asyncio.to_thread(gate.wait_until_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_until_idle)


async def test_closing_the_client_raises_call_cancelled_error_in_running_calls(
    aclient: AsyncClient, server: FakeServer
) -> None:
    """A task that was not cancelled itself does not receive asyncio.CancelledError when the client is closed."""
    with server.hold("Embed") as gate:
        task = asyncio.create_task(aclient.embed(["a"]))
        await asyncio.to_thread(gate.wait_until_held)
        await aclient.close()
        with pytest.raises(CallCancelledError):
            await task


async def test_calls_on_a_closed_client_raise_failed_precondition(aclient: AsyncClient) -> None:
    """A call after close raises FailedPreconditionError; closing again has no effect."""
    await aclient.models()
    await aclient.close()
    await aclient.close()
    with pytest.raises(FailedPreconditionError) as raised:
        await aclient.embed(["a"])
    assert raised.value.reason == "CLIENT_CLOSED"


async def test_errors_of_split_calls_have_the_callers_rows(aclient: AsyncClient, server: FakeServer) -> None:
    """Violations of a split call have the rows of the whole call, as from the blocking client."""
    server.max_texts = 2
    with pytest.raises(InvalidArgumentError) as raised:
        await aclient.embed(["a", "b", "c", " "])
    assert [violation.field for violation in raised.value.violations] == ["texts[3]"]


async def test_a_refused_connection_raises_unavailable_error() -> None:
    """A target without a server raises UnavailableError."""
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await client.models()


def test_a_client_can_be_created_before_the_loop(server: FakeServer) -> None:
    """The constructor needs no running event loop."""
    client = AsyncClient(server.target)

    async def use() -> int:
        """Makes one call in a loop created after the client."""
        async with client:
            return len(await client.embed(["a"]))

    assert asyncio.run(use()) == 1


async def test_a_second_event_loop_is_refused(aclient: AsyncClient) -> None:
    """A client belongs to the loop of its first call; a call from another loop raises instead of blocking."""
    await aclient.health()

    def in_another_loop() -> None:
        with pytest.raises(FailedPreconditionError) as raised:
            asyncio.run(aclient.health())
        assert raised.value.reason == "OTHER_EVENT_LOOP"

    await asyncio.get_running_loop().run_in_executor(None, in_another_loop)
