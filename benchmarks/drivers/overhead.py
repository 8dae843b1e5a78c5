"""Load generator of the `overhead` workload: calls of a few callers in a closed loop.

    python -m benchmarks.drivers.overhead ADDRESS [ROOT_CERTIFICATES KEY]

Each line of its input is a JSON object with seconds and texts of a call; it makes such calls, and prints an object with
the number of texts.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import uvloop
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import workloads
from benchmarks.drivers.soak_calls import SERVICE

CALLERS = 4
MESSAGES = 64


def messages(texts_per_call: int) -> list[bytes]:
    """Returns requests of texts of mixed lengths."""
    texts = workloads.texts(workloads.WORKLOADS["batch"], MESSAGES * texts_per_call)
    parts = (texts[first : first + texts_per_call] for first in range(0, len(texts), texts_per_call))
    return [pb.EmbedRequest(texts=part).SerializeToString() for part in parts]


async def closed_loop(embed: Any, requests: list[bytes], seconds: float) -> int:
    """Makes calls for some seconds; returns their number."""
    calls, end_s = 0, time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal calls
        while time.perf_counter() < end_s:
            await embed(requests[(calls * CALLERS + number) % len(requests)])
            calls += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return calls


async def main(address: str, *secrets: bytes) -> None:
    """Makes the calls that the input asks for; with the certificate authorities and a key, over TLS."""
    metadata: tuple[tuple[str, str], ...] = ()
    channel = grpc.aio.insecure_channel(address)
    if secrets:
        authorities, key = secrets
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authorities))
        metadata = (("authorization", f"Bearer {key.decode('ascii')}"),)
    method: Any = channel.unary_unary(f"/{SERVICE}/Embed")
    requests: dict[int, list[bytes]] = {}
    async with channel:
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            texts = command["texts_per_call"]
            if texts not in requests:
                requests[texts] = messages(texts)
            calls = await closed_loop(
                lambda message: method(message, metadata=metadata), requests[texts], command["seconds"]
            )
            print(json.dumps({"texts": texts * calls}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *(Path(file).read_bytes() for file in sys.argv[2:])))
