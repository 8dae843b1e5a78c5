"""AsyncClient: what Client does, awaited."""

import asyncio
import inspect
import threading
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

from tests.support.scripted_server import SPACE, Running, Script, vector

TEXTS = [f"text {number}" for number in range(12)]


@pytest.fixture
async def aclient(scripted: Running) -> AsyncIterator[AsyncClient]:
    """An asyncio client on the scripted server."""
    async with AsyncClient(scripted.address) as opened:
        yield opened


def public(kind: type) -> dict[str, Any]:
    """The public methods of a class, and its constructor."""
    members = inspect.getmembers(kind, inspect.isfunction)
    return {name: member for name, member in members if not name.startswith("_") or name == "__init__"}


def test_both_clients_have_the_same_methods() -> None:
    """Names, arguments, defaults and results are equal; the one's are awaited."""
    assert set(public(Client)) == set(public(AsyncClient))
    for name, method in public(Client).items():
        twin = public(AsyncClient)[name]
        if name == "embed_many":  # takes asynchronous texts as well, and is iterated
            assert _plain(method) == _plain(twin)
            continue
        assert inspect.signature(method) == inspect.signature(twin), name
        assert inspect.iscoroutinefunction(twin) == (name != "__init__"), name


def _plain(method: Any) -> list[tuple[str, Any, Any]]:
    """The names, defaults and kinds of a method's arguments."""
    return [(p.name, p.default, p.kind) for p in inspect.signature(method).parameters.values()]


async def test_every_method_answers_as_the_blocking_one(aclient: AsyncClient, client: Client, script: Script) -> None:
    """Split or not, both clients return the same."""
    script.limits["max_pairs"] = 20
    script.limits["max_texts"] = 5
    stored = Vectors(np.array([vector(text) for text in TEXTS]), SPACE)
    blocking = await asyncio.to_thread(
        lambda: (
            client.embed(TEXTS).vectors,
            client.similarity(TEXTS, stored).values,
            client.pairwise(TEXTS, stored).values,
            client.nearest("text 3", stored),
            client.nearest_many(TEXTS, TEXTS, k=2),
            client.health(),
            client.models(),
        )
    )
    awaited = (
        (await aclient.embed(TEXTS)).vectors,
        (await aclient.similarity(TEXTS, stored)).values,
        (await aclient.pairwise(TEXTS, stored)).values,
        await aclient.nearest("text 3", stored),
        await aclient.nearest_many(TEXTS, TEXTS, k=2),
        await aclient.health(),
        await aclient.models(),
    )
    for one, other in zip(blocking, awaited, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


async def test_many_calls_at_once(aclient: AsyncClient, script: Script) -> None:
    """Calls of many tasks each get their own answer."""
    script.limits["max_texts"] = 2
    found = await asyncio.gather(*(aclient.embed([text, "b", "c"]) for text in TEXTS))
    assert all(np.array_equal(one.vectors[0], vector(text)) for one, text in zip(found, TEXTS, strict=True))


async def test_cancelling_a_call_cancels_it_on_the_server(aclient: AsyncClient, script: Script) -> None:
    """asyncio.CancelledError passes through untouched, and the server learns that nobody waits."""
    entered, gone = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(context: Any) -> None:
        """Waits until the client has gone."""
        context.add_callback(gone.set)
        loop.call_soon_threadsafe(entered.set)
        gone.wait(30)

    script.on_embed = hold
    task = asyncio.create_task(aclient.embed(["a"]))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone.wait, 30)


async def test_closing_ends_calls_with_an_error_of_ours(aclient: AsyncClient, script: Script) -> None:
    """A task that nobody cancelled does not see asyncio.CancelledError when the client is closed under it."""
    entered, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(context: Any) -> None:
        """Waits until the test is over."""
        loop.call_soon_threadsafe(entered.set)
        release.wait(30)

    script.on_embed = hold
    task = asyncio.create_task(aclient.embed(["a"]))
    await entered.wait()
    await aclient.close()
    with pytest.raises(CallCancelledError):
        await task
    release.set()


async def test_a_closed_client_says_so(aclient: AsyncClient) -> None:
    """A call after close fails with a clear error; closing again does not."""
    await aclient.models()
    await aclient.close()
    await aclient.close()
    with pytest.raises(FailedPreconditionError) as raised:
        await aclient.embed(["a"])
    assert raised.value.reason == "CLIENT_CLOSED"


async def test_errors_are_those_of_the_blocking_client(aclient: AsyncClient, script: Script) -> None:
    """Violations and shifted rows come alike."""
    script.limits["max_texts"] = 2
    script.bad_texts = {"bad"}
    with pytest.raises(InvalidArgumentError) as raised:
        await aclient.embed(["a", "b", "c", "bad"])
    assert [violation.field for violation in raised.value.violations] == ["texts[3]"]


async def test_nobody_listens() -> None:
    """A refused connection is UnavailableError."""
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await client.models()


def test_a_client_may_be_made_before_the_loop(scripted: Running) -> None:
    """The constructor needs no running loop."""
    client = AsyncClient(scripted.address)

    async def use() -> int:
        """Calls once, in a loop that is newer than the client."""
        async with client:
            return len(await client.embed(["a"]))

    assert asyncio.run(use()) == 1


async def test_another_loop_is_refused(aclient: AsyncClient) -> None:
    """A client belongs to the loop of its first call, and says so in another one, instead of hanging there."""
    await aclient.health()

    def in_another_loop() -> None:
        with pytest.raises(FailedPreconditionError) as raised:
            asyncio.run(aclient.health())
        assert raised.value.reason == "OTHER_EVENT_LOOP"

    await asyncio.get_running_loop().run_in_executor(None, in_another_loop)
