import asyncio
import contextlib
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme
from isogloss_server import metrics
from isogloss_server.clock import SystemClock

from tests.support.certificates import HOST, ServerFiles, issue
from tests.support.manual_clock import ManualClock

UNITS = ("_seconds", "_bytes", "_tokens", "_texts")
GAUGES_WITHOUT_UNIT = {"calls_in_flight", "batcher_threads", "model_state", "draining", "tasks"}
AUTHORITY, OTHER = trustme.CA(), trustme.CA()


def value_of(name: str) -> float:
    value = metrics.REGISTRY.get_sample_value(name)
    assert value is not None, name
    return value


async def test_tasks_are_counted_at_each_scrape() -> None:
    """isogloss_tasks is the present number of tasks of the server's loop."""
    metrics.watch_tasks(asyncio.get_running_loop())
    before = value_of("isogloss_tasks")
    waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert value_of("isogloss_tasks") == before + 3
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert value_of("isogloss_tasks") == before


async def test_metrics_are_served_on_another_thread() -> None:
    """/metrics has tasks, resident memory and open files of the process while the loop serves."""
    metrics.watch_tasks(asyncio.get_running_loop())
    port = metrics.serve("127.0.0.1", 0, SystemClock())
    url = f"http://127.0.0.1:{port}/metrics"
    response = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read().decode())
    names = {line.split()[0] for line in response.splitlines() if not line.startswith("#")}
    assert {"isogloss_tasks", "process_resident_memory_bytes", "process_open_fds"} <= names


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("sent", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"])
def test_a_connection_of_the_metrics_ends_after_its_time(sent: bytes, tls: bool, tmp_path: Path) -> None:
    """A peer that does not finish its request, or its handshake, does not keep a thread, whatever it has sent."""
    clock = ManualClock()
    context = ServerFiles(tmp_path, issue(AUTHORITY, HOST)).load(clock).context if tls else None
    port = metrics.serve("127.0.0.1", 0, clock, context)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        ends_at_once = tls and sent.startswith(b"GET")  # not a handshake; its thread may have ended already
        while not (handlers() or ends_at_once):  # the connection is accepted
            pass
        clock.advance(metrics.CONNECTION_S)
        assert connection.recv(4096) == b""
    while handlers():
        pass


def test_connections_beyond_the_limit_close_the_oldest() -> None:
    """However many connections do not respond, the threads are bounded and the metrics are served."""
    port = metrics.serve("127.0.0.1", 0, ManualClock())
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3 * metrics.MAX_CONNECTIONS)]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        assert b"isogloss_tasks" in response.read()
    for connection in silent[: 2 * metrics.MAX_CONNECTIONS]:
        assert connection.recv(4096) == b""
    while len(handlers()) > metrics.MAX_CONNECTIONS:
        pass
    for connection in silent:
        connection.close()
    while handlers():
        pass


def test_the_table_has_every_metric_of_the_server() -> None:
    """What is exposed under the prefix is in the table, and the reverse, with type, labels and meaning."""
    exposed = {family.name: family for family in metrics.REGISTRY.collect() if family.name.startswith(metrics.PREFIX)}
    declared = {row.name.removesuffix("_total").removesuffix("_info"): row for row in metrics.TABLE}
    assert len(declared) == len(metrics.TABLE)
    assert exposed.keys() == declared.keys()
    for name, row in declared.items():
        assert (exposed[name].type, exposed[name].documentation) == (row.kind, row.meaning)
        given = {label for sample in exposed[name].samples for label in sample.labels} - {"le"}
        assert row.kind == "info" or given <= set(row.labels)


@pytest.mark.parametrize("row", metrics.TABLE, ids=lambda row: str(row.name))
def test_names_follow_the_conventions_of_prometheus(row: metrics.Row) -> None:
    """Counters end with _total, info metrics with _info, and others with their base unit if they have one."""
    assert re.fullmatch(r"isogloss(_[a-z]+)+", row.name)
    assert row.meaning.endswith(".")
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert row.name.endswith("_info") == (row.kind == "info")
    if row.kind in {"gauge", "histogram"}:
        name = row.name.removeprefix(metrics.PREFIX)
        assert name.endswith(UNITS) or name in GAUGES_WITHOUT_UNIT or name.endswith("_breaker_open")


def trusting(authority: trustme.CA, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Returns the context of a client that trusts an authority."""
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    if client is not None:
        client.configure_cert(context)
    return context


def scrape(port: int, context: ssl.SSLContext) -> bytes:
    """Returns the metrics over TLS."""
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=30, context=context) as response:
        return bytes(response.read())


def test_metrics_over_tls_follow_the_certificate(tmp_path: Path) -> None:
    """Each new connection gets the present certificate; a client that does not trust it gets nothing."""
    files = ServerFiles(tmp_path, issue(AUTHORITY, HOST))
    certificates = files.load(SystemClock())
    port = metrics.serve("127.0.0.1", 0, SystemClock(), certificates.context)
    assert b"isogloss_tasks" in scrape(port, trusting(AUTHORITY))
    files.write(issue(OTHER, HOST))
    certificates.check()
    certificates.check()
    assert b"isogloss_tasks" in scrape(port, trusting(OTHER))
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        scrape(port, trusting(AUTHORITY))


def test_metrics_over_tls_have_no_plain_text(tmp_path: Path) -> None:
    """A request in plain text is not answered."""
    certificates = ServerFiles(tmp_path, issue(AUTHORITY, HOST)).load(SystemClock())
    port = metrics.serve("127.0.0.1", 0, SystemClock(), certificates.context)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"isogloss" not in connection.recv(4096)  # an alert of TLS, or nothing


def test_metrics_over_mutual_tls_need_a_client_certificate(tmp_path: Path) -> None:
    """With an authority of clients, only a client with one of its certificates can read the metrics."""
    certificates = ServerFiles(tmp_path, issue(AUTHORITY, HOST), OTHER).load(SystemClock())
    port = metrics.serve("127.0.0.1", 0, SystemClock(), certificates.context)
    assert b"isogloss_tasks" in scrape(port, trusting(AUTHORITY, OTHER.issue_cert("scraper")))
    for client in (None, AUTHORITY.issue_cert("scraper")):
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            scrape(port, trusting(AUTHORITY, client))


def handlers() -> list[threading.Thread]:
    """Returns the threads of connections to the metrics."""
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
