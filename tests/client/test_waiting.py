"""Servers that are absent, starting, restarting or stopping: what waits, for how long, and what the error says."""

import asyncio
import contextlib
import copy
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from isogloss import (
    AsyncClient,
    CallCancelledError,
    Client,
    ClientOptions,
    DeadlineExceededError,
    FailedPreconditionError,
    IsoglossError,
    NotFoundError,
    ResourceExhaustedError,
    ServingStatus,
    UnavailableError,
)
from isogloss._base_client import RunningCall
from isogloss.testing import FakeServer, Received

from tests.support.fake import methods
from tests.support.lying_server import failing, lying_server

Call = Callable[..., Any]


def blocking(target: str, options: ClientOptions, use: Callable[[Any], Any]) -> Any:
    """Returns the result of the blocking client."""
    with Client(target, options=options) as client:
        return use(client)


def asynchronous(target: str, options: ClientOptions, use: Callable[[Any], Any]) -> Any:
    """Returns the result of the asyncio client."""

    async def run() -> Any:
        async with AsyncClient(target, options=options) as client:
            return await use(client)

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [blocking, asynchronous])


def failure(run: Call, target: str, use: Callable[[Any], Any], **options: Any) -> IsoglossError:
    """Returns the error of a call."""
    with pytest.raises(IsoglossError) as raised:
        run(target, ClientOptions(**options), use)
    return raised.value


def free_target() -> str:
    """Returns an address at which nothing listens."""
    with FakeServer() as server:
        return server.target


