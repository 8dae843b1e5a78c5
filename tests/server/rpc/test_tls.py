"""TLS and mutual TLS of the gRPC port: handshakes, names of callers, and new certificates under open calls."""

import asyncio
import contextlib
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from isogloss import AsyncClient, ClientOptions, UnavailableError
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc
from isogloss_server import logs
from isogloss_server.clock import SystemClock
from isogloss_server.rpc import server

from tests.support.certificates import HOST, ServerFiles, issue, issue_expired, issue_for, options
from tests.support.in_process import CountingEmbedder, ready_registry, serving

AUTHORITY, OTHER = trustme.CA(), trustme.CA()


def tls(folder: Path, issued: Any = None, client_ca: trustme.CA | None = None) -> dict[str, Any]:
    """Returns the arguments of `serving` for TLS."""
    files = ServerFiles(folder, issued or issue(AUTHORITY, HOST), client_ca)
    settings = {"tls_cert": files.certificate, "tls_key": files.key}
    settings |= {"tls_client_ca": files.client_ca} if client_ca else {}
    return {"certificates": files.load(SystemClock()), **settings}


async def failure(address: str, of_client: ClientOptions) -> str:
    """Returns the message of a client that cannot connect."""
    async with AsyncClient(address, options=of_client) as client:
        with pytest.raises(UnavailableError) as raised:
            await client.health()
    return raised.value.message


@pytest.mark.parametrize(
    ("issued", "of_client", "problem"),
    [
        (issue(AUTHORITY, HOST), ClientOptions(attempts=1), "require ClientOptions.tls"),
        (issue(AUTHORITY, HOST), options(OTHER), "certificate is not trusted"),
        (issue_expired(AUTHORITY, HOST), options(AUTHORITY), "certificate has expired"),
        (issue(AUTHORITY, "other.example"), options(AUTHORITY), "for another host name"),
        (issue(AUTHORITY, HOST), options(AUTHORITY, server_name="other.example"), "for another host name"),
    ],
    ids=["plain-text", "unknown-authority", "expired", "other-host", "other-server-name"],
)
async def test_a_refused_handshake_has_its_cause_in_the_error(
    issued: Any, of_client: ClientOptions, problem: str, tmp_path: Path
) -> None:
    """A client that cannot make a connection learns why."""
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path, issued)) as stub:
        assert problem in await failure(stub.address, of_client)


@pytest.mark.parametrize("client", [None, issue(OTHER, "worker")], ids=["none", "unknown-authority"])
async def test_mutual_tls_refuses_a_client_without_a_valid_certificate(client: Any, tmp_path: Path) -> None:
    """A server with an authority of clients accepts no others, and their error names the option."""
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path, client_ca=AUTHORITY)) as stub:
        assert "ClientOptions.client_certificate" in await failure(stub.address, options(AUTHORITY, client))


async def test_a_key_of_another_client_certificate_is_an_error_that_names_the_options(tmp_path: Path) -> None:
    """GRPC itself would report a failed connection without a cause."""
    mixed = (issue(AUTHORITY, "one")[0], issue(AUTHORITY, "two")[1])
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path, client_ca=AUTHORITY)) as stub:
        assert "client_key does not belong to client_certificate" in await failure(
            stub.address, options(AUTHORITY, mixed)
        )


DNS, URI = x509.DNSName("worker.example"), x509.UniformResourceIdentifier("spiffe://example/worker")


@pytest.mark.parametrize(
    ("names", "common_name", "caller"),
    [
        ([DNS, URI], "common", "spiffe://example/worker"),
        ([DNS, x509.DNSName("second.example")], "common", "worker.example"),
        ([], "common", "common"),
        ([x509.IPAddress(ip_address("10.0.0.1"))], "common", "common"),
        ([], "", ""),
        ([], "two\nlines", ""),
        ([], "schön", ""),
    ],
)
async def test_the_name_in_a_client_certificate_is_the_caller(
    names: list[x509.GeneralName], common_name: str, caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call has the first URI of the certificate as its caller, else a DNS name, else the common name."""
    callers: list[str] = []
    monkeypatch.setattr(logs, "call", lambda call, *_, **__: callers.append(call.caller))
    client = issue_for(AUTHORITY, *names, common_name=common_name, days=10_000)
    async with (
        serving(ready_registry(CountingEmbedder()), **tls(tmp_path, client_ca=AUTHORITY)) as stub,
        AsyncClient(stub.address, options=options(AUTHORITY, client)) as connected,
    ):
        await connected.health()
    assert callers == [caller]


async def test_a_caller_without_a_client_certificate_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an authority of clients, the server asks for no certificate."""
    callers: list[str] = []
    monkeypatch.setattr(logs, "call", lambda call, *_, **__: callers.append(call.caller))
    of_client = options(AUTHORITY, issue(AUTHORITY, "worker"))
    async with (
        serving(ready_registry(CountingEmbedder()), **tls(tmp_path)) as stub,
        AsyncClient(stub.address, options=of_client) as client,
    ):
        await client.health()
    assert callers == [""]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["p-256", "p-384"])
