"""The lifecycle of a server process: start, drain, stop, and errors at the start."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import isogloss
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.raw_http2 import ACK, END_STREAM, GOAWAY, PING, RawCaller, frame, grpc_message
from tests.support.server_process import ServerProcess
from tests.support.wire import error_of

SERVICE = "isogloss.v1.EmbeddingService"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_status_0(number: signal.Signals) -> None:
    """SIGTERM and SIGINT stop an idle server with exit status 0."""
    process = ServerProcess()
    assert process.address
    process.signal(number)
    assert process.wait() == 0
    assert any('"stopped"' in line for line in process.lines)


def test_the_first_line_has_the_version_the_models_and_the_changed_settings() -> None:
    """The log begins with what is started; secrets are masked, and settings with their default are left out."""
    with ServerProcess("--drain-s", "7", "--cache-redis-url", "redis://:swordfish@127.0.0.1:1") as process:
        line = process.wait_for("starting")
        assert process.address
    assert json.loads(process.lines[0]) == line
    assert (line["version"], line["models"]) == (isogloss.__version__, ["isogloss-static"])
    settings = {"port": 0, "drain_s": 7.0, "log_format": "json", "cache_redis_url": "**********"}
    assert line["settings"] == settings
    assert "swordfish" not in "".join(process.lines)


def test_the_port_file_has_the_port_while_the_server_accepts_calls(tmp_path: Path) -> None:
    """With --port 0 the server uses a free port; --port-file has it when ready, and is removed at the end."""
    file = tmp_path / "port"
    file.write_text("left by a server that was killed")
    with ServerProcess("--port-file", str(file)) as process:
        port = process.address.rpartition(":")[2]
        assert file.read_text() == f"{port}\n"
    assert not file.exists()


@pytest.mark.parametrize("name", ["port", "port.part"])
def test_the_port_file_follows_no_link(name: str, tmp_path: Path) -> None:
    """A link in the folder of the port file does not make the server write to another file."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "ports").mkdir()
    (tmp_path / "ports" / name).symlink_to(precious)
    file = tmp_path / "ports" / "port"
    with ServerProcess("--port-file", str(file)) as process:
        port = process.address.rpartition(":")[2]
        assert file.read_text() == f"{port}\n"
    assert precious.read_text() == "precious"
    assert {path.name for path in file.parent.iterdir()} == {name} - {"port"}


def test_a_port_file_that_is_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    """If the name of the port file is a folder's, the error is one line, and no other file remains."""
    (tmp_path / "port").mkdir()
    process = ServerProcess("--port-file", str(tmp_path / "port"))
    assert process.wait() == 1
    assert process.lines[-1] == f"isogloss-server: cannot write the port file {tmp_path / 'port'}: Is a directory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["port"]


