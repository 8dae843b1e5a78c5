"""Keys files: their checks, how they are written, and how a server follows their changes."""

import json
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from isogloss.v1 import embedding_pb2
from isogloss_server.clock import SystemClock
from isogloss_server.errors import KeyExpiredError, KeyInvalidError, KeyRequiredError, SettingsError
from isogloss_server.security.keys import METHODS, Entry, KeyRing, changed, new_entry, read

from tests.support.keys import add_key
from tests.support.manual_clock import ManualClock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a keys file that does not exist."""
    return tmp_path / "keys.json"


def edited(file: Path, **fields: Any) -> None:
    """Sets fields of the first entry of a keys file; None removes a field."""
    content = json.loads(file.read_text())
    entry = content["keys"][0] | fields
    content["keys"][0] = {name: value for name, value in entry.items() if value is not None}
    file.write_text(json.dumps(content))


def test_the_file_holds_a_digest_and_not_the_key(file: Path) -> None:
    """A key that is added authenticates; no part of its secret is in the file."""
    key = add_key(file, "search")
    assert KeyRing(file, SystemClock()).authenticate([f"Bearer {key}"]).name == "search"
    secret = key.rpartition("_")[2]
    assert not [at for at in range(len(secret) - 7) if secret[at : at + 8] in file.read_text()]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer isogloss_0000000000000000_{secret}",
        "Bearer {prefix}_" + "A" * 43,
        "Bearer " + "x" * 100_000,
        b"Bearer bytes",
    ],
)
def test_every_wrong_key_has_the_same_error(file: Path, value: Any) -> None:
    """An unknown id, a wrong secret and a malformed value cannot be told apart."""
    key = add_key(file)
    prefix, _, secret = key.rpartition("_")
    shown = value if isinstance(value, bytes) else value.format(key=key, prefix=prefix, secret=secret)
    with pytest.raises(KeyInvalidError) as raised:
        KeyRing(file, SystemClock()).authenticate([shown])
    assert (raised.value.message, raised.value.figures) == ("the API key is not valid", {})


def test_two_values_are_not_a_key(file: Path) -> None:
    """Metadata with two keys is refused, even if the first one is valid."""
    key = add_key(file)
    with pytest.raises(KeyInvalidError):
        KeyRing(file, SystemClock()).authenticate([f"Bearer {key}", f"Bearer {key}"])


def test_the_scheme_is_case_insensitive(file: Path) -> None:
    """RFC 7235 compares the scheme without regard to case."""
    key = add_key(file)
    assert KeyRing(file, SystemClock()).authenticate([f"bearer {key}"]).name == "caller"


def test_without_a_key_an_optional_one_gives_no_models(file: Path) -> None:
    """A call without a key is refused, or has no rights to models if the service is open."""
    add_key(file)
    ring = KeyRing(file, SystemClock())
    with pytest.raises(KeyRequiredError):
        ring.authenticate([])
    assert ring.authenticate([], optional=True).models == frozenset()


def test_a_key_expires_at_its_time(file: Path) -> None:
    """A key is valid until its time of expiry, and then has an error of its own."""
    clock = ManualClock()
    key = add_key(file, expires=datetime.fromtimestamp(clock.now_s + 10, UTC))
    ring = KeyRing(file, clock)
    clock.advance(9)
    assert ring.authenticate([f"Bearer {key}"]).name == "caller"
    clock.advance(1)
    with pytest.raises(KeyExpiredError):
        ring.authenticate([f"Bearer {key}"])


def test_several_keys_of_a_name_are_valid_at_once(file: Path) -> None:
    """The old and the new key of a caller both authenticate it."""
    keys = [add_key(file, "search"), add_key(file, "search")]
    ring = KeyRing(file, SystemClock())
    assert {ring.authenticate([f"Bearer {key}"]).name for key in keys} == {"search"}


def test_scopes_can_name_every_method_that_computes() -> None:
    """The methods of scopes are those of the contract, except the two that describe the server."""
    service = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]
    assert {*METHODS, "Health", "ListModels"} == {method.name for method in service.methods}


BROKEN = {
    "not JSON": (lambda _: "{", "Invalid JSON"),
    "no version": (lambda text: text.replace('"version": 1,', ""), "version: Field required"),
    "another version": (lambda text: text.replace('"version": 1', '"version": 2'), "version: "),
    "no list": (lambda _: '{"version": 1, "keys": 3}', "keys: "),
    "not an entry": (lambda _: '{"version": 1, "keys": [4]}', "entry 1: "),
    "deep": (lambda _: "[" * 100_000, "Invalid JSON"),
    "not UTF-8": (lambda text: text.replace("caller", "call\udcff"), ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_file_is_an_error_that_names_the_place(file: Path, case: str) -> None:
    """A file that is not a keys file is a SettingsError, with the file and the place."""
    add_key(file)
    change, expected = BROKEN[case]
    file.write_bytes(change(file.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError) as raised:
        read(file)
    assert str(file) in str(raised.value)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "XYZ"),
        ("name", "two words"),
        ("name", ""),
        ("sha256", "00"),
        ("sha256", None),
        ("models", "isogloss-static"),
        ("methods", ["Delete"]),
        ("texts_per_minute", -1),
        ("tokens_per_minute", "5"),
        ("calls", 1.5),
        ("expires", "tomorrow"),
        ("expires", "2030-01-01T00:00:00"),
        ("quota", 5),
    ],
)
def test_an_invalid_field_is_named_with_its_entry(file: Path, field: str, value: Any) -> None:
    """The error names the entry by number and name, and the field; it does not quote the value of a digest."""
    add_key(file)
    edited(file, **{field: value})
    with pytest.raises(SettingsError) as raised:
        read(file)
    assert f"keys file {file}: entry 1 (" in str(raised.value)
    assert f"): {field}: " in str(raised.value)


def test_two_entries_of_one_id_are_an_error(file: Path) -> None:
    """The id finds an entry, so that it must be unique."""
    add_key(file)
    content = json.loads(file.read_text())
    content["keys"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"entry 2 \(caller\): id: another entry has it"):
        read(file)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    """Who can write the file can add a key of his own."""
    add_key(file)
    file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod go-w"):
        read(file)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_a_path_that_is_not_a_file_is_refused(file: Path, kind: str) -> None:
    """A folder, a pipe, which could block the server, and a missing file are errors that name the path."""
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(SettingsError, match=str(file)):
        read(file)


def test_the_file_is_written_for_its_owner_alone(file: Path) -> None:
    """The mode is 600, also after a change of a file that others could read; nothing else is left in the folder."""
    add_key(file)
    file.chmod(0o644)
    add_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_a_symbolic_link_is_not_written_through(file: Path, tmp_path: Path) -> None:
    """A link in the place of the file is an error, and its target stays as it is."""
    target = tmp_path / "target"
    add_key(target)
    before = target.read_bytes()
    file.symlink_to(target)
    with pytest.raises(SettingsError, match="symbolic link"):
        add_key(file)
    assert (target.read_bytes(), file.is_symlink()) == (before, True)


def test_an_error_leaves_the_old_file(file: Path) -> None:
    """If a change fails, the file is as before."""
    add_key(file)
    before = file.read_bytes()

    def fail() -> None:
        with changed(file) as entries:
            entries.clear()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.read_bytes() == before


def test_concurrent_changes_are_all_kept(file: Path) -> None:
    """Processes that add keys at the same time wait for each other."""
    with ProcessPoolExecutor(4) as pool:
        keys = list(pool.map(add_key, [file] * 12, [f"caller-{number}" for number in range(12)]))
    ring = KeyRing(file, SystemClock())
    assert [ring.authenticate([f"Bearer {key}"]).name for key in keys] == [f"caller-{n}" for n in range(12)]


def test_a_changed_file_adds_and_revokes_keys(file: Path) -> None:
    """After a reload, a new key is valid, and a removed one is not, also for a stream that has authenticated."""
    old = add_key(file, "old")
    ring = KeyRing(file, SystemClock())
    authenticated = ring.authenticate([f"Bearer {old}"])
    assert ring.current(authenticated) == authenticated
    with changed(file) as entries:
        entries.clear()
    new = add_key(file, "new")
    ring.reload()
    assert ring.authenticate([f"Bearer {new}"]).name == "new"
    for refused in (lambda: ring.authenticate([f"Bearer {old}"]), lambda: ring.current(authenticated)):
        with pytest.raises(KeyInvalidError):
            refused()


def test_changed_rights_apply_to_a_stream_that_lasts(file: Path) -> None:
    """The rights of an authenticated key are those of the file at the time."""
    key = add_key(file)
    ring = KeyRing(file, SystemClock())
    authenticated = ring.authenticate([f"Bearer {key}"])
    edited(file, models=["other"])
    ring.reload()
    assert ring.current(authenticated).models == {"other"}


@pytest.mark.parametrize("damage", ["damaged", "removed", "writable"])
def test_a_damaged_new_file_keeps_the_old_keys(file: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """The keys stay valid, and each problem is logged once."""
    key = add_key(file)
    ring = KeyRing(file, SystemClock())
    match damage:
        case "damaged":
            file.write_text("{")
        case "removed":
            file.unlink()
        case _:
            file.chmod(0o666)
    for _ in range(3):
        ring.reload()
    assert ring.authenticate([f"Bearer {key}"]).name == "caller"
    warned = [record.fields for record in caplog.records if record.levelname == "WARNING"]  # type: ignore[attr-defined]
    assert len(warned) == 1
    assert str(file) in warned[0]["cause"]


def test_a_repaired_file_is_read_again(file: Path) -> None:
    """A file that was damaged for a while is used as soon as it is valid."""
    key = add_key(file)
    content = file.read_bytes()
    ring = KeyRing(file, SystemClock())
    file.write_text("{")
    ring.reload()
    file.write_bytes(content)
    ring.reload()
    assert ring.authenticate([f"Bearer {key}"]).name == "caller"


def test_neither_key_nor_digest_is_in_a_representation(file: Path) -> None:
    """The repr of an authenticated key has no digest."""
    key = add_key(file)
    ring = KeyRing(file, SystemClock())
    shown = repr(ring.authenticate([f"Bearer {key}"])) + repr(ring)
    assert key not in shown
    assert read(file)[0].sha256 not in shown


def test_keys_have_256_random_bits() -> None:
    """Each key has an id and a secret of its own."""
    made = [new_entry(0.0, name="caller") for _ in range(50)]
    assert len({key.rpartition("_")[2] for key, _ in made}) == 50
    assert {len(key.split("_", 2)[2]) for key, _ in made} == {43}
    assert all(isinstance(entry, Entry) and entry.id in key for key, entry in made)
