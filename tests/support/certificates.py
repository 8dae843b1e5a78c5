"""Certificates for tests, and the files of a server's TLS."""

import datetime as dt
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from isogloss import ClientOptions
from isogloss_server.clock import Clock
from isogloss_server.security.tls import Certificates, TlsFiles

HOST = "127.0.0.1"
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # of certificates of `issue_for`
EXPIRED = [
    dt.datetime(2020, month, 1, tzinfo=dt.UTC) for month in (1, 12)
]  # the begin and the end of such certificates
Issued = tuple[bytes, bytes]  # a certificate and its key, in PEM


def issue(authority: trustme.CA, *names: str, **options: Any) -> Issued:
    """Returns a certificate for host names and addresses."""
    issued = authority.issue_cert(*names, **options)
    return b"".join(pem.bytes() for pem in issued.cert_chain_pems), issued.private_key_pem.bytes()


def issue_expired(authority: trustme.CA, *names: str) -> Issued:
    """Returns a certificate that has expired."""
    return issue(authority, *names, not_before=EXPIRED[0], not_after=EXPIRED[1])


def issue_for(
    authority: trustme.CA, *names: x509.GeneralName, common_name: str = "", key: Any = None, days: float = 90
) -> Issued:
    """Returns a certificate of kinds that trustme does not make, valid from 2026-01-01 on for `days`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    issuer: Any = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + dt.timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not attributes)
    pem = builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem, key_pem(key)


def key_pem(key: Any, encryption: Any = None) -> bytes:
    """Returns a private key in PEM."""
    encryption = encryption or serialization.NoEncryption()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


def options(authority: trustme.CA, client: Issued | None = None, **fields: Any) -> ClientOptions:
    """Returns options of a client that trusts an authority, and makes one attempt."""
    certificate, key = client or (None, None)
    return ClientOptions(
        tls=True,
        attempts=1,
        root_certificates=authority.cert_pem.bytes(),
        client_certificate=certificate,
        client_key=key,
        **fields,
    )


class ServerFiles:
    """The files of a server's TLS in a folder.

    Attributes:
        certificate, key: The paths of the server's.
        client_ca: The path of the authority of clients.
        flags: The flags of `isogloss-server serve`.
    """

    def __init__(self, folder: Path, issued: Issued, client_ca: trustme.CA | None = None) -> None:
        self.certificate, self.key, self.client_ca = (folder / f"{name}.pem" for name in ("cert", "key", "client-ca"))
        self.key.touch(0o600)
        self.flags = ["--tls-cert", str(self.certificate), "--tls-key", str(self.key)]
        self.is_mutual = client_ca is not None
        self.write(issued)
        if client_ca is not None:
            client_ca.cert_pem.write_to_path(self.client_ca)
            self.flags += ["--tls-client-ca", str(self.client_ca)]

    def write(self, issued: Issued) -> None:
        """Replaces the certificate and its key."""
        self.certificate.write_bytes(issued[0])
        self.key.write_bytes(issued[1])

    def load(self, clock: Clock) -> Certificates:
        """Loads the files, as the server does."""
        return Certificates(TlsFiles(self.certificate, self.key, self.client_ca if self.is_mutual else None), clock)
