"""The cache folder: copies of weights and compiled graphs, shared by several processes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from isogloss_server.errors import ModelFilesError
from isogloss_server.models import cache_folder, model_folder
from isogloss_server.models.cache_folder import CacheFolder, open_cache
from isogloss_server.models.model_folder import ModelFile, ModelFolder

WEIGHTS = "model.safetensors"
GRAPH = f"{'a' * 32}.graph"
LONG_AGO_S = 10**9  # in 2001


@pytest.fixture
def cache(tmp_path: Path) -> CacheFolder:
    """An empty cache folder."""
    return opened(tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with weights of several blocks."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / WEIGHTS).write_bytes(os.urandom(2 * cache_folder.BLOCK_BYTES + 12_345))
    return folder


def opened(path: Path) -> CacheFolder:
    cache = open_cache(path)
    assert cache is not None
    return cache


def located(source: Path, cache: CacheFolder | None) -> ModelFolder:
    return model_folder.locate(str(source), cache)


def mapped(source: Path, cache: CacheFolder) -> ModelFile:
    file = located(source, cache).map(WEIGHTS)
    assert file.mapped is not None
    return file


def copies(cache: CacheFolder) -> list[Path]:
    return sorted(cache.path.glob("*.weights"))


def write_graph(stream: BinaryIO) -> str:
    stream.write(b"graph")
    return GRAPH


def test_a_copy_is_whole_read_only_and_named_by_its_digest(source: Path, cache: CacheFolder) -> None:
    """A copy has the bytes of the source in a file of its own, which the source's digest names, and is read-only."""
    file = mapped(source, cache)
    (copy,) = copies(cache)
    assert copy.read_bytes() == bytes(file.data) == (source / WEIGHTS).read_bytes()
    assert copy.name == f"{file.digest}.weights"
    assert copy.stat().st_mode & 0o777 == 0o400
    assert copy.stat().st_ino != (source / WEIGHTS).stat().st_ino
    assert [entry.name for entry in cache.path.iterdir()] == [copy.name]


def test_a_second_process_shares_the_copy(source: Path, cache: CacheFolder) -> None:
    """A copy that is already there is not written again, so that processes share its pages."""
    first = mapped(source, cache)
    inode = copies(cache)[0].stat().st_ino
    second = mapped(source, opened(cache.path))
    assert [copy.stat().st_ino for copy in copies(cache)] == [inode]
    assert first.mapped is not None
    assert second.mapped is not None
    assert first.mapped.path.stat().st_ino == second.mapped.path.stat().st_ino == inode


def test_processes_that_write_at_the_same_time_share_the_copy(source: Path, cache: CacheFolder) -> None:
    """If another process has stored the same copy in the meantime, that one is used."""
    stored = mapped(source, cache)

    def write(stream: BinaryIO) -> str:
        stream.write(stored.data)
        return f"{stored.digest}.weights"

    inode = copies(cache)[0].stat().st_ino
    stream = cache.store(write)
    assert stream is not None
    with stream:
        assert os.fstat(stream.fileno()).st_ino == inode
    assert [copy.stat().st_ino for copy in cache.path.iterdir()] == [inode]


@pytest.mark.parametrize("place", [0, cache_folder.BLOCK_BYTES, -1])
@pytest.mark.parametrize("harm", ["flipped", "cut", "longer"])
def test_a_damaged_copy_is_written_anew(source: Path, cache: CacheFolder, place: int, harm: str) -> None:
    """A copy that differs from the source anywhere is replaced, and the bytes served are the source's."""
    mapped(source, cache)
    (copy,) = copies(cache)
    content = bytearray(copy.read_bytes())
    content[place] ^= 255
    copy.chmod(0o600)
    copy.write_bytes({"flipped": content, "cut": content[:-7], "longer": content + b"x"}[harm])
    assert bytes(mapped(source, cache).data) == (source / WEIGHTS).read_bytes()
    assert copy.read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_copy_does_not_follow_its_source(source: Path, cache: CacheFolder) -> None:
    """If the source changes in place, a mapped copy keeps its bytes, and the next reader gets a copy of its own."""
    before = mapped(source, cache)
    expected = bytes(before.data)
    with (source / WEIGHTS).open("r+b") as stream:
        stream.seek(cache_folder.BLOCK_BYTES + 5)
        stream.write(b"changed in place")
    after = mapped(source, cache)
    assert bytes(before.data) == expected
    assert bytes(after.data) == (source / WEIGHTS).read_bytes() != expected
    assert len(copies(cache)) == 2


