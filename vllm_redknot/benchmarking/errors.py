"""What can go wrong with a measurement."""

from collections.abc import Sequence


class BenchmarkError(RuntimeError):
    """One line that names what, and the remedy; `log` is the end of a server's or client's output.

    `what` is the line without the remedy of `redknot bench`, where that was given apart.
    """

    def __init__(self, what: str, log: Sequence[str] = (), remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.log = tuple(log)
