"""The runbook: each symptom is provoked on a server, and changes the metrics that the page names for it."""

import asyncio
import datetime as dt
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc
from isogloss_server.clock import SystemClock
from isogloss_server.engine import local_embedder
from isogloss_server.engine.monitoring import CHECKS, State
from isogloss_server.models.providers.embedder import FAILURES_TO_OPEN

from tests.end_to_end.test_unread_stderr import SERVE, full_pipe, wait_for
from tests.support.certificates import HOST, ServerFiles, issue
from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.gated_model import GatedModel
from tests.support.injected_faults import serving_model
from tests.support.provider import KEY
from tests.support.scrape import Scrape, scrape_until
from tests.support.server_process import ServerProcess
from tests.support.wire import error_of

ROOT = Path(__file__).parents[2]
SMALL = "text-embedding-3-small"
NOWHERE = "redis://127.0.0.1:1"  # a port that no server listens on
Scrapes = tuple[Scrape, Scrape]  # before and under the symptom
ENTRIES = {
    entry.partition("\n")[0]: re.findall(r"^\| `([^`]+)` \|", entry, re.MULTILINE)
    for entry in re.split(r"^## ", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
}


@contextmanager
def serving(*flags: str, env: dict[str, str | None] | None = None) -> Iterator[tuple[ServerProcess, Any, str]]:
    """Yields a server process that is ready, its stub, and the URL of its metrics."""
    with ServerProcess("--metrics-port", "0", *flags, env=env) as process:
        url = str(process.wait_for("serving metrics")["url"])
        with grpc.insecure_channel(process.address) as channel:
            yield process, embedding_pb2_grpc.EmbeddingServiceStub(channel), url


@contextmanager
def serving_provider(*flags: str) -> Iterator[tuple[FakeProvider, Any, str]]:
    """Yields a provider, the stub of a server of its model, and the URL of the server's metrics."""
    with FakeProvider(key=KEY) as fake:
        source = f"openai:{SMALL}@{fake.address}/v1"
        with serving("--model", source, "--cache-bytes", "0", *flags, env={"OPENAI_API_KEY": KEY}) as (_, stub, url):
            fake.requests.clear()
            yield fake, stub, url


def request(text: str = "one") -> pb.EmbedRequest:
    return pb.EmbedRequest(texts=[text])


def slow() -> Iterator[Scrapes]:
    """A provider that takes long, which is called once at a time; and a long text."""
    with serving_provider("--provider-calls", "1", "--model", "isogloss-static") as (fake, stub, url):
        before, gate = Scrape.of(url), fake.gate()
        fake.script.extend([Scripted(gate=gate), Scripted(gate=gate)])
        calls = [stub.Embed.future(request(text)) for text in ("one", "two")]
        yield before, scrape_until(url, lambda scrape: scrape.value("isogloss_calls_in_flight") == len(calls))
        gate.open()
        assert all(call.result(timeout=60) for call in calls)
        stub.Embed(pb.EmbedRequest(texts=["word " * 100_000], model="isogloss-static"))
        yield before, Scrape.of(url)


def full_queue() -> Iterator[Scrapes]:
    """A queue without room for a second request, and a provider that limits the rate."""
    with serving_provider("--max-queue-bytes", "8000") as (fake, stub, url):
        before, gate = Scrape.of(url), fake.gate()
        fake.script.extend([Scripted(gate=gate), Scripted(status=429, headers={"Retry-After": "100"})])
        admitted = stub.Embed.future(request())
        fake.wait_for(1)
        assert error_of(lambda: stub.Embed(request("two"))).reason == "OVERLOADED"
        gate.open()
        assert admitted.result(timeout=60)
        assert error_of(lambda: stub.Embed(request("three"), timeout=50)).reason == "PROVIDER_RATE_LIMIT"
        yield before, Scrape.of(url)


def starting() -> Iterator[Scrapes]:
    """A provider's model whose first call is not answered yet."""
    with FakeProvider(key=KEY) as fake:
        gate = fake.gate()
        fake.script.append(Scripted(gate=gate))
        flags = ("--model", f"openai:{SMALL}@{fake.address}/v1", "--log-level", "debug", "--metrics-port", "0")
        with ServerProcess(*flags, env={"OPENAI_API_KEY": KEY}) as process:
            address = str(process.wait_for("listening")["address"])
            url = str(process.wait_for("serving metrics")["url"])
            with grpc.insecure_channel(address) as channel:
                stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
                before = Scrape.of(url)
                assert error_of(lambda: stub.Embed(request())).reason == "NOT_READY"
                loading = Scrape.of(url)
                yield before, loading
                gate.open()
                process.wait_for("serving")
                yield Scrape.of(url), loading


def stalled() -> Iterator[Scrapes]:
    """A model whose only thread exceeds its time limit."""

    async def run(folder: Path) -> Scrapes:
        model = GatedModel(gated=True)
        async with serving_model(folder, model) as server:
            before = Scrape.of_this_process()
            call = server.start_embed("one")
            await model.next_batch()
            await server.run_checks(CHECKS + 1)
            await server.wait_for_state(State.NOT_SERVING)
            during = Scrape.of_this_process()
            model.release()
            assert (await call).reason == "MODEL_STUCK"
        return before, during

    yield asyncio.run(run(FOLDER[-1]))


def raising() -> Iterator[Scrapes]:
    """A model that raises."""

    def fail(_rows: object) -> Any:
        raise RuntimeError

    async def run(folder: Path) -> Scrapes:
        async with serving_model(folder, GatedModel(change=fail)) as server:
            before = Scrape.of_this_process()
            assert (await server.embed("one")).code == "INTERNAL"
            return before, Scrape.of_this_process()

    yield asyncio.run(run(FOLDER[-1]))


def draining() -> Iterator[Scrapes]:
    """A server that has received a stop signal."""
    with serving("--drain-delay-s", "3600") as (process, _, url):
        before = Scrape.of(url)
        process.signal(signal.SIGTERM)
        process.wait_for("draining")
        yield before, Scrape.of(url)
        process.signal(signal.SIGTERM)


def full_memory() -> Iterator[Scrapes]:
    """Two large requests, for the second of which calls have no memory."""
    with serving_provider("--max-call-bytes", str(1 << 20)) as (fake, stub, url):
        before, gate = Scrape.of(url), fake.gate()
        fake.script.append(Scripted(gate=gate))
        admitted = stub.Embed.future(request("x" * 200_000))
        fake.wait_for(1)
        assert error_of(lambda: stub.Embed(request("y" * 200_000))).reason == "OVERLOADED"
        yield before, Scrape.of(url)
        gate.open()
        assert admitted.result(timeout=60)


def full_cache() -> Iterator[Scrapes]:
    """More texts than the cache holds."""
    with serving("--cache-bytes", "3000") as (_, stub, url):
        before = Scrape.of(url)
        stub.Embed(pb.EmbedRequest(texts=[str(number) for number in range(8)]))
        yield before, Scrape.of(url)


def failing_provider(status: int) -> Iterator[Scrapes]:
    """A provider that answers as many calls as open the circuit breaker with an HTTP status."""
    with serving_provider() as (fake, stub, url):
        before = Scrape.of(url)
        fake.always = Scripted(status=status, headers={"Retry-After": "100"} if status == 429 else {})
        calls = [stub.Embed.future(request(str(number)), timeout=60) for number in range(FAILURES_TO_OPEN)]
        assert all(call.exception() for call in calls)
        yield before, Scrape.of(url)


def unavailable() -> Iterator[Scrapes]:
    """A provider that fails."""
    return failing_provider(503)


def refusing_key() -> Iterator[Scrapes]:
    """A provider that refuses the key."""
    return failing_provider(401)


def limiting_rate() -> Iterator[Scrapes]:
    """A provider that limits the rate."""
    return failing_provider(429)


def changing_certificates() -> Iterator[Scrapes]:
    """A certificate that is replaced, first by a file that is none."""
    authority = trustme.CA()
    expires_soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    files = ServerFiles(FOLDER[-1], issue(authority, HOST, not_after=expires_soon))
    certificates = files.load(SystemClock())
    scrapes = [Scrape.of_this_process()]
    for issued in ((b"damaged", b"damaged"), issue(authority, HOST)):
        files.write(issued)
        certificates.check()  # a change is loaded when it is found a second time
        certificates.check()
        scrapes.append(Scrape.of_this_process())
    yield from itertools.pairwise(scrapes)


def redis_down() -> Iterator[Scrapes]:
    """A Redis that nobody serves, beside a server without one."""
    with ExitStack() as stack:
        _, _, url = stack.enter_context(serving())
        _, _, url_of_broken = stack.enter_context(serving(env={"ISOGLOSS_CACHE_REDIS_URL": NOWHERE}))
        failed = 'isogloss_cache_shared_errors_total{operation="ping"}'
        yield Scrape.of(url), scrape_until(url_of_broken, lambda scrape: scrape.value(failed) > 0)


def unread_log() -> Iterator[Scrapes]:
    """A server whose stderr is not read, with a queue of few lines."""
    program = "from isogloss_server import cli, logs; logs.MAX_WAITING_LINES = 8; cli.run()"
    ends = full_pipe()
    file = FOLDER[-1] / "port"
    flags = (*SERVE[3:], "--metrics-port", "0", "--port-file", str(file))
    process = subprocess.Popen([sys.executable, "-c", program, *flags], stderr=ends[1])
    try:
        port = int(wait_for(file, process))
        ports = {each.laddr.port for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"}
        url = f"http://127.0.0.1:{(ports - {port}).pop()}/metrics"
        before = Scrape.of(url)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(20):
                embedding_pb2_grpc.EmbeddingServiceStub(channel).Health(pb.HealthRequest())
        yield before, Scrape.of(url)
    finally:
        process.kill()
        process.wait()
        for end in ends:
            os.close(end)


SYMPTOMS: dict[str, Sequence[Callable[[], Iterator[Scrapes]]]] = {
    "Calls are slow": [slow],
    "Calls are refused": [full_queue, full_memory, starting],
    "A model does not serve": [starting, refusing_key, stalled, draining],
    "Calls fail with INTERNAL": [raising],
    "Memory is full": [full_memory, full_cache],
    "Certificates expire or cannot be loaded": [changing_certificates],
    "A provider is down": [unavailable, refusing_key, limiting_rate],
    "Redis is down": [redis_down],
    "Lines are missing in the log": [unread_log],
}
FOLDER: list[Path] = []  # of a static model, for the symptoms that need one


@pytest.fixture(autouse=True)
def _folder(static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)
    FOLDER.append(static_folder)
    yield
    FOLDER.pop()


@functools.cache  # entries share symptoms
def scrapes_of(symptom: Callable[[], Iterator[Scrapes]]) -> list[Scrapes]:
    """Returns the scrapes of a symptom, which is provoked once."""
    return list(symptom())


def risen(scrapes: Sequence[Scrapes], selector: str) -> bool:
    """Returns whether a metric, or the sum of a histogram, is higher under a symptom than before it."""
    name, brace, labels = selector.partition("{")
    names = (selector, f"{name}_sum{brace}{labels}")
    return any(during.rise(each, before) > 0 for before, during in scrapes for each in names)


@pytest.mark.parametrize("symptom", ENTRIES)
def test_each_symptom_changes_the_metrics_that_the_runbook_names(symptom: str) -> None:
    """Every metric in the table of an entry is higher under the symptom than before it."""
    selectors = ENTRIES[symptom]
    assert selectors
    scrapes = [scrape for provoked in SYMPTOMS[symptom] for scrape in scrapes_of(provoked)]
    assert [selector for selector in selectors if not risen(scrapes, selector)] == []


def test_the_runbook_has_an_entry_for_each_symptom() -> None:
    """No symptom that is tested is without an entry."""
    assert ENTRIES.keys() == SYMPTOMS.keys()
