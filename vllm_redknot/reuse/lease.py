"""The right to use a stored segment."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from vllm_redknot.reuse.segment import Segment


class Lease:
    """A segment in use: it stays in memory until `release`, or the end of the `with` block."""

    def __init__(self, segment: Segment, give_back: Callable[[str], None]) -> None:
        self.segment = segment
        self._give_back: Callable[[str], None] | None = give_back

    def release(self) -> None:
        """Give the segment back; a second call does nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self.segment.content)

    def __enter__(self) -> Segment:
        return self.segment

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
