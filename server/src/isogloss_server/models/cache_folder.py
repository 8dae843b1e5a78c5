"""The cache folder: copies of models' weights, and compiled graphs.

Its files can be made again at any time. Each is written whole under another name, synchronised, made read-only and
then renamed; it is never changed afterwards. Several processes, in containers too, may use one folder and share the
pages of its files. A process holds a shared lock on each file that it uses, so that no other one removes it.
"""

import contextlib
import fcntl
import mmap
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from isogloss_server import logs
from isogloss_server.errors import first_line

UNUSED_S = 7 * 24 * 3600.0  # files that no process has used for that long are removed
FILES = re.compile(r"[0-9a-f]{32}\.graph|[0-9a-f]{64}\.weights")
PARTIAL = re.compile(r"part-[a-z0-9_]{8}")  # a file being written; earlier versions had a folder with it
OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH
BLOCK_BYTES = 1 << 20
ADVICE = "name a folder that only the server's user can write by --graph-cache"


class MappedFile:
    """A memory-mapped file: pages are read on access, shared between processes, and can be released.

    Attributes:
        data: The bytes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Maps a file, which the stream may close afterwards; raises OSError, or ValueError if the file is empty."""
        # Copy on write, since OpenVINO requires writable memory, though it never writes.
        self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._descriptor = os.dup(stream.fileno())  # keeps the lock, too
        weakref.finalize(self, os.close, self._descriptor)
        self.data = memoryview(self._map)

    @property
    def path(self) -> Path:
        """A path of the file for this process, valid even if the file has no name any more."""
        folder = Path("/proc/self/fd")
        return (folder if folder.is_dir() else Path("/dev/fd")) / str(self._descriptor)

    def release_pages(self) -> None:
        """Releases the pages from this process's memory; they are read again on access."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)


class CacheFolder:
    """A folder that only the user of this process can write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._can_store = True

    def read(self, name: str) -> BinaryIO | None:
        """Opens a file, and locks it against removal; returns None if it is missing, or others can change it."""
        stream = self._open(name)
        if stream is not None:
            mark_used(stream)
        return stream

    def _open(self, name: str) -> BinaryIO | None:
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(descriptor)
        cause = _distrust(status) if stat.S_ISREG(status.st_mode) else "not a file"
        if cause:
            logs.warning("file in the cache folder ignored", file=self.path / name, cause=cause)
            os.close(descriptor)
            return None
        _lock(descriptor, fcntl.LOCK_SH)
        return os.fdopen(descriptor, "rb")

    def of_size(self, size: int, suffix: str) -> dict[str, BinaryIO]:
        """Opens the files of one size in bytes whose names end in `suffix`, by name, without marking them as used."""
        names = []
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(suffix)
                and FILES.fullmatch(entry.name)
                and entry.stat(follow_symlinks=False).st_size == size
            ]
        opened = {name: self._open(name) for name in names}
        return {name: stream for name, stream in opened.items() if stream is not None}

    def store(self, write: Callable[[BinaryIO], str], size: int = 0) -> BinaryIO | None:
        """Stores a file, if the folder can be written; a failure is logged once, and ends all further writing.

        Args:
            write: Writes the content to a stream, and returns the name of the file.
            size: The number of bytes that it will write, if known.

        Returns:
            The file, opened for reading, and locked against removal; or None.
        """
        if not self._can_store:
            return None
        try:
            self._check_free_space(size)
            return self._store(write)
        except (OSError, RuntimeError) as error:  # RuntimeError: raised by OpenVINO
            self._can_store = False
            cause = first_line(error)
            logs.warning("cannot write to the cache folder; serving from memory", folder=self.path, cause=cause)
            return None

    def _check_free_space(self, size: int) -> None:
        free = shutil.disk_usage(self.path).free
        if size > free:
            raise OSError(f"{size:,} bytes are needed, and {free:,} are free")

    def _store(self, write: Callable[[BinaryIO], str]) -> BinaryIO:
        stream, partial_file = self._partial_file()
        try:
            name = write(stream)
            stream.flush()
            os.fchmod(stream.fileno(), stat.S_IRUSR)
            os.fsync(stream.fileno())
            other = self.read(name)
            if other is not None and _are_equal(stream, other):  # another process was faster: its pages are shared
                partial_file.unlink()
                stream, other = other, stream
            else:
                partial_file.replace(self.path / name)
                _lock(stream.fileno(), fcntl.LOCK_SH)
            if other is not None:
                other.close()
        except BaseException:
            partial_file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # writes what is still buffered
                stream.close()
            raise
        stream.seek(0)
        return stream

    def _partial_file(self) -> tuple[BinaryIO, Path]:
        """Creates a file to be renamed. As long as this process lives, its lock keeps others from removing it."""
        while True:
            descriptor, path = tempfile.mkstemp(prefix="part-", dir=self.path)
            _lock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else another process has removed it before it was locked
                return os.fdopen(descriptor, "w+b"), Path(path)
            os.close(descriptor)

    def remove_unused(self) -> None:
        """Removes what a killed process has left, and files that no process uses or has used in the last 7 days."""
        with contextlib.suppress(OSError):  # a folder that cannot be written
            os.utime(self.path)
            now_s = self.path.stat().st_mtime  # of the clock that has stamped the files too
            for file in list(self.path.iterdir()):
                is_partial = PARTIAL.fullmatch(file.name) is not None
                if is_partial or (FILES.fullmatch(file.name) and file.lstat().st_mtime < now_s - UNUSED_S):
                    _remove_unlocked(file)


def open_cache(path: Path | None) -> CacheFolder | None:
    """Opens the cache folder, creates it if it is missing, and removes unused files.

    Returns:
        The folder; or None, with a warning in the log, if it cannot be created, or others can write to it: who can
        write a graph determines the vectors.
    """
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        cause = _distrust(path.stat())
    except OSError as error:
        cause = str(error.strerror)
    if cause:
        logs.warning("cache folder not used; serving from memory", folder=path, cause=cause, advice=ADVICE)
        return None
    folder = CacheFolder(path)
    folder.remove_unused()
    return folder


def mark_used(stream: BinaryIO) -> None:
    """Marks a file of the cache folder as used now."""
    with contextlib.suppress(OSError):  # of another user: a folder that came with the image
        os.utime(stream.fileno())


def _distrust(status: os.stat_result) -> str:
    """Returns the reason not to trust a file or folder, empty if none but this user and root can change it."""
    if status.st_uid not in {0, os.geteuid()}:
        return f"it belongs to the user {status.st_uid}, and the server runs as {os.geteuid()}"
    if status.st_mode & OTHERS_CAN_WRITE:
        return f"others can write to it: its mode is {stat.S_IMODE(status.st_mode):o}"
    return ""


def _lock(descriptor: int, kind: int) -> bool:
    """Locks a file as long as it is open; returns False if another process holds it, or there are no locks here."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _are_equal(one: BinaryIO, other: BinaryIO) -> bool:
    one.seek(0)
    other.seek(0)
    return all(block == other.read(BLOCK_BYTES) for block in blocks(one)) and not other.read(1)


def blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the rest of a stream in blocks."""
    while block := stream.read(BLOCK_BYTES):
        yield block


def _remove_unlocked(file: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not _lock(descriptor, fcntl.LOCK_EX):
                return
            if file.is_dir():
                for inner in file.glob("*.graph"):
                    inner.unlink()
                file.rmdir()
            else:
                file.unlink()
        finally:
            os.close(descriptor)