def test_during_the_drain_delay_the_server_is_not_ready_but_accepts_calls() -> None:
    """After the signal health is NOT_SERVING, liveness SERVING, and calls succeed for --drain-delay-s."""
    with ServerProcess("--drain-delay-s", "3600") as process, grpc.insecure_channel(process.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        live = health.Check(health_pb2.HealthCheckRequest())
        model = health.Check(health_pb2.HealthCheckRequest(service="isogloss-static"))
        health_of_models = stub.Health(pb.HealthRequest())
        response = stub.Embed(pb.EmbedRequest(texts=["still here"]))
        process.signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert live.status == health_pb2.HealthCheckResponse.SERVING
    assert model.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert health_of_models.status == pb.SERVING_STATUS_NOT_SERVING
    assert response.embeddings.rows == 1


def test_an_open_watch_does_not_delay_the_stop() -> None:
    """A Watch ends when the server rejects new calls, so that the drain does not wait for it."""
    process = ServerProcess("--drain-s", "3600")
    with grpc.insecure_channel(process.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as raised:
            next(watch)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait() == 0


CALLER = """
import sys, time, grpc
from isogloss.v1 import embedding_pb2 as pb, embedding_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(texts=["one"]))
print("ready", flush=True)
time.sleep(3600)
"""


@contextmanager
def no_bytes(address: str) -> Iterator[None]:
    """A connection that sends nothing, like a load balancer's check."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))):
        yield


@contextmanager
def only_a_preface(address: str) -> Iterator[None]:
    """A connection of HTTP/2 whose peer responds to nothing."""
    caller = RawCaller(address)
    yield
    caller.socket.close()


@contextmanager
def stopped_client(address: str) -> Iterator[None]:
    """The connection of a client that is stopped after a call."""
    client = subprocess.Popen([sys.executable, "-c", CALLER, address], stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    client.send_signal(signal.SIGSTOP)
    yield
    client.kill()
    client.wait()
    client.stdout.close()


@contextmanager
def open_reflection(address: str) -> Iterator[None]:
    """A stream of the reflection service that waits for the caller."""
    ended = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait()

    with grpc.insecure_channel(address) as channel:
        responses = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests())
        assert SERVICE in {service.name for service in next(responses).list_services_response.service}
        yield
        ended.set()


@pytest.mark.parametrize("connection", [no_bytes, only_a_preface, stopped_client, open_reflection])
def test_a_connection_without_a_call_does_not_delay_the_stop(connection: Any) -> None:
    """The drain ends when no call is in flight, whatever connections are open."""
    process = ServerProcess("--drain-s", "3600")
    with connection(process.address):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_call_whose_request_is_still_arriving_at_the_signal_succeeds() -> None:
    """The drain waits for a call that began before the signal, and for the rest of its request."""
    process = ServerProcess("--drain-s", "3600")
    message = grpc_message(pb.EmbedRequest(texts=["one"]).SerializeToString())
    with RawCaller(process.address) as caller:
        caller.begin("Embed")
        caller.data(message[:4])
        caller.send(frame(PING, bytes(8)))
        caller.wait_for(PING, flags=ACK)
        with grpc.insecure_channel(process.address) as channel:  # gRPC hands over this call after the one above
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        process.signal(signal.SIGTERM)
        caller.wait_for(GOAWAY)
        caller.data(message[4:], flags=END_STREAM)
        caller.wait_for_status()
    assert process.wait() == 0
    (call,) = [json.loads(line) for line in process.lines if '"message": "call"' in line]
    assert (call["method"], call["code"]) == ("Embed", "OK")


def test_a_call_in_flight_at_the_signal_succeeds() -> None:
    """A call that was accepted before the signal succeeds, and the exit status is 0."""
    process = ServerProcess()
    with grpc.insecure_channel(process.address) as channel:
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        model = stub.ListModels(pb.ListModelsRequest()).models[0]
        many = [f"sentence number {row} of a long list" for row in range(model.max_texts)]
        future = stub.Embed.future(pb.EmbedRequest(texts=many))
        began = threading.Event()
        threading.Thread(target=lambda: (_wait_for_embedding(stub), began.set()), daemon=True).start()
        assert began.wait(60)
        process.signal(signal.SIGTERM)
        assert future.result(timeout=60).embeddings.rows == len(many)
    assert process.wait() == 0


def _wait_for_embedding(stub: Any) -> None:
    """Returns when the server has started or finished the texts."""
    while True:
        model = stub.Health(pb.HealthRequest()).models[0]
        if model.queued_texts or model.embedded_texts:
            return


def test_a_taken_port_is_one_line_and_status_1(server: ServerProcess) -> None:
    """A port in use is an error, though grpc would share it."""
    second = ServerProcess("--port", server.address.rpartition(":")[2])
    assert second.wait() == 1
    assert second.lines == [f"isogloss-server: cannot listen on {server.address}: the port is in use\n"]


def test_a_port_file_that_cannot_be_written_is_one_line_and_status_1(tmp_path: Path) -> None:
    """A port file in a folder that does not exist is one line."""
    file = tmp_path / "nowhere" / "port"
    process = ServerProcess("--port-file", str(file))
    assert process.wait() == 1
    assert [line for line in process.lines if not line.startswith("{")] == [
        f"isogloss-server: cannot write the port file {file}: No such file or directory\n"
    ]


def test_a_server_that_cannot_start_keeps_the_port_file_of_another(tmp_path: Path) -> None:
    """A second server on a used port, with the same port file, does not change the file."""
    file = tmp_path / "port"
    with ServerProcess("--port-file", str(file)) as first:
        port = first.address.rpartition(":")[2]
        second = ServerProcess("--port-file", str(file), "--port", port)
        assert second.wait() == 1
        assert file.read_text() == f"{port}\n"


def test_a_signal_while_loading_ends_with_status_0() -> None:
    """A signal before the server is ready stops it with status 0."""
    process = ServerProcess("--log-level", "debug")
    process.wait_for("listening")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_an_invalid_host_is_one_line_and_status_1() -> None:
    """An invalid host name is one line."""
    process = ServerProcess("--host", "a" * 70)
    assert process.wait() == 1
    assert process.lines == [f"isogloss-server: cannot listen on {'a' * 70}:0: invalid host name\n"]


def test_a_missing_model_is_one_line_and_status_1(tmp_path: Path) -> None:
    """Missing model files are one line."""
    process = ServerProcess("--model", f"mine={tmp_path}")
    assert process.wait() == 1
    assert [line for line in process.lines if not line.startswith("{")] == [
        f"isogloss-server: model folder {tmp_path} has no file modules.json\n"
    ]


def test_two_models_are_served_under_their_names(static_folder: Path) -> None:
    """Two --model flags serve both models, the first as the default, each with its own readiness and space."""
    with (
        ServerProcess("--model", f"small={static_folder}", "--model", "isogloss-static") as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        models = stub.ListModels(pb.ListModelsRequest()).models
        assert [model.name for model in models] == ["small", "isogloss-static"]
        assert models[0].space_id != models[1].space_id
        assert stub.Embed(pb.EmbedRequest(texts=["one"])).model == "small"
        assert stub.Embed(pb.EmbedRequest(texts=["one"], model="isogloss-static")).model == "isogloss-static"
        listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest()).statuses
        assert set(listed) == {"", SERVICE, "small", "isogloss-static"}


def test_invalid_bytes_on_the_port(server: ServerProcess, stub: Any) -> None:
    """The server still serves after bytes that are not HTTP/2 and messages that are malformed."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Embed")
        for malformed in (b"\xff\xff\xff", b"\n\x02\xc3\x28"):  # the second has a text that is not UTF-8
            error = error_of(lambda malformed=malformed: call(malformed))
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")
        unknown = channel.unary_unary(f"/{SERVICE}/Nothing")
        with pytest.raises(grpc.RpcError) as raised:
            unknown(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert stub.Embed(pb.EmbedRequest(texts=["still serving"])).embeddings.rows == 1


def test_an_unknown_name_of_a_health_probe_is_not_logged() -> None:
    """A probe with an unknown name receives NOT_FOUND with a reason, and writes nothing into the log."""
    with ServerProcess() as process, grpc.insecure_channel(process.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        error = error_of(lambda: health.Check(health_pb2.HealthCheckRequest(service="no such name")))
    assert (error.code, error.reason) == ("NOT_FOUND", "UNKNOWN_SERVICE")
    assert "no such name" not in error.message
    assert [line for line in process.lines if '"level": "error"' in line or "no such name" in line] == []
