"""Retries, deadlines, TLS, API keys, threads and forks."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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

from tests.support.scripted_server import Fault, Running, Script, running, vector

UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE)
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


def test_large_requests_are_retried(client: Client, script: Script) -> None:
    """A request of 1 MB is repeated if the server is unavailable at first."""
    script.faults = [UNAVAILABLE, UNAVAILABLE]
    text = "x" * 1_000_000
    assert np.array_equal(client.embed([text]).vectors, [vector(text)])
    assert script.methods() == ["Embed"] * 3


def test_overload_is_retried_after_the_requested_delay(client: Client, script: Script) -> None:
    """RESOURCE_EXHAUSTED is retried after the delay in the server's trailer."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "1")])]
    assert len(client.embed(["a"])) == 1
    assert script.methods() == ["Embed"] * 2


def test_a_requested_delay_is_never_shortened(client: Client, script: Script) -> None:
    """A requested delay beyond the deadline ends the call at the deadline, without an early retry."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "60000")])]
    with pytest.raises((DeadlineExceededError, ResourceExhaustedError)):
        client.embed(["a"], timeout_s=0.2)
    assert script.methods() == ["Embed"]


def test_a_pushback_of_minus_one_disables_retries(client: Client, script: Script) -> None:
    """If the server sends the pushback -1, the call fails without a retry."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "-1")])]
    with pytest.raises(ResourceExhaustedError):
        client.embed(["a"])
    assert script.methods() == ["Embed"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_are_bounded(scripted: Running, attempts: int) -> None:
    """The number of attempts, the first included, is at most that of the options."""
    scripted.script.faults = [UNAVAILABLE] * 5
    options = ClientOptions(attempts=attempts)
    with Client(scripted.address, options=options) as client, pytest.raises(UnavailableError):
        client.embed(["a"])
    assert len(scripted.script.calls) == attempts


def test_final_errors_are_not_retried(client: Client, script: Script) -> None:
    """Only transient errors are retried."""
    script.faults = [Fault(grpc.StatusCode.INTERNAL)]
    with pytest.raises(Exception, match="scripted"):
        client.embed(["a"])
    assert script.methods() == ["Embed"]


def test_every_call_has_a_deadline(client: Client, script: Script) -> None:
    """Every method sends a deadline, so that no call blocks forever."""
    client.embed(["a", "b"])
    client.similarity(["a"], ["b"])
    client.nearest("a", ["b"])
    client.health()
    client.models()
    assert set(script.methods()) == {"Embed", "Similarity", "Health", "ListModels"}
    assert all(50 < call.time_remaining < 70 for call in script.calls)  # 60, which gRPC rounds


def test_parts_share_one_deadline(client: Client, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a split call gets the time that remains of the whole call; after the deadline none is sent."""
    now = 0.0

    def pass_time(context: Any) -> None:
        """Advances the clock by 10 seconds per part."""
        nonlocal now
        now += 10

    monkeypatch.setattr("isogloss._base_client.time", SimpleNamespace(monotonic=lambda: now))
    script.limits["max_texts"] = 1
    script.on_embed = pass_time
    with pytest.raises(DeadlineExceededError):
        client.embed(["a", "b", "c", "d"], timeout_s=30)
    assert [round(call.time_remaining) for call in script.calls if call.method == "Embed"] == [30, 20, 10]


def test_a_late_response_raises_deadline_exceeded_error(client: Client, script: Script) -> None:
    """A server that does not answer in time causes DeadlineExceededError."""
    release = threading.Event()
    script.on_embed = lambda context: bool(release.wait(30)) and None
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.1)
    release.set()


def test_tls_trusts_a_private_authority_only_if_configured() -> None:
    """A server with a certificate of a private authority is reachable only with that authority in the options."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    with running(credentials=credentials) as server:
        trusting = ClientOptions(tls=True, root_certificates=authority.cert_pem.bytes(), api_key="secret-key")
        with Client(server.address, options=trusting) as client:
            assert len(client.embed(["a"])) == 1
        with (
            Client(server.address, options=ClientOptions(tls=True, attempts=1)) as client,
            pytest.raises(UnavailableError),
        ):
            client.embed(["a"])
        assert [call.metadata["authorization"] for call in server.script.calls] == ["Bearer secret-key"]


def test_the_api_key_is_sent_but_in_no_repr(scripted: Running) -> None:
    """Every call has the API key; no repr contains it."""
    options = ClientOptions(api_key="secret-key")
    with Client(scripted.address, options=options) as client:
        client.embed(["a", "b"])
        shown = repr((options, client, client._options))
    assert [call.metadata["authorization"] for call in scripted.script.calls] == ["Bearer secret-key"] * 2
    assert "secret" not in shown


def test_the_user_agent_names_client_and_version(client: Client, script: Script) -> None:
    """The user-agent has the name and version of the client."""
    client.health()
    assert script.calls[0].metadata["user-agent"].startswith(f"isogloss-python/{__version__} ")
    assert "authorization" not in script.calls[0].metadata


def test_threads_can_share_a_client(client: Client, script: Script) -> None:
    """Concurrent calls of several threads each return their own vectors."""
    script.limits["max_texts"] = 3

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


def test_closing_the_client_ends_running_calls(client: Client, script: Script) -> None:
    """Closing a client ends its calls in other threads with CallCancelledError."""
    entered, release = threading.Event(), threading.Event()

    def wait(context: Any) -> None:
        """Holds the call until the end of the test."""
        entered.set()
        release.wait(30)

    script.on_embed = wait
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.embed, ["a"])
        entered.wait(30)
        client.close()
        with pytest.raises(CallCancelledError):
            call.result(30)
        release.set()


@pytest.mark.parametrize("before", ["", "isogloss.Client('{address}').models()"])
def test_a_client_created_after_a_fork_works(scripted: Running, before: str) -> None:
    """A child process can use a client of its own after the parent has imported the package or made calls."""
    in_child = "code = 0 if len(isogloss.Client('{address}').embed(['a'], timeout_s=30)) == 1 else 2"
    program = FORK.format(before=before, in_child=in_child).replace("{address}", scripted.address)
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"} if before else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
    assert done.returncode == 0


def test_a_client_created_before_a_fork_raises_in_the_child(scripted: Running) -> None:
    """A child that uses its parent's client gets an error instead of waiting for the deadline."""
    before = "client = isogloss.Client('{address}')"
    in_child = "code = 0 if 'fork' in str(_failure(client)) else 2"
    helper = (
        "\ndef _failure(client):\n    try: client.models()\n    except isogloss.IsoglossError as error: return error\n"
    )
    program = FORK.format(before=before + helper, in_child=in_child).replace("{address}", scripted.address)
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0