def test_a_client_that_was_connected_waits_for_a_restarted_server(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that begins while the server is down succeeds when it is up again, however many attempts there are."""
    sent: list[dict[str, Any]] = []
    original = Client._call_options

    def call_options(client: Client, running: RunningCall) -> dict[str, Any]:
        """Restarts the server once the call has begun."""
        options = original(client, running)
        if server._running is None:
            threads.submit(server.start)
        sent.append(options)
        return options

    monkeypatch.setattr(Client, "_call_options", call_options)
    with Client(server.target, options=ClientOptions(attempts=2)) as client, ThreadPoolExecutor(1) as threads:
        client.embed(["a"])
        server.stop()
        assert len(client.embed(["b"])) == 1
    assert [options["wait_for_ready"] for options in sent[:2]] == [False, True]


@both
@pytest.mark.parametrize("reason", ["NOT_READY", "DRAINING"])
def test_a_starting_or_stopping_server_is_asked_again_beyond_the_attempts(
    server: FakeServer, run: Call, reason: str
) -> None:
    """NOT_READY and DRAINING do not count as attempts."""
    server.fail_next("Embed", reason=reason, retry_after_s=0.001, times=9)
    assert len(run(server.target, ClientOptions(attempts=2), lambda client: client.embed(["a"]))) == 1
    assert methods(server) == ["Embed"] * 10


@both
def test_one_attempt_neither_repeats_nor_waits(server: FakeServer, run: Call) -> None:
    """With attempts=1 a starting server's error is raised at once."""
    server.fail_next("Embed", reason="NOT_READY")
    error = failure(run, server.target, lambda client: client.embed(["a"]), attempts=1)
    assert (error.reason, error.retryable, len(server.requests)) == ("NOT_READY", True, 1)


@both
def test_a_first_connection_that_is_refused_names_the_address(run: Call) -> None:
    """The error has the address, the problem, and a request id; a retry loop goes on."""
    target = free_target()
    error = failure(run, target, lambda client: client.embed(["a"]))
    assert isinstance(error, UnavailableError)
    assert error.message == f"cannot connect to {target}: connection refused, so nothing listens there"
    assert error.request_id
    assert error.retryable


def test_the_first_connection_is_tried_for_less_than_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of attempts, the delays before the error add up to less than two seconds."""
    now_s = 0.0
    monkeypatch.setattr("isogloss._base_client.time", SimpleNamespace(monotonic=lambda: now_s))
    call = RunningCall(ClientOptions(), 60.0, attempts=5, wait_for_ready=False)
    refused = UnavailableError("Connection refused")
    with contextlib.suppress(UnavailableError):
        while True:
            now_s += call.retry_delay_s(refused, reached=False)
    assert 0.1 < now_s < 2
    now_s, patient = 0.0, RunningCall(ClientOptions(), 60.0, attempts=5, wait_for_ready=True)
    for _ in range(4):
        now_s += patient.retry_delay_s(refused, reached=False)
    assert now_s > 2


@both
def test_wait_for_ready_waits_for_the_first_connection(run: Call) -> None:
    """With wait_for_ready=True a call waits for a server that starts later."""
    with FakeServer() as server:
        target = server.target
    with ThreadPoolExecutor(1) as threads:

        def use(client: Any) -> Any:
            """Starts the server after the call has begun."""
            threads.submit(server.start)
            return client.embed(["a"])

        assert len(run(target, ClientOptions(wait_for_ready=True), use)) == 1
    server.stop()


@both
def test_wait_until_ready_waits_for_the_connection_and_the_models(run: Call) -> None:
    """The wait ends when the server reports that it serves, and returns its report."""
    with FakeServer() as server:
        target = server.target
    server.status = ServingStatus.NOT_SERVING

    def serve(request: Received) -> None:
        """Is ready at the third question."""
        if len(server.requests) == 3:
            server.status = ServingStatus.DEGRADED

    server.on_request = serve
    with ThreadPoolExecutor(1) as threads:

        def use(client: Any) -> Any:
            """Starts the server after the wait has begun."""
            threads.submit(server.start)
            return client.wait_until_ready(30)

        assert run(target, ClientOptions(), use).status == ServingStatus.DEGRADED
    assert methods(server) == ["Health"] * 3
    server.stop()


@both
def test_wait_until_ready_names_the_last_problem(server: FakeServer, run: Call) -> None:
    """A server that is never ready ends the wait with DeadlineExceededError and its status."""
    server.status = ServingStatus.NOT_SERVING
    error = failure(run, server.target, lambda client: client.wait_until_ready(0.3))
    assert isinstance(error, DeadlineExceededError)
    assert "not_serving" in error.message.lower()


@both
def test_wait_until_ready_raises_final_errors_at_once(server: FakeServer, run: Call) -> None:
    """A model that the server does not serve is not waited for."""
    error = failure(run, server.target, lambda client: client.wait_until_ready(model="nothing"))
    assert isinstance(error, NotFoundError)


@both
def test_a_deadline_names_the_address_and_has_the_servers_request_id(server: FakeServer, run: Call) -> None:
    """A server that does not answer in time received the request under the id in the error."""
    with server.hold("Embed"):
        error = failure(run, server.target, lambda client: client.embed(["a"], timeout_s=0.2))
    assert isinstance(error, DeadlineExceededError)
    assert error.message.startswith(f"no response from {server.target} within 0.2 s")
    assert error.request_id == server.requests[0].metadata["x-request-id"]


def test_all_attempts_and_parts_of_a_call_have_one_request_id(client: Client, server: FakeServer) -> None:
    """Calls differ in their ids."""
    server.max_texts = 1
    server.fail_next("Embed", retry_after_s=0.001)
    client.embed(["a", "b"])
    client.health()
    ids = [request.metadata["x-request-id"] for request in server.requests]
    assert methods(server) == ["ListModels", "Embed", "Embed", "Embed", "Health"]
    assert len(set(ids[:4])) == 1
    assert ids[4] != ids[0]


@pytest.mark.parametrize("reason", ["OVERLOADED", "PROVIDER_RATE_LIMIT"])
def test_a_delay_beyond_the_deadline_stays_retryable(client: Client, server: FakeServer, reason: str) -> None:
    """The error is raised at once, without another attempt, and the caller may repeat the call after the delay."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", reason=reason, retry_after_s=40)
    with pytest.raises(ResourceExhaustedError) as raised:
        client.embed(["a"], timeout_s=20)
    assert (raised.value.retryable, raised.value.retry_after_s) == (True, 40.0)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("pushback", "retryable", "delay_s"), [("7000", True, 7.0), ("-1", False, None), ("x", False, None)]
)
def test_a_pushback_without_details_is_obeyed(pushback: str, retryable: bool, delay_s: float | None) -> None:
    """A number of milliseconds is the delay; anything else forbids a retry."""
    embed = failing(grpc.StatusCode.UNAVAILABLE, "busy", [("grpc-retry-pushback-ms", pushback)])
    with lying_server(Embed=embed) as target:
        error = failure(blocking, target, lambda client: client.embed(["a"], timeout_s=5))
    assert (error.retryable, error.retry_after_s) == (retryable, delay_s)


