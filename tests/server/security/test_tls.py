"""Files of TLS: what is refused at the start, and when they are loaded again."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from isogloss_server.clock import SystemClock
from isogloss_server.errors import SettingsError
from isogloss_server.metrics import REGISTRY
from isogloss_server.security import tls
from isogloss_server.settings.declarations import Settings

from tests.support.certificates import BEGIN, HOST, Issued, ServerFiles, issue, issue_for, key_pem
from tests.support.manual_clock import ManualClock

AUTHORITY = trustme.CA()
VALID, NEXT = issue(AUTHORITY, HOST), issue(AUTHORITY, HOST)
DAY_S = 86_400.0


def metric(name: str, **labels: str) -> float:
    """Returns the value of a metric, or 0."""
    return REGISTRY.get_sample_value(f"isogloss_tls_{name}", labels) or 0.0


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the messages of the warnings so far."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("given", [("tls_cert",), ("tls_key",), ("tls_client_ca",), ("tls_cert", "tls_client_ca")])
def test_a_certificate_needs_its_key_and_clients_need_both(given: tuple[str, ...]) -> None:
    """The error names the flag that is set and those that are required."""
    settings = Settings(**dict.fromkeys(given, Path("x.pem")))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=f"--{given[0].replace('_', '-')} .*both --tls-cert and --tls-key"):
        tls.load(settings, SystemClock())


def test_without_files_there_is_no_tls() -> None:
    """The default is plain text."""
    assert tls.load(Settings(), SystemClock()) is None
    assert not Settings().uses_tls


def encrypted_key() -> bytes:
    """Returns a key with a passphrase."""
    return key_pem(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"secret"))


CHAIN, KEY = VALID
DAMAGED = {
    "certificate of another key": (issue(AUTHORITY, HOST)[0], KEY, "--tls-key, {key}, does not belong to --tls-cert"),
    "half a certificate": (CHAIN[:200], KEY, "--tls-cert, {cert}, does not consist of certificates in PEM"),
    "half a chain": (CHAIN + CHAIN[:200], KEY, "--tls-cert, {cert}, does not consist of certificates in PEM"),
    "empty certificate": (b"", KEY, "--tls-cert, {cert}, does not consist of certificates in PEM"),
    "bytes": (b"\xff" * 100, KEY, "--tls-cert, {cert}, does not consist of certificates in PEM"),
    "half a key": (CHAIN, KEY[:100], "--tls-key, {key}, is not a private key in PEM"),
    "certificate as key": (CHAIN, CHAIN, "--tls-key, {key}, is not a private key in PEM"),
    "key as certificate": (KEY, KEY, "--tls-cert, {cert}, does not consist of certificates in PEM"),
    "encrypted key": (CHAIN, encrypted_key(), "--tls-key, {key}, is encrypted"),
    "large file": (CHAIN, KEY + b"\n" * tls.MAX_FILE_BYTES, "--tls-key, {key}, is larger than 2,097,152 bytes"),
    "Ed25519": (*issue_for(AUTHORITY, key=ed25519.Ed25519PrivateKey.generate()), "unsupported kind of key"),
    "P-521": (*issue_for(AUTHORITY, key=ec.generate_private_key(ec.SECP521R1())), "unsupported kind of key"),
    "RSA of 1024": (*issue_for(AUTHORITY, key=rsa.generate_private_key(65537, 1024)), "key too small"),
}


@pytest.mark.parametrize(("certificate", "key", "expected"), DAMAGED.values(), ids=list(DAMAGED))
def test_files_that_do_not_work_are_refused_by_file_and_flag(
    certificate: bytes, key: bytes, expected: str, tmp_path: Path
) -> None:
    """The error names the file, its flag, and what is wrong."""
    files = ServerFiles(tmp_path, (certificate, key))
    with pytest.raises(SettingsError) as raised:
        files.load(SystemClock())
    assert expected.format(cert=files.certificate, key=files.key) in str(raised.value)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [(CHAIN[:100], "does not consist of certificates"), (CHAIN, "has no certificate of an authority")],
)
def test_authorities_of_clients_are_checked(contents: bytes, expected: str, tmp_path: Path) -> None:
    """A file of authorities that no client could satisfy is refused."""
    files = ServerFiles(tmp_path, VALID, AUTHORITY)
    files.client_ca.write_bytes(contents)
    with pytest.raises(SettingsError, match=f"--tls-client-ca, {files.client_ca}, {expected}"):
        files.load(SystemClock())


def make_missing(file: Path) -> None:
    """Removes a file."""
    file.unlink()


def make_pipe(file: Path) -> None:
    """Replaces a file by a pipe, whose opening would wait."""
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("change", "expected"), [(make_missing, "No such file or directory"), (make_pipe, "must be a regular file")]
)
def test_a_file_that_cannot_be_read_is_refused_by_file_and_flag(
    change: Callable[[Path], None], expected: str, tmp_path: Path
) -> None:
    """The error names the file and its flag."""
    files = ServerFiles(tmp_path, VALID)
    change(files.key)
    with pytest.raises(SettingsError, match=f"the file of --tls-key, {files.key}.* {expected}"):
        files.load(SystemClock())


def test_comments_around_certificates_are_no_damage(tmp_path: Path) -> None:
    """A bundle may have text of any language between its certificates."""
    files = ServerFiles(tmp_path, ("Zürich\n".encode() + CHAIN, KEY))
    files.load(SystemClock())


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_all_users_can_read_is_a_warning(
    mode: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner and a group may read the key."""
    files = ServerFiles(tmp_path, VALID)
    files.key.chmod(mode)
    files.load(SystemClock())
    assert [message.startswith("all users") for message in warnings(caplog)] == [True] * warned


