"""Server reflection, v1 and v1alpha: describes the services, and the details of errors, to tools such as grpcurl."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from isogloss.v1 import embedding_pb2

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")
METHOD = "ServerReflectionInfo"
FILES = (
    embedding_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)


class ServedFiles:
    """A DescriptorPool that finds the file of a method too. protobuf does not, and ghz asks for nothing else."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the pool, whose class cannot be subclassed."""
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the name is protobuf's
        """Returns the file that declares a service, a method, a type, a value or a field.

        Raises:
            KeyError: no file declares the symbol.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def add_reflection(services: Sequence[str], server: grpc.aio.Server) -> None:
    """Adds both versions of the reflection service, which list `services` and themselves.

    grpcio-reflection has v1alpha alone. The messages of v1 are the same on the wire.
    """
    servicer = reflection.aio.ReflectionServicer((*services, V1, V1ALPHA), pool=served_files())
    handler: Any = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {METHOD: handler}) for name in (V1, V1ALPHA))
    )


def served_files() -> ServedFiles:
    """Returns the files of all services and of the details of errors, with their imports and with JSON names."""
    files: dict[str, FileDescriptorProto] = {}
    for file in FILES:
        _add_with_imports(file, files)
    of_v1alpha = text_format.MessageToString(files[reflection_pb2.DESCRIPTOR.name])
    of_v1 = text_format.Parse(of_v1alpha.replace("v1alpha", "v1"), FileDescriptorProto())
    pool = DescriptorPool()
    for proto in (*files.values(), of_v1):
        pool.AddSerializedFile(proto.SerializeToString())
    return ServedFiles(pool)


def _add_with_imports(file: FileDescriptor, files: dict[str, FileDescriptorProto]) -> None:
    """Adds a file to `files` after those that it imports."""
    if file.name in files:
        return
    for imported in file.dependencies:
        _add_with_imports(imported, files)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        _add_json_names(message, file.message_types_by_name[message.name])
    files[file.name] = proto


def _add_json_names(proto: DescriptorProto, message: Descriptor) -> None:
    """Sets the JSON names of all fields, which protoc leaves out of the descriptors for Python."""
    for field in proto.field:
        field.json_name = message.fields_by_name[field.name].json_name
    for nested in proto.nested_type:
        _add_json_names(nested, message.nested_types_by_name[nested.name])
