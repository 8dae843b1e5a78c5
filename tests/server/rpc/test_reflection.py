"""Server reflection, v1 and v1alpha, as tools such as ghz and grpcurl use it."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection_pb2
from isogloss.v1 import embedding_pb2 as pb

from tests.support.server_process import ServerProcess

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = {"isogloss.v1.EmbeddingService", "grpc.health.v1.Health", *VERSIONS}
Ask = Callable[..., reflection_pb2.ServerReflectionResponse]


@pytest.fixture(params=VERSIONS)
def ask(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Sends one request to a version of the service and returns the response."""
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(
            f"/{request.param}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        def send(**fields: str) -> reflection_pb2.ServerReflectionResponse:
            [response] = call(iter([reflection_pb2.ServerReflectionRequest(**fields)]))
            return response

        yield send


def files(response: reflection_pb2.ServerReflectionResponse) -> list[FileDescriptorProto]:
    """Returns the files of a response."""
    return [FileDescriptorProto.FromString(data) for data in response.file_descriptor_response.file_descriptor_proto]


def pool_of(response: reflection_pb2.ServerReflectionResponse) -> DescriptorPool:
    """Returns a pool with the files of a response alone."""
    waiting = {file.name: file for file in files(response)}
    pool = DescriptorPool()

    def add(name: str) -> None:
        if file := waiting.pop(name, None):
            for imported in file.dependency:
                add(imported)
            pool.AddSerializedFile(file.SerializeToString())

    for name in list(waiting):
        add(name)
    return pool


def messages(file: FileDescriptorProto) -> Iterator[DescriptorProto]:
    """Yields the messages of a file, nested ones included."""
    pending = list(file.message_type)
    while pending:
        yield (message := pending.pop())
        pending += message.nested_type


def test_all_services_are_listed(ask: Ask) -> None:
    """Each version lists the services of the server and both versions of reflection."""
    assert {service.name for service in ask(list_services="").list_services_response.service} == SERVICES


def test_the_symbol_of_each_method_is_found(ask: Ask) -> None:
    """The file of each method is the one that declares its service: ghz asks for nothing else."""
    for service in SERVICES:
        [file, *_] = files(ask(file_containing_symbol=service))
        [declared] = [declared for declared in file.service if f"{file.package}.{declared.name}" == service]
        assert declared.method
        for method in declared.method:
            assert files(ask(file_containing_symbol=f"{service}.{method.name}"))[0] == file


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("isogloss.v1.EmbedRequest", "isogloss/v1/embedding.proto"),
        ("isogloss.v1.EmbedRequest.element_type", "isogloss/v1/embedding.proto"),
        ("isogloss.v1.ElementType", "isogloss/v1/embedding.proto"),
        ("isogloss.v1.ELEMENT_TYPE_INT8", "isogloss/v1/embedding.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc_health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.NOT_SERVING", "grpc_health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflectionRequest.message_request", "grpc_reflection/v1/reflection.proto"),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("google.rpc.ErrorInfo", "google/rpc/error_details.proto"),
        ("google.rpc.BadRequest.FieldViolation", "google/rpc/error_details.proto"),
    ],
)
def test_symbols_of_types_values_and_fields_are_found(ask: Ask, symbol: str, file: str) -> None:
    """A symbol is found in the file that declares it, which comes first, with all that it imports."""
    response = ask(file_containing_symbol=symbol)
    assert files(response)[0].name == file
    assert pool_of(response).FindFileByName(file)
    assert files(ask(file_by_filename=file)) == files(response)


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        ".",
        "isogloss",
        "isogloss.v1",
        "isogloss.v1.EmbeddingService.",
        "isogloss.v1.EmbeddingService.Nothing",
        "isogloss.v1.EmbeddingService/Embed",
        "google.protobuf.FileDescriptorSet",  # which no file of the server imports
        "\0",
        "é" * 1000,
    ],
)
def test_unknown_symbols_are_not_found(ask: Ask, symbol: str) -> None:
    """A symbol that no file of the server declares is NOT_FOUND, and the stream continues."""
    assert ask(file_containing_symbol=symbol).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_all_fields_have_their_json_name(ask: Ask) -> None:
    """The descriptors have the JSON names, so that grpcurl prints elementType."""
    names = {
        field.name: field.json_name
        for symbol in (*SERVICES, "google.rpc.ErrorInfo")
        for file in files(ask(file_containing_symbol=symbol))
        for message in messages(file)
        for field in message.field
    }
    assert all(names.values())
    assert (names["element_type"], names["texts"], names["field_violations"]) == (
        "elementType",
        "texts",
        "fieldViolations",
    )


def test_v1_is_described_by_its_own_types(ask: Ask) -> None:
    """The file of v1 declares its own messages, which are those of v1alpha in another package."""
    [v1] = files(ask(file_containing_symbol=VERSIONS[0]))
    [v1alpha] = files(ask(file_containing_symbol=VERSIONS[1]))
    assert (v1.package, v1alpha.package) == ("grpc.reflection.v1", "grpc.reflection.v1alpha")
    assert "v1alpha" not in str(v1)
    assert str(v1) == str(v1alpha).replace("v1alpha", "v1")


def test_details_of_errors_are_decoded_by_reflection_alone(stub: Any, ask: Ask) -> None:
    """A tool that has only reflection can decode each detail of an error."""
    with pytest.raises(grpc.RpcError) as raised:
        stub.Embed(pb.EmbedRequest(texts=[" "]))
    error: Any = raised.value
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    decoded = {}
    for detail in status.details:
        name = detail.type_url.rpartition("/")[2]
        kind = pool_of(ask(file_containing_symbol=name)).FindMessageTypeByName(name)
        decoded[name] = message_factory.GetMessageClass(kind).FromString(detail.value)
    assert decoded["google.rpc.ErrorInfo"].reason == "EMPTY_TEXT"
    assert decoded["google.rpc.BadRequest"].field_violations[0].field == "texts[0]"