def test_a_file_is_read_once(source: Path, cache: CacheFolder) -> None:
    """The digest and the content stay those of the first read, whatever becomes of the file."""
    folder = located(source, cache)
    first = folder.map(WEIGHTS)
    (source / WEIGHTS).unlink()
    assert folder.digest(WEIGHTS) == first.digest
    assert folder.map(WEIGHTS) is folder.read(WEIGHTS) is first


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_a_folder_that_others_can_write_is_not_used(
    source: Path, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can write to the folder could determine the vectors: it is not used, and a warning names the folder."""
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    cache = open_cache(folder)
    assert cache is None
    assert bytes(located(source, cache).map(WEIGHTS).data) == (source / WEIGHTS).read_bytes()
    assert list(folder.iterdir()) == []
    (warning,) = caplog.records
    assert (warning.levelname, warning.fields["folder"]) == ("WARNING", folder)  # type: ignore[attr-defined]
    assert f"its mode is {mode:o}" in warning.fields["cause"]  # type: ignore[attr-defined]


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that belongs to a user other than the server's and root is not used."""
    owner = os.geteuid()
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(tmp_path / "cache", 12_345, -1)
    assert open_cache(tmp_path / "cache") is None
    assert "not used" in caplog.text


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_can_write_is_not_used(
    cache: CacheFolder, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that others can change is ignored, even in a folder that they cannot write to."""
    stored = cache.store(write_graph)
    assert stored is not None
    stored.close()
    (cache.path / GRAPH).chmod(mode)
    assert cache.read(GRAPH) is None
    assert "ignored" in caplog.text


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_plain_files_are_read(cache: CacheFolder, tmp_path: Path, kind: str) -> None:
    """A link, a folder or a pipe in place of a file counts as missing, and does not block."""
    (tmp_path / "other").write_bytes(b"x")
    place = cache.path / GRAPH
    {"link": lambda: place.symlink_to(tmp_path / "other"), "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}[
        kind
    ]()
    assert cache.read(GRAPH) is None


@pytest.fixture
def killed(cache: CacheFolder) -> None:
    """A process that was killed while it wrote a file."""
    program = (
        "import sys; from pathlib import Path; from isogloss_server.models.cache_folder import open_cache\n"
        "def write(stream): stream.write(b'half'); stream.flush(); print('writing', flush=True); sys.stdin.read()\n"
        f"open_cache(Path({str(cache.path)!r})).store(write)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        opened(cache.path)
        assert len(list(cache.path.glob("part-*"))) == 1, "a file that is being written is not removed"
        process.kill()


@pytest.mark.usefixtures("killed")
def test_what_a_killed_process_has_left_is_removed(cache: CacheFolder) -> None:
    """A partial file of a process that lives is kept; after SIGKILL, the next start removes it."""
    assert len(list(cache.path.glob("part-*"))) == 1
    opened(cache.path)
    assert list(cache.path.iterdir()) == []


def test_partial_folders_of_earlier_versions_are_removed(cache: CacheFolder) -> None:
    """Earlier versions wrote graphs in folders, which a SIGKILL left."""
    left = cache.path / "part-ab3_9xyz"
    left.mkdir()
    (left / GRAPH).write_bytes(b"half a graph")
    opened(cache.path)
    assert list(cache.path.iterdir()) == []


@pytest.fixture
def old_files(source: Path, cache: CacheFolder) -> list[Path]:
    """An old graph, an old copy, and a file of somebody else, none of them used for years."""
    stored = cache.store(write_graph)
    assert stored is not None
    stored.close()
    mapped(source, cache)
    foreign = cache.path / "notes.txt"
    foreign.write_text("mine")
    files = [*copies(cache), cache.path / GRAPH, foreign]
    for file in files:
        os.utime(file, (LONG_AGO_S, LONG_AGO_S))
    return files


def test_files_unused_for_a_week_are_removed(cache: CacheFolder, old_files: list[Path]) -> None:
    """Copies and graphs that no process has used for a week are removed at the next start; other files never."""
    opened(cache.path)
    assert list(cache.path.iterdir()) == old_files[-1:]


def test_files_in_use_are_kept(source: Path, cache: CacheFolder, old_files: list[Path]) -> None:
    """A copy that a running process has mapped is kept, however old it is."""
    in_use = mapped(source, cache)
    os.utime(old_files[0], (LONG_AGO_S, LONG_AGO_S))
    opened(cache.path)
    assert old_files[0].exists()
    assert bytes(in_use.data) == (source / WEIGHTS).read_bytes()


def test_files_used_lately_are_kept(source: Path, cache: CacheFolder, old_files: list[Path]) -> None:
    """The use of a copy counts, not its age."""
    mapped(source, cache)
    opened(cache.path)
    assert old_files[0].exists()
    assert not old_files[1].exists()


def test_a_locked_file_is_not_removed(cache: CacheFolder, old_files: list[Path]) -> None:
    """The lock of another process keeps a file."""
    with old_files[1].open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        opened(cache.path)
        assert old_files[1].exists()


def test_a_full_disk_is_one_warning(
    source: Path, cache: CacheFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a copy cannot be written, the source is read into memory; one warning is logged, and no part remains."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    file = located(source, cache).map(WEIGHTS)
    assert (file.mapped, bytes(file.data)) == (None, (source / WEIGHTS).read_bytes())
    assert cache.store(write_graph) is None
    assert list(cache.path.iterdir()) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_disk_with_too_little_space_is_not_filled(source: Path, cache: CacheFolder) -> None:
    """If a copy would not fit, it is not begun."""
    assert cache.store(lambda _: pytest.fail("begun"), size=2**60) is None


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_not_a_file_is_missing(source: Path, cache: CacheFolder, kind: str) -> None:
    """A pipe or a folder in place of a file of the model is an error, and does not block."""
    (source / WEIGHTS).unlink()
    if kind == "pipe":
        os.mkfifo(source / WEIGHTS)
    else:
        (source / WEIGHTS).mkdir()
    with pytest.raises(ModelFilesError, match=f"has no file {WEIGHTS}"):
        located(source, cache).map(WEIGHTS)
