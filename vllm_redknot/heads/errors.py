"""What can go wrong with head classes."""

from pathlib import Path


class HeadProfileError(ValueError):
    """A head profile that is inconsistent or cannot be used."""


class HeadFitError(HeadProfileError):
    """A sound profile that does not fit the model or the tensor-parallel degree; names both shapes."""


class HeadFileError(HeadProfileError):
    """A head-class file that cannot be read: which file, where in it, what is wrong, and what would help."""

    def __init__(self, path: Path | str, place: str, problem: str, remedy: str) -> None:
        self.path = str(path)
        self.place = place
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"head-class file {self.path}, {place}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[type["HeadFileError"], tuple[str, str, str, str]]:
        return type(self), (self.path, self.place, self.problem, self.remedy)
