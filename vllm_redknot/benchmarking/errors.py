"""What can go wrong with a measurement."""

from collections.abc import Sequence


class BenchmarkError(RuntimeError):
    """One line that names what, and the remedy; `log` is the end of a server's or client's output."""

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = tuple(log)