def test_files_are_loaded_when_two_checks_find_the_same(tmp_path: Path) -> None:
    """Contents that are still being written, although valid, do not replace the certificate."""
    files = ServerFiles(tmp_path, VALID)
    certificates = files.load(SystemClock())
    old = certificates.context()
    files.write(NEXT)
    certificates.check()
    assert certificates.context() is old
    files.write(issue(AUTHORITY, HOST))
    certificates.check()
    assert certificates.context() is old
    certificates.check()
    assert certificates.context() is not old


def test_a_damaged_change_is_logged_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each damaged version of the files is one warning, which names file and flag; the next valid one is loaded."""
    files = ServerFiles(tmp_path, VALID)
    certificates = files.load(SystemClock())
    old, before = certificates.context(), metric("reloads_total", outcome="failed")
    files.key.write_bytes(KEY[:100])
    for _ in range(5):
        certificates.check()
    files.key.unlink()
    for _ in range(5):
        certificates.check()
    assert certificates.context() is old
    assert metric("reloads_total", outcome="failed") == before + 2
    causes = [getattr(record, "fields", {}).get("cause", "") for record in caplog.records]
    assert [str(files.key) in cause and "--tls-key" in cause for cause in causes] == [True, True]
    files.write(NEXT)
    certificates.check()
    certificates.check()
    assert certificates.context() is not old


def test_a_change_that_is_taken_back_loads_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The files are compared with what is loaded, so that a new date of a file alone is no change."""
    files = ServerFiles(tmp_path, VALID)
    certificates = files.load(SystemClock())
    old = certificates.context()
    files.certificate.write_bytes(b"")
    certificates.check()
    files.write(VALID)
    for _ in range(3):
        certificates.check()
    assert certificates.context() is old
    assert not warnings(caplog)


