"""Faults of a segment store's directory, drawn by a seed and made while a server uses it."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from vllm_redknot.reuse.folder import TEMPORARY_PREFIX, StoreFolder


class Fault(StrEnum):
    """What happens to the directory."""

    FLIPPED = "flipped bit"
    TRUNCATED = "truncated"
    DELETED = "deleted"
    FOREIGN = "another segment's bytes"
    GARBAGE = "random bytes"
    EVICTED = "half evicted by another process"
    READ_ONLY = "read-only directory"


OF_A_FILE: Final = (Fault.FLIPPED, Fault.TRUNCATED, Fault.DELETED, Fault.FOREIGN, Fault.GARBAGE)


class Faults:
    """Makes one fault after the other. A directory is read-only until the next fault, or `end`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.made: Counter[str] = Counter()
        self._folder = folder
        self._generator = random.Random(seed)
        # Permissions do not bind root: this is no file, so the store cannot clear it away, and writes nothing.
        self._obstacle = folder / f"{TEMPORARY_PREFIX}0"

    def make(self) -> Fault | None:
        """The next fault; None where there is no file yet that it could happen to."""
        self.end()
        fault = self._generator.choice(list(Fault))
        files = [self._folder / file.name for file in StoreFolder(self._folder).listing()]
        if not files:
            return None
        victim = self._generator.choice(sorted(files))
        # The server may evict or remove the file at any moment.
        with suppress(FileNotFoundError):
            self._make(fault, victim, files)
            self.made[fault.value] += 1
        return fault

    def end(self) -> None:
        """The directory can be written again."""
        if self._obstacle.exists():
            self._folder.chmod(0o700)
            self._obstacle.rmdir()

    def _make(self, fault: Fault, victim: Path, files: list[Path]) -> None:
        size = victim.stat().st_size
        if not size:
            fault = Fault.DELETED
        match fault:
            case Fault.FLIPPED:
                self._flip(victim, self._generator.randrange(size))
            case Fault.TRUNCATED:
                with victim.open("r+b") as file:
                    file.truncate(self._generator.randrange(size))
            case Fault.DELETED:
                victim.unlink()
            case Fault.FOREIGN:
                victim.write_bytes(self._generator.choice(sorted(files)).read_bytes())
            case Fault.GARBAGE:
                victim.write_bytes(self._generator.randbytes(min(size, 2**20)))
            case Fault.EVICTED:
                folder = StoreFolder(self._folder)
                with folder.locked():
                    folder.evict(sum(file.nbytes for file in folder.listing()) // 2)
            case Fault.READ_ONLY:
                self._obstacle.mkdir()
                self._folder.chmod(0o500)

    def _flip(self, path: Path, at: int) -> None:
        """One bit, in place: a server may be reading."""
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << self._generator.randrange(8)]))
