"""Retries, deadlines, TLS, keys, threads, forks: what a client does around its calls."""

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


def test_a_large_request_is_tried_again(client: Client, script: Script) -> None:
    """A request of 1 MB survives a server that is unavailable for a moment."""
    script.faults = [UNAVAILABLE, UNAVAILABLE]
    text = "x" * 1_000_000
    assert np.array_equal(client.embed([text]).vectors, [vector(text)])
    assert script.methods() == ["Embed"] * 3


def test_overload_is_waited_out_as_the_server_asks(client: Client, script: Script) -> None:
    """RESOURCE_EXHAUSTED is tried again after the delay of the server's trailer."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "1")])]
    assert len(client.embed(["a"])) == 1
    assert script.methods() == ["Embed"] * 2


def test_the_servers_delay_is_kept(client: Client, script: Script) -> None:
    """A delay that goes beyond the deadline ends the call at the deadline, not with an early retry."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "60000")])]
    with pytest.raises((DeadlineExceededError, ResourceExhaustedError)):
        client.embed(["a"], timeout_s=0.2)
    assert script.methods() == ["Embed"]


def test_a_pointless_retry_is_not_made(client: Client, script: Script) -> None:
    """Where the server says -1, the call fails at once."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "-1")])]
    with pytest.raises(ResourceExhaustedError):
        client.embed(["a"])
    assert script.methods() == ["Embed"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_are_bounded(scripted: Running, attempts: int) -> None:
    """No more attempts are made than the options allow, the first included."""
    scripted.script.faults = [UNAVAILABLE] * 5
    options = ClientOptions(attempts=attempts)
    with Client(scripted.address, options=options) as client, pytest.raises(UnavailableError):
        client.embed(["a"])
    assert len(scripted.script.calls) == attempts


def test_a_wrong_request_is_not_tried_again(client: Client, script: Script) -> None:
    """Only what a moment may heal is tried again."""
    script.faults = [Fault(grpc.StatusCode.INTERNAL)]
    with pytest.raises(Exception, match="scripted"):
        client.embed(["a"])
    assert script.methods() == ["Embed"]


def test_every_call_has_a_deadline(client: Client, script: Script) -> None:
    """No call can hang for ever, whichever it is."""
    client.embed(["a", "b"])
    client.similarity(["a"], ["b"])
    client.nearest("a", ["b"])
    client.health()
    client.models()
    assert set(script.methods()) == {"Embed", "Similarity", "Health", "ListModels"}
    assert all(50 < call.time_remaining < 70 for call in script.calls)  # 60, as the wire rounds it


def test_parts_share_one_deadline(client: Client, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a split call gets the time that is left of the whole call's; none is sent without."""
    now = 0.0

    def pass_time(context: Any) -> None:
        """Lets each part take 10 seconds of the clock."""
        nonlocal now
        now += 10

    monkeypatch.setattr("isogloss._base_client.time", SimpleNamespace(monotonic=lambda: now))
    script.limits["max_texts"] = 1
    script.on_embed = pass_time
    with pytest.raises(DeadlineExceededError):
        client.embed(["a", "b", "c", "d"], timeout_s=30)
    assert [round(call.time_remaining) for call in script.calls if call.method == "Embed"] == [30, 20, 10]


def test_a_late_answer_is_a_deadline_exceeded(client: Client, script: Script) -> None:
    """A server that does not answer in time is given up."""
    release = threading.Event()
    script.on_embed = lambda context: bool(release.wait(30)) and None
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.1)
    release.set()


def test_tls_with_an_own_authority() -> None:
    """A server with a certificate of a private authority is reached when that is trusted, and not otherwise."""
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


def test_the_key_is_sent_and_never_shown(scripted: Running) -> None:
    """The key goes with every call, and appears in no repr."""
    options = ClientOptions(api_key="secret-key")
    with Client(scripted.address, options=options) as client:
        client.embed(["a", "b"])
        shown = repr((options, client, client._options))
    assert [call.metadata["authorization"] for call in scripted.script.calls] == ["Bearer secret-key"] * 2
    assert "secret" not in shown


def test_the_client_names_itself(client: Client, script: Script) -> None:
    """An operator sees which client, in which version, calls."""
    client.health()
    assert script.calls[0].metadata["user-agent"].startswith(f"isogloss-python/{__version__} ")
    assert "authorization" not in script.calls[0].metadata


def test_many_threads_share_a_client(client: Client, script: Script) -> None:
    """Calls of many threads at once each get their own answer."""
    script.limits["max_texts"] = 3

    def work(thread: int) -> bool:
        """Embeds this thread's texts, and says whether the vectors are theirs."""
        texts = [f"{thread} {number}" for number in range(10)]
        return np.array_equal(client.embed(texts).vectors, [vector(text) for text in texts])

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(64)))


def test_a_closed_client_says_so(client: Client) -> None:
    """A call after close fails with a clear error; closing again does not."""
    client.close()
    client.close()
    with pytest.raises(FailedPreconditionError, match="closed") as raised:
        client.embed(["a"])
    assert raised.value.reason == "CLIENT_CLOSED"
    assert repr(client).endswith("closed)")


def test_a_call_under_way_ends_when_the_client_is_closed(client: Client, script: Script) -> None:
    """Closing a client ends its calls in other threads with an exception of this package."""
    entered, release = threading.Event(), threading.Event()

    def wait(context: Any) -> None:
        """Holds the call until the test is over."""
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
def test_a_client_made_after_a_fork_works(scripted: Running, before: str) -> None:
    """A child process calls with a client of its own, where the parent has imported the package, or called as well."""
    in_child = "code = 0 if len(isogloss.Client('{address}').embed(['a'], timeout_s=30)) == 1 else 2"
    program = FORK.format(before=before, in_child=in_child).replace("{address}", scripted.address)
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"} if before else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
    assert done.returncode == 0


def test_a_client_made_before_a_fork_says_so(scripted: Running) -> None:
    """A child that uses its parent's client is told, instead of waiting for its deadline."""
    before = "client = isogloss.Client('{address}')"
    in_child = "code = 0 if 'fork' in str(_failure(client)) else 2"
    helper = (
        "\ndef _failure(client):\n    try: client.models()\n    except isogloss.IsoglossError as error: return error\n"
    )
    program = FORK.format(before=before + helper, in_child=in_child).replace("{address}", scripted.address)
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0