async def test_supported_kinds_of_keys_serve(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    """Clients can connect with each kind of key that the server accepts; the other tests use RSA."""
    address = x509.IPAddress(ip_address(HOST))
    issued = issue_for(AUTHORITY, address, key=ec.generate_private_key(curve), days=10_000)
    async with (
        serving(ready_registry(CountingEmbedder()), **tls(tmp_path, issued)) as stub,
        AsyncClient(stub.address, options=options(AUTHORITY)) as client,
    ):
        await client.health()


async def test_the_server_name_replaces_the_host_in_the_check(tmp_path: Path) -> None:
    """A client can connect by an address that is not in the certificate, if its options have a name that is."""
    issued = issue(AUTHORITY, "embeddings.example")
    async with (
        serving(ready_registry(CountingEmbedder()), **tls(tmp_path, issued)) as stub,
        AsyncClient(stub.address, options=options(AUTHORITY, server_name="embeddings.example")) as client,
    ):
        await client.health()


def handshake(address: str, version: ssl.TLSVersion) -> str | None:
    """Returns the version of TLS of a connection in which the client offers one version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY.cert_pem.bytes().decode())
    context.set_ciphers("ALL:@SECLEVEL=0")  # otherwise OpenSSL itself does not offer the old versions
    context.set_alpn_protocols(["h2"])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=30) as connection,
        context.wrap_socket(connection, server_hostname=HOST) as encrypted,
    ):
        return encrypted.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    """The server ends a handshake in which the client offers no version from 1.2 on."""
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path)) as stub:
        with pytest.raises(ssl.SSLError, match=r"UNEXPECTED_EOF|ALERT_PROTOCOL_VERSION"):
            await asyncio.to_thread(handshake, stub.address, ssl.TLSVersion.TLSv1_1)
        assert await asyncio.to_thread(handshake, stub.address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"


async def test_a_connection_that_makes_no_handshake_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that connects and sends nothing does not hold the connection."""
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.1)
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path)) as stub:
        reader, writer = await asyncio.open_connection(*stub.address.rsplit(":", 1))
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\x01" * 70_000,
        b"\x80" * 999,
    ],
    ids=["http", "http2", "long-record", "noise"],
)
async def test_bytes_that_are_no_handshake_harm_no_other_connection(sent: bytes, tmp_path: Path) -> None:
    """The server closes the connection, and serves the next one."""
    async with serving(ready_registry(CountingEmbedder()), **tls(tmp_path)) as stub:
        reader, writer = await asyncio.open_connection(*stub.address.rsplit(":", 1))
        writer.write(sent)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        async with AsyncClient(stub.address, options=options(AUTHORITY)) as client:
            await client.health()


async def test_a_stream_survives_a_new_certificate(tmp_path: Path) -> None:
    """An open stream continues on its connection; new connections get the new certificate, with its authority."""
    files = ServerFiles(tmp_path, issue(AUTHORITY, HOST))
    certificates = files.load(SystemClock())
    trusted = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())
    async with (
        serving(ready_registry(CountingEmbedder()), certificates=certificates) as stub,
        grpc.aio.secure_channel(stub.address, trusted) as channel,
    ):
        stream = embedding_pb2_grpc.EmbeddingServiceStub(channel).EmbedStream()
        for number in range(4):
            await stream.write(pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=["a"])))
            assert (await stream.read()).id == number
            if number == 1:
                files.write(issue(OTHER, HOST))
                certificates.check()
                certificates.check()
        assert "not trusted" in await failure(stub.address, options(AUTHORITY))
        async with AsyncClient(stub.address, options=options(OTHER)) as client:
            await client.health()
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_damaged_certificate_does_not_replace_the_old_one(tmp_path: Path) -> None:
    """New connections get the old certificate while the files are damaged."""
    files = ServerFiles(tmp_path, issue(AUTHORITY, HOST))
    certificates = files.load(SystemClock())
    async with serving(ready_registry(CountingEmbedder()), certificates=certificates) as stub:
        files.key.write_bytes(files.key.read_bytes()[:100])
        certificates.check()
        certificates.check()
        async with AsyncClient(stub.address, options=options(AUTHORITY)) as client:
            await client.health()


async def test_a_removed_authority_of_clients_accepts_no_new_connections(tmp_path: Path) -> None:
    """After another authority of clients is loaded, certificates of the old one are refused."""
    files = ServerFiles(tmp_path, issue(AUTHORITY, HOST), AUTHORITY)
    certificates = files.load(SystemClock())
    client = issue(AUTHORITY, "worker")
    async with serving(ready_registry(CountingEmbedder()), certificates=certificates) as stub:
        async with AsyncClient(stub.address, options=options(AUTHORITY, client)) as connected:
            await connected.health()
        OTHER.cert_pem.write_to_path(files.client_ca)
        certificates.check()
        certificates.check()
        assert "client_certificate" in await failure(stub.address, options(AUTHORITY, client))
        async with AsyncClient(stub.address, options=options(AUTHORITY, issue(OTHER, "worker"))) as connected:
            await connected.health()
