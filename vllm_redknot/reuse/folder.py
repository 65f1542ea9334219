"""A directory of segment files: names, permissions, the writers' lock, atomic writes, eviction. Knows no contents.

Readers take no lock: a file appears whole by a rename, never changes, and can be read on after it was unlinked.
Writers and evictions hold the directory's lock, so a temporary seen by its holder belongs to a process that died.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from vllm_redknot.reuse.faults import Miss, SegmentError
from vllm_redknot.reuse.scope import FILE_NAME

LOCK_NAME: Final = ".lock"
TEMPORARY_PREFIX: Final = ".writing-"
OWN_NAME: Final = re.compile(
    rf"{FILE_NAME.pattern}|{re.escape(LOCK_NAME)}|{re.escape(TEMPORARY_PREFIX)}[0-9]+"
)
LOCK_POLL_S: Final = 0.005
WRITE_BYTES: Final = 8 * 2**20
OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link or a pipe in a segment's place is neither followed nor waited for."""


class StoredFile(NamedTuple):
    """One segment file as listed."""

    name: str
    scope: str
    content: str
    nbytes: int
    used_ns: int
    """Modification time: when it was stored or last served, by any process."""


class StoreFolder:
    """Raises SegmentError for whatever the operating system refuses; each method names the reasons of its own."""

    def __init__(self, path: Path, lock_timeout_s: float = 30.0) -> None:
        self.path = path
        self._lock_timeout_s = lock_timeout_s

    def listing(self) -> list[StoredFile]:
        """All segment files, least recently used first; nothing where the directory does not exist yet."""
        found = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    name = FILE_NAME.fullmatch(entry.name)
                    if name is None:
                        continue
                    # Another process may have evicted it since.
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append(
                            StoredFile(entry.name, name[1], name[2], status.st_size, status.st_mtime_ns)
                        )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SegmentError.of_os_error(error, str(self.path)) from error
        return sorted(found, key=lambda file: (file.used_ns, file.name))

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with _faults(str(self.path / name)):
            try:
                (self.path / name).lstat()
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[int, int]]:
        """A file descriptor for reading and the file's size. A SegmentError within gets the path in front.

        SegmentError FOREIGN for what is no regular file.
        """
        path = self.path / name
        with _faults(str(path)):
            descriptor = os.open(path, OPEN_FLAGS)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise SegmentError(Miss.FOREIGN, "not a regular file")
                yield descriptor, status.st_size
            except SegmentError as error:
                raise SegmentError(error.reason, f"{path}: {error}") from error
            finally:
                os.close(descriptor)

    def touch(self, name: str) -> None:
        """Make a file the most recently used. Where that is not permitted, its place stays."""
        with suppress(OSError):
            os.utime(self.path / name, follow_symlinks=False)

    def remove(self, name: str) -> bool:
        """Unlink a file; whether it was there. Processes that have it open read on."""
        with _faults(str(self.path / name)):
            try:
                (self.path / name).unlink()
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The right to write and evict, for one process at a time; a killed process gives it up. SegmentError BUSY."""
        with _faults(str(self.path)):
            self._prepare()
            descriptor = os.open(
                self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        try:
            self._wait_for(descriptor)
            try:
                yield
            finally:
                # Closing would not unlock where a child process was forked meanwhile.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def remove_temporaries(self) -> int:
        """Clean up after killed processes; call it with the lock held. Returns how many there were."""
        removed = 0
        with _faults(str(self.path)):
            for path in self.path.glob(f"{TEMPORARY_PREFIX}*"):
                path.unlink()
                removed += 1
        return removed

    def evict(self, max_bytes: int, keep: Collection[str] = ()) -> list[StoredFile]:
        """Unlink least recently used files, those named in `keep` apart, until all are within `max_bytes`.

        Call it with the lock held. Returns what was unlinked. SegmentError NO_ROOM, and nothing unlinked, where what
        is kept exceeds `max_bytes`.
        """
        files = self.listing()
        excess = sum(file.nbytes for file in files) - max_bytes
        idle = [file for file in files if file.name not in keep]
        if excess > sum(file.nbytes for file in idle):
            raise SegmentError(Miss.NO_ROOM, f"{self.path}: what is in use exceeds {max_bytes} bytes")
        evicted = []
        for file in idle:
            if excess <= 0:
                break
            if self.remove(file.name):
                evicted.append(file)
            excess -= file.nbytes
        return evicted

    def write(self, name: str, parts: Iterable[memoryview]) -> None:
        """Add a file that is whole and on the disk, or not there. Call it with the lock held."""
        temporary = self.path / f"{TEMPORARY_PREFIX}{os.getpid()}"
        with _faults(str(self.path / name)):
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                try:
                    for part in parts:
                        _write_all(descriptor, part)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                temporary.rename(self.path / name)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
            self._sync()

    def _prepare(self) -> None:
        """Make the directory, for its owner alone; one that is not ours alone is refused with the remedy."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            mode = self.path.stat().st_mode
            if mode & 0o077:
                self._close_to_others()

    def _close_to_others(self) -> None:
        names = sorted(path.name for path in self.path.iterdir())
        strange = [name for name in names if not OWN_NAME.fullmatch(name)]
        if strange:
            raise SegmentError(
                Miss.DENIED,
                f"{self.path} is open to other users and holds other files, such as {strange[0]!r:.60}: give a"
                " directory of its own, or chmod it to 0700",
            )
        self.path.chmod(0o700)

    def _wait_for(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise SegmentError(
                        Miss.BUSY,
                        f"{self.path}: another process has held the lock for {self._lock_timeout_s:g} s",
                    ) from error
            except OSError as error:
                raise SegmentError.of_os_error(error, str(self.path / LOCK_NAME)) from error
            time.sleep(LOCK_POLL_S)

    def _sync(self) -> None:
        """Put the directory's entries on the disk."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, part: memoryview) -> None:
    while part:
        part = part[os.write(descriptor, part[:WRITE_BYTES]) :]


@contextmanager
def _faults(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SegmentError.of_os_error(error, what) from error
