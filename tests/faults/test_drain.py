"""SIGTERM under load: the drain fails no accepted call, and refuses others with UNAVAILABLE."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from isogloss import Client
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess

CALLERS, WARM_CALLS = 8, 100  # WARM_CALLS succeed before the signal
REQUEST = pb.EmbedRequest(texts=[f"text {number} " + "of many words " * 20 for number in range(64)])


class Load:
    """Callers that call continuously until the server accepts no more calls."""

    def __init__(self, address: str) -> None:
        self.texts = 0  # with vectors received
        self.codes: Counter[str] = Counter()
        self.warm = threading.Event()
        self._address = address
        self._lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._call, kwargs={"streams": streams})
            for streams in [False, True] * (CALLERS // 2)
        ]
        for thread in self.threads:
            thread.start()

    def _call(self, *, streams: bool) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            code = "OK"
            while code == "OK":
                try:
                    for response in self._responses(stub, streams=streams):
                        with self._lock:
                            self.texts += response.embeddings.rows
                except grpc.RpcError as error:
                    code = error.code().name
                with self._lock:
                    self.codes[code] += 1
                    if self.codes["OK"] >= WARM_CALLS:
                        self.warm.set()

    def _responses(self, stub: Any, *, streams: bool) -> Iterator[pb.EmbedResponse]:
        if streams:
            for response in stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=REQUEST)])):
                yield response.response
        else:
            yield stub.Embed(REQUEST)


def test_a_drain_fails_no_accepted_call() -> None:
    """A draining server completes every call that it accepted; the others end with UNAVAILABLE, never CANCELLED."""
    server = ServerProcess()
    load = Load(server.address)
    assert load.warm.wait(60)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    for thread in load.threads:
        thread.join(60)
        assert not thread.is_alive()
    calls = [fields for line in server.lines if (fields := json.loads(line)).get("message") == "call"]
    # UNAVAILABLE: refused before they began, and streams whose requests are all answered.
    assert {fields["code"] for fields in calls} == {"OK", "UNAVAILABLE"}
    assert sum(fields["texts"] for fields in calls) == load.texts
    assert load.codes.keys() == {"OK", "UNAVAILABLE"}
    assert load.codes["UNAVAILABLE"] == CALLERS


def test_clients_of_two_servers_see_no_error_when_one_drains() -> None:
    """If one of two servers drains under load, no call of the clients fails."""
    with ServerProcess() as one, ServerProcess() as other:
        target = f"ipv4:{one.address},{other.address}"
        stopping, warm = threading.Event(), threading.Semaphore(0)

        def call() -> int:
            calls = 0
            with Client(target) as client:
                while not stopping.is_set():
                    assert len(client.embed(list(REQUEST.texts)).vectors) == len(REQUEST.texts)
                    calls += 1
                    warm.release()
            return calls

        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(call) for _ in range(CALLERS)]
            assert all(warm.acquire(timeout=60) for _ in range(WARM_CALLS))
            assert one.stop() == 0
            assert all(warm.acquire(timeout=60) for _ in range(WARM_CALLS))
            stopping.set()
            assert all(caller.result() for caller in callers)
