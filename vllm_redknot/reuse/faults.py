"""Why a segment was not served or not stored: what the store counts, and the error that carries it inside."""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final


class ReuseError(ValueError):
    """Wrong use: a span, a budget or a fingerprint that cannot be. Says what is valid."""


class Miss(Enum):
    """Reasons. A miss is never wrong: what is not served is computed."""

    ABSENT = "absent"
    """Not stored, or evicted since."""
    MISSING = "missing"
    """Its file went away after it was listed, such as by another process's eviction."""
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    """Bytes that do not match their checksum, or are no segment at all."""
    FOREIGN = "foreign"
    """A sound segment of another model, other settings or other tokens."""
    DENIED = "denied"
    """No permission."""
    FULL = "full"
    """No space or quota left on the device."""
    IO = "io"
    """Any other error of the operating system."""
    SLOW = "slow"
    """Not there within the deadline; it may arrive for the next request."""
    NO_ROOM = "no_room"
    """Larger than the budget, or the rest of the budget is leased."""
    BUSY = "busy"
    """Too much waits to be written, or another process holds the folder's lock."""
    INTERNAL = "internal"
    """An error of this program, logged with its traceback."""


DAMAGED: Final = frozenset({Miss.TRUNCATED, Miss.CORRUPT, Miss.FOREIGN})
"""Faults of the file itself: it is removed, so that the segment is stored anew."""

OF_ERRNO: Final = {
    errno.ENOENT: Miss.MISSING,
    errno.ENOTDIR: Miss.MISSING,
    errno.EACCES: Miss.DENIED,
    errno.EPERM: Miss.DENIED,
    errno.EROFS: Miss.DENIED,
    errno.ENOSPC: Miss.FULL,
    errno.EDQUOT: Miss.FULL,
    errno.EFBIG: Miss.FULL,
    # What O_NOFOLLOW says of a symbolic link: we never write one.
    errno.ELOOP: Miss.FOREIGN,
}


class SegmentError(Exception):
    """A segment cannot be served or stored. Never leaves the store: it turns into a counted, logged miss."""

    def __init__(self, reason: Miss, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of_os_error(cls, error: OSError, what: str) -> SegmentError:
        """The fault that an error of the operating system is."""
        reason = OF_ERRNO.get(error.errno or 0, Miss.IO)
        return cls(reason, f"{what}: {error.strerror or error}")