def test_a_call_that_is_cancelled_without_a_reason_is_repeated_and_explained() -> None:
    """A bare CANCELLED, with which gRPC's core ends calls that the server never saw, is transient."""
    attempts = []
    cancel = failing(grpc.StatusCode.CANCELLED, "CANCELLED", [])

    def embed(request: Any, context: Any) -> Any:
        """Counts the attempts."""
        attempts.append(request)
        return cancel(request, context)

    with lying_server(Embed=embed) as target:
        error = failure(blocking, target, lambda client: client.embed(["a"]), attempts=3)
    assert (error.code, error.retryable, len(attempts)) == ("CANCELLED", True, 3)
    assert "without a reason" in error.message


def test_closing_the_client_ends_the_wait_for_another_attempt(client: Client, server: FakeServer) -> None:
    """A call that waits to be repeated raises CallCancelledError when another thread closes the client."""
    server.fail_next("Embed", retry_after_s=30)
    server.on_request = lambda _: threading.Thread(target=lambda: (server.wait_until_idle(), client.close())).start()
    with pytest.raises(CallCancelledError) as raised:
        client.embed(["a"])
    assert raised.value.reason == "CLIENT_CLOSED"


async def test_closing_the_asyncio_client_ends_the_wait_for_another_attempt(server: FakeServer) -> None:
    """A call that waits to be repeated raises CallCancelledError when another task closes the client."""
    server.fail_next("Embed", retry_after_s=30)
    client, refused = AsyncClient(server.target), threading.Event()
    server.on_request = lambda _: refused.set()
    call = asyncio.create_task(client.embed(["a"]))
    await asyncio.to_thread(refused.wait, 30)
    await asyncio.to_thread(server.wait_until_idle)
    await client.close()
    with pytest.raises(CallCancelledError):
        await call


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_clients_cannot_be_pickled_or_copied(kind: Any, duplicate: Callable[[Any], Any]) -> None:
    """The TypeError says what to do; the API key is in no pickle."""
    with pytest.raises(TypeError, match="ClientOptions"):
        duplicate(kind("localhost:1", options=ClientOptions(api_key="secret")))


def test_embed_many_refuses_threads_that_gevent_or_eventlet_patched(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do; with gRPC's support for gevent there is none."""
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)  # type: ignore[arg-type]
    with pytest.raises(FailedPreconditionError, match="init_gevent") as raised:
        client.embed_many(["a"])
    assert raised.value.reason == "PATCHED_THREADS"
    monkeypatch.setitem(sys.modules, "grpc.experimental.gevent", SimpleNamespace())  # type: ignore[arg-type]
    assert len(list(client.embed_many(["a"]))) == 1
    eventlet = SimpleNamespace(is_monkey_patched=lambda name: name == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", eventlet)  # type: ignore[arg-type]
    with pytest.raises(FailedPreconditionError, match="eventlet"):
        client.embed_many(["a"])


@both
def test_the_retry_budget_of_embed_many_covers_the_request_for_the_limits(server: FakeServer, run: Call) -> None:
    """A server that does not answer ListModels ends embed_many after patience_s, not after timeout_s."""
    with server.hold("ListModels"):

        def use(client: Any) -> Any:
            """Returns the first chunk."""
            chunks = client.embed_many(["a"], patience_s=0.2)
            return next(chunks) if run is blocking else anext(chunks)

        error = failure(run, server.target, use)
    assert isinstance(error, DeadlineExceededError)
    assert "0.2 s" in error.message
