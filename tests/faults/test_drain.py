"""SIGTERM under load."""

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

CALLERS, BEFORE = 8, 100  # calls that are answered before the signal
REQUEST = pb.EmbedRequest(texts=[f"text {number} " + "of many words " * 20 for number in range(64)])


class Load:
    """Callers that call without a break until the server takes no more."""

    def __init__(self, address: str) -> None:
        self.texts = 0  # whose vectors have come
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
                    for answer in self._answers(stub, streams=streams):
                        with self._lock:
                            self.texts += answer.embeddings.rows
                except grpc.RpcError as error:
                    code = error.code().name
                with self._lock:
                    self.codes[code] += 1
                    if self.codes["OK"] >= BEFORE:
                        self.warm.set()

    def _answers(self, stub: Any, *, streams: bool) -> Iterator[pb.EmbedResponse]:
        if streams:
            for answer in stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=REQUEST)])):
                yield answer.response
        else:
            yield stub.Embed(REQUEST)


def test_no_call_that_was_accepted_fails() -> None:
    """A server that is told to stop under load answers every call that it took, and its callers have every answer."""
    server = ServerProcess()
    load = Load(server.address)
    assert load.warm.wait(60)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    for thread in load.threads:
        thread.join(60)
        assert not thread.is_alive()
    calls = [fields for line in server.lines if (fields := json.loads(line)).get("message") == "call"]
    assert {fields["code"] for fields in calls if fields["method"] == "Embed"} == {"OK"}
    assert {fields["code"] for fields in calls} <= {"OK", "UNAVAILABLE"}  # streams end so when all read is answered
    assert sum(fields["texts"] for fields in calls) == load.texts
    refused = load.codes["UNAVAILABLE"] + load.codes["CANCELLED"]  # the latter by gRPC, which had not handed them over
    assert load.codes.total() - load.codes["OK"] == refused == CALLERS


def test_callers_of_two_servers_do_not_notice_that_one_stops() -> None:
    """Where one of two servers is told to stop under load, not one call of their clients fails."""
    with ServerProcess() as one, ServerProcess() as other:
        target = f"ipv4:{one.address},{other.address}"
        stopped, warm = threading.Event(), threading.Semaphore(0)

        def call() -> int:
            calls = 0
            with Client(target) as client:
                while not stopped.is_set():
                    assert len(client.embed(list(REQUEST.texts)).vectors) == len(REQUEST.texts)
                    calls += 1
                    warm.release()
            return calls

        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(call) for _ in range(CALLERS)]
            assert all(warm.acquire(timeout=60) for _ in range(BEFORE))
            assert one.stop() == 0
            assert all(warm.acquire(timeout=60) for _ in range(BEFORE))
            stopped.set()
            assert all(caller.result() for caller in callers)
