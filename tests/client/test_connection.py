"""Retries, deadlines, TLS, API keys, threads and forks."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from isogloss import (
    CallCancelledError,
    Client,
    ClientOptions,
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
    __version__,
)
from isogloss.testing import FakeServer, Received

from tests.support.fake import fake_server, methods, received, vector
from tests.support.lying_server import failing, lying_server

FORK = """
import os, sys
import isogloss
{before}
child = os.fork()
if child == 0:
    code = 1
    try:
        {in_child}
    finally:
        os._exit(code)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_large_requests_are_retried(client: Client, server: FakeServer) -> None:
    """A request of 1 MB is repeated if the server is unavailable at first."""
    server.fail_next("Embed", times=2)
    text = "x" * 1_000_000
    assert np.array_equal(client.embed([text]).vectors, [vector(text)])
    assert methods(server) == ["Embed"] * 3


def test_overload_is_retried_after_the_requested_delay(client: Client, server: FakeServer) -> None:
    """RESOURCE_EXHAUSTED is retried after the delay in the server's trailer."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", retry_after_s=0.001)
    assert len(client.embed(["a"])) == 1
    assert methods(server) == ["Embed"] * 2


def test_a_requested_delay_is_never_shortened() -> None:
    """A requested delay beyond the deadline ends the call at the deadline, without an early retry."""
    attempts = []
    refuse = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", [("grpc-retry-pushback-ms", "60000")])

    def embed(request: Any, context: Any) -> Any:
        """Requests a delay that a server which knows the deadline does not request."""
        attempts.append(request)
        return refuse(request, context)

    with (
        lying_server(Embed=embed) as target,
        Client(target) as client,
        pytest.raises((DeadlineExceededError, ResourceExhaustedError)),
    ):
        client.embed(["a"], timeout_s=0.2)
    assert len(attempts) == 1


def test_a_pushback_of_minus_one_disables_retries(client: Client, server: FakeServer) -> None:
    """If the server sends the pushback -1, the call fails without a retry."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", retryable=False)
    with pytest.raises(ResourceExhaustedError):
        client.embed(["a"])
    assert methods(server) == ["Embed"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_are_bounded(server: FakeServer, attempts: int) -> None:
    """The number of attempts, the first included, is at most that of the options."""
    server.fail_next("Embed", times=5)
    options = ClientOptions(attempts=attempts)
    with Client(server.target, options=options) as client, pytest.raises(UnavailableError):
        client.embed(["a"])
    assert len(server.requests) == attempts


def test_final_errors_are_not_retried(client: Client, server: FakeServer) -> None:
    """Only transient errors are retried."""
    server.fail_next("Embed", code="INTERNAL", reason="")
    with pytest.raises(Exception, match="scripted"):
        client.embed(["a"])
    assert methods(server) == ["Embed"]


def test_every_call_has_a_deadline(client: Client, server: FakeServer) -> None:
    """Every method sends a deadline, so that no call blocks forever."""
    client.embed(["a", "b"])
    client.similarity(["a"], ["b"])
    client.nearest("a", ["b"])
    client.health()
    client.models()
    assert set(methods(server)) == {"Embed", "Similarity", "Health", "ListModels"}
    assert all(50 < (call.timeout_s or 0) < 70 for call in server.requests)  # 60, which gRPC rounds


def test_parts_share_one_deadline(client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a split call gets the time that remains of the whole call; after the deadline none is sent."""
    now = 0.0

    def pass_time(request: Received) -> None:
        """Advances the clock by 10 seconds per part."""
        nonlocal now
        now += 10 if request.method == "Embed" else 0

    monkeypatch.setattr("isogloss._base_client.time", SimpleNamespace(monotonic=lambda: now))
    server.max_texts = 1
    server.on_request = pass_time
    with pytest.raises(DeadlineExceededError):
        client.embed(["a", "b", "c", "d"], timeout_s=30)
    assert [round(call.timeout_s or 0) for call in received(server, "Embed")] == [30, 20, 10]


def test_a_late_response_raises_deadline_exceeded_error(client: Client, server: FakeServer) -> None:
    """A server that does not answer in time causes DeadlineExceededError."""
    with server.hold("Embed"), pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.1)


def test_tls_trusts_a_private_authority_only_if_configured() -> None:
    """A server with a certificate of a private authority is reachable only with that authority in the options."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    with fake_server(credentials=credentials) as server:
        trusting = ClientOptions(tls=True, root_certificates=authority.cert_pem.bytes(), api_key="secret-key")
        with Client(server.target, options=trusting) as client:
            assert len(client.embed(["a"])) == 1
        with (
            Client(server.target, options=ClientOptions(tls=True, attempts=1)) as client,
            pytest.raises(UnavailableError),
        ):
            client.embed(["a"])
        assert [call.metadata["authorization"] for call in server.requests] == ["Bearer secret-key"]


def mutual(authority: trustme.CA, name: str) -> grpc.ServerCredentials:
    """Returns credentials of a server that requires certificates of an authority."""
    certificate = authority.issue_cert(name)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    pairs, roots = [(certificate.private_key_pem.bytes(), chain)], authority.cert_pem.bytes()
    return grpc.ssl_server_credentials(pairs, roots, require_client_auth=True)


def test_a_client_certificate_and_a_server_name_are_used() -> None:
    """The client has a certificate, and checks the server's against another name than its host."""
    authority = trustme.CA()
    own = authority.issue_cert("client")
    options = ClientOptions(
        tls=True,
        root_certificates=authority.cert_pem.bytes(),
        client_certificate=own.cert_chain_pems[0].bytes(),
        client_key=own.private_key_pem.bytes(),
        server_name="embeddings.example",
    )
    with fake_server(credentials=mutual(authority, "embeddings.example")) as server:
        with Client(server.target, options=options) as client:
            assert len(client.embed(["a"])) == 1
        without = replace(options, client_certificate=None, client_key=None, attempts=1)
        with Client(server.target, options=without) as client, pytest.raises(UnavailableError) as raised:
            client.embed(["a"])
        assert "require a client certificate (ClientOptions.client_certificate)" in raised.value.message


def test_the_api_key_is_sent_but_in_no_repr(server: FakeServer) -> None:
    """Every call has the API key; no repr contains it."""
    options = ClientOptions(api_key="secret-key")
    with Client(server.target, options=options) as client:
        client.embed(["a", "b"])
        shown = repr((options, client, client._options))
    assert [call.metadata["authorization"] for call in server.requests] == ["Bearer secret-key"] * 2
    assert "secret" not in shown


def test_the_user_agent_names_client_and_version(client: Client, server: FakeServer) -> None:
    """The user-agent has the name and version of the client."""
    client.health()
    assert server.requests[0].metadata["user-agent"].startswith(f"isogloss-python/{__version__} ")
    assert "authorization" not in server.requests[0].metadata


def test_threads_can_share_a_client(client: Client, server: FakeServer) -> None:
    """Concurrent calls of several threads each return their own vectors."""
    server.max_texts = 3

    def work(thread: int) -> bool:
        """Embeds this thread's texts and compares the vectors with the expected ones."""
        texts = [f"{thread} {number}" for number in range(10)]
        return np.array_equal(client.embed(texts).vectors, [vector(text) for text in texts])

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(64)))


