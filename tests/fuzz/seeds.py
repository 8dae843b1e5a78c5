"""Every method of the server, with valid requests as seeds."""

import struct
from dataclasses import dataclass

import numpy as np
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from isogloss.v1 import embedding_pb2 as pb

OURS = "/isogloss.v1.EmbeddingService/"


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path, the type and the seeds of its requests, and whether requests or responses are streamed."""

    path: str
    request: type[Message]
    seeds: tuple[Message, ...]
    streams: bool = False


def matrix(rows: int = 2, columns: int = 4, kind: int = pb.ELEMENT_TYPE_FLOAT32) -> pb.Matrix:
    """Returns a matrix of ones."""
    data = np.ones((rows, columns), "<f4" if kind == pb.ELEMENT_TYPE_FLOAT32 else "i1").tobytes()
    scales = [1.0] * rows if kind == pb.ELEMENT_TYPE_INT8 else []
    return pb.Matrix(data=data, rows=rows, columns=columns, element_type=kind, row_scales=scales)


def texts(*lines: str) -> pb.Items:
    """Returns a side of a comparison that has texts."""
    return pb.Items(texts=pb.TextList(texts=lines, input_type=pb.INPUT_TYPE_QUERY))


def vectors(kind: int = pb.ELEMENT_TYPE_FLOAT32) -> pb.Items:
    """Returns a side of a comparison that has vectors."""
    return pb.Items(vectors=pb.VectorList(vectors=matrix(kind=kind), space_id="s"))


EMBEDS = (
    pb.EmbedRequest(texts=["Good morning", "Добрый день", "早上好"]),
    pb.EmbedRequest(texts=["a", " ", ""], allow_partial=True, normalize=False, dimensions=64),
    pb.EmbedRequest(texts=["b " * 50] * 5, element_type=pb.ELEMENT_TYPE_INT8, truncation=pb.TRUNCATION_START),
    pb.EmbedRequest(texts=["c"], priority=pb.PRIORITY_BULK, model="isogloss-static", input_type=pb.INPUT_TYPE_DOCUMENT),
)
SIMILARITIES = (
    pb.SimilarityRequest(queries=texts("one", "two"), candidates=texts("three"), all_pairs=pb.AllPairs()),
    pb.SimilarityRequest(queries=texts("one"), candidates=texts("two", "six"), nearest=pb.Nearest(k=3, min_score=-1)),
    pb.SimilarityRequest(queries=vectors(), candidates=vectors(pb.ELEMENT_TYPE_INT8), metric=pb.METRIC_EUCLIDEAN),
    pb.SimilarityRequest(queries=vectors(), pairwise=pb.Pairwise(), metric=pb.METRIC_MANHATTAN),
)
STREAMED = tuple(
    pb.EmbedStreamRequest(id=number, request=request, timeout=duration_pb2.Duration(seconds=60))
    for number, request in enumerate(EMBEDS)
)
HEALTH_CHECK = (health_pb2.HealthCheckRequest(service="isogloss-static"), health_pb2.HealthCheckRequest())
ReflectionRequest = reflection_pb2.ServerReflectionRequest
REFLECTIONS = (
    ReflectionRequest(list_services=""),
    ReflectionRequest(file_containing_symbol="isogloss.v1.EmbeddingService"),
    ReflectionRequest(file_containing_symbol="isogloss.v1.EmbeddingService.Embed"),
    ReflectionRequest(file_by_filename="isogloss/v1/embedding.proto"),
    ReflectionRequest(all_extension_numbers_of_type="isogloss.v1.EmbedRequest"),
)
METHODS = {
    "Embed": Method(OURS + "Embed", pb.EmbedRequest, EMBEDS),
    "EmbedStream": Method(OURS + "EmbedStream", pb.EmbedStreamRequest, STREAMED, streams=True),
    "Similarity": Method(OURS + "Similarity", pb.SimilarityRequest, SIMILARITIES),
    "Health": Method(OURS + "Health", pb.HealthRequest, (pb.HealthRequest(model="isogloss-static"),)),
    "ListModels": Method(OURS + "ListModels", pb.ListModelsRequest, (pb.ListModelsRequest(),)),
    "Check": Method("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, HEALTH_CHECK),
    "List": Method("/grpc.health.v1.Health/List", health_pb2.HealthListRequest, (health_pb2.HealthListRequest(),)),
    "Watch": Method("/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest, HEALTH_CHECK, streams=True),
    "Reflection": Method(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ReflectionRequest, REFLECTIONS, streams=True
    ),
}


def nested(depth: int) -> bytes:
    """Returns nested groups of an unknown field."""
    return b"\xa3\x06" * depth + b"\xa4\x06" * depth


def unusual(method: Method) -> list[bytes]:
    """Returns requests that random mutation rarely produces: nested, unknown, large, truncated, invalid UTF-8."""
    seed = method.seeds[0].SerializeToString()
    unknown = b"\xf8\xff\xff\xff\x0f\x01" + b"\xa2\x06\x03abc"  # fields 536870911 and 100
    return [
        b"",
        nested(20),
        nested(50_000),
        seed + unknown,
        seed * 50,
        seed[:-1],
        b"\x0a\x02\xc3\x28",  # field 1, invalid UTF-8
        b"\x12\x02\xc3\x28",
        b"\x0a\x00" * 300_000,  # field 1, empty, many times
        b"\x0a" + b"\xff" * 9 + b"\x01",  # a length of 2**64 - 1
        b"\x0a" + struct.pack("<I", 0xFFFFFFFF),
        b"\x08" + b"\x80" * 20,  # an endless varint
        b"\x00" * 1000,
    ]