async def test_the_files_are_checked_as_time_passes(tmp_path: Path) -> None:
    """A server that was started follows its files until it is closed."""
    clock = ManualClock()
    files = ServerFiles(tmp_path, VALID)
    certificates = files.load(clock)
    old = certificates.context()
    certificates.start()
    files.write(NEXT)
    for sleeps in (1, 2, 3):
        await clock.wait_for_sleeps(sleeps)
        clock.advance(tls.CHECK_S)
    assert certificates.context() is not old
    await clock.wait_for_sleeps(4)
    certificates.close()
    with pytest.raises(asyncio.CancelledError):
        await certificates._watching  # type: ignore[misc]


async def test_an_unexpected_error_does_not_end_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A check that fails is logged, and the next one loads the files."""
    clock = ManualClock()
    files = ServerFiles(tmp_path, VALID)
    certificates = files.load(clock)
    old = certificates.context()
    with monkeypatch.context() as patched:
        patched.setattr(clock, "unix_s", None)
        certificates.start()
        await clock.wait_for_sleeps(1)
        clock.advance(tls.CHECK_S)
        await clock.wait_for_sleeps(2)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == ["internal error"]
    files.write(NEXT)
    for sleeps in (2, 3, 4):
        await clock.wait_for_sleeps(sleeps)
        clock.advance(tls.CHECK_S)
    assert certificates.context() is not old
    await clock.wait_for_sleeps(5)
    certificates.close()


def test_the_key_is_in_no_repr(tmp_path: Path) -> None:
    """What is loaded can be in a traceback or a log."""
    certificates = ServerFiles(tmp_path, VALID).load(SystemClock())
    assert "PRIVATE KEY" not in repr((certificates, certificates._loaded, certificates._loaded.contents))


def clock_at_the_begin() -> ManualClock:
    """Returns a clock whose date is the first on which the certificates of `issue_for` are valid."""
    clock = ManualClock()
    clock.now_s = BEGIN.timestamp()
    return clock


def expiring(folder: Path, clock: ManualClock, days: float) -> Any:
    """Returns a loaded certificate that is valid for `days`."""
    issued: Issued = issue_for(AUTHORITY, days=days)
    return ServerFiles(folder, issued).load(clock)


@pytest.mark.parametrize(("days", "near_days"), [(90, 14), (10, 2)])
def test_a_certificate_that_expires_soon_is_one_warning(
    days: float, near_days: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning comes two weeks before the end, or with the last fifth of a short lifetime, and again at the end."""
    clock = clock_at_the_begin()
    certificates = expiring(tmp_path, clock, days)
    clock.now_s += (days - near_days) * DAY_S
    certificates.check()
    assert warnings(caplog) == []
    for _ in range(3):
        clock.now_s += 1
        certificates.check()
    assert warnings(caplog) == ["the TLS certificate expires soon"]
    clock.now_s += near_days * DAY_S
    for _ in range(3):
        certificates.check()
    assert warnings(caplog)[1:] == ["the TLS certificate has expired"]


@pytest.mark.parametrize(("date_s", "warning"), [(-1, "is not valid yet"), (91 * DAY_S, "has expired")])
def test_a_certificate_that_is_not_valid_is_loaded_with_a_warning(
    date_s: float, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The date of the machine may be wrong, so the server starts."""
    clock = clock_at_the_begin()
    clock.now_s += date_s
    expiring(tmp_path, clock, 90)
    assert [message.endswith(warning) for message in warnings(caplog)] == [True]


def test_the_end_of_the_certificates_is_a_metric(tmp_path: Path) -> None:
    """The metrics have the expiry of the server's certificate, also after a change, and of the first authority."""
    clock = clock_at_the_begin()
    files = ServerFiles(tmp_path, issue_for(AUTHORITY, days=90), AUTHORITY)
    certificates = files.load(clock)
    name = "certificate_not_after_timestamp_seconds"
    assert metric(name, certificate="server") == clock.now_s + 90 * DAY_S
    assert metric(name, certificate="client_ca") > clock.now_s
    files.write(issue_for(AUTHORITY, days=30))
    certificates.check()
    certificates.check()
    assert metric(name, certificate="server") == clock.now_s + 30 * DAY_S