def test_calls_on_a_closed_client_raise_failed_precondition(client: Client) -> None:
    """A call after close raises FailedPreconditionError; closing again has no effect."""
    client.close()
    client.close()
    with pytest.raises(FailedPreconditionError, match="closed") as raised:
        client.embed(["a"])
    assert raised.value.reason == "CLIENT_CLOSED"
    assert repr(client).endswith("closed)")


def test_closing_the_client_ends_running_calls(client: Client, server: FakeServer) -> None:
    """Closing a client ends its calls in other threads with CallCancelledError."""
    with ThreadPoolExecutor(1) as threads, server.hold("Embed") as gate:
        call = threads.submit(client.embed, ["a"])
        gate.wait_until_held()
        client.close()
        with pytest.raises(CallCancelledError):
            call.result(30)


@pytest.mark.parametrize("before", ["", "isogloss.Client('{address}').models()"])
def test_a_client_created_after_a_fork_works(server: FakeServer, before: str) -> None:
    """A child process can use a client of its own after the parent has imported the package or made calls."""
    in_child = "code = 0 if len(isogloss.Client('{address}').embed(['a'], timeout_s=30)) == 1 else 2"
    program = FORK.format(before=before, in_child=in_child).replace("{address}", server.target)
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"} if before else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
    assert done.returncode == 0


def test_a_client_created_before_a_fork_raises_in_the_child(server: FakeServer) -> None:
    """A child that uses its parent's client gets an error instead of waiting for the deadline."""
    before = "client = isogloss.Client('{address}')"
    in_child = "code = 0 if 'fork' in str(_failure(client)) else 2"
    helper = (
        "\ndef _failure(client):\n    try: client.models()\n    except isogloss.IsoglossError as error: return error\n"
    )
    program = FORK.format(before=before + helper, in_child=in_child).replace("{address}", server.target)
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0
