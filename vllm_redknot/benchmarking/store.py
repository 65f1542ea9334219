"""The files of one measurement: its plan, and one file a round and side, each written whole or not at all.

A run that was interrupted goes on from them. A file that is not of this measurement is never taken for one that is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_redknot.ablation import Name
from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.whole_file import write_whole

PLAN_KIND: Final = "redknot.bench.plan"
FORMAT: Final = 1
LOCK: Final = "lock"
MAX_BYTES: Final = 16 * 2**20
Side = Literal["stock"] | Name
Sample = Annotated[float, Field(ge=0)]


class RowCount(BaseModel):
    """Tokens x layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    computed: Annotated[float, Field(ge=0)] = 0.0
    skipped: Annotated[float, Field(ge=0)] = 0.0


class Round(BaseModel):
    """What one server of one round gave. `samples` are by workload key, in the unit of its metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["redknot.bench.round"] = "redknot.bench.round"
    format: Literal[1] = 1
    plan: str
    round: Annotated[int, Field(ge=1)]
    side: Side
    max_concurrency: Annotated[float, Field(gt=0)]
    kv_cache_tokens: Annotated[int, Field(gt=0)]
    samples: dict[str, Annotated[list[Sample], Field(min_length=1)]]
    rows: dict[str, RowCount] = {}
    """By kind of row, of prefill steps in which tokens skipped."""


class Store:
    """The folder `rounds` of an output folder, for one plan and one process at a time.

    Raises:
        BenchmarkError: the folder holds another measurement, or another process measures there.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any]) -> None:
        text = json.dumps(
            {"kind": PLAN_KIND, "format": FORMAT, **plan}, indent=2, sort_keys=True, allow_nan=False
        )
        self.folder = output / "rounds"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("w")
        try:
            self._take(text)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others measure here."""
        self._lock.close()

    def _take(self, text: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BenchmarkError(
                f"another `redknot bench` measures in {self.folder}: wait for it, or give another --output"
            ) from error
        path = self.folder / "plan.json"
        if not path.exists():
            if strangers := [entry.name for entry in sorted(self.folder.iterdir()) if entry.name != LOCK]:
                raise BenchmarkError(
                    f"{self.folder} holds {strangers[0]!r:.80} but no plan.json: give another --output"
                )
            write_whole(path, text + "\n")
            return
        if difference := _difference(_read_json(path), json.loads(text)):
            raise BenchmarkError(
                f"{path} is of another measurement ({difference}): give another --output, or the same options on the"
                " same machine; delete the folder to measure anew"
            )

    def log(self, round_number: int, side: Side) -> Path:
        """Where a server's output goes."""
        return self.folder / f"{round_number}-{side}.log"

    def path(self, round_number: int, side: Side) -> Path:
        """Where a server's figures go."""
        return self.folder / f"{round_number}-{side}.json"

    def read(self, round_number: int, side: Side, keys: frozenset[str]) -> Round | None:
        """What an earlier run left, None if nothing.

        Raises:
            BenchmarkError: the file is damaged, of another measurement, or not what its name says.
        """
        path = self.path(round_number, side)
        if not path.exists():
            return None
        remedy = "delete it to have it measured again"
        try:
            found = Round.model_validate(_read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            raise BenchmarkError(
                f"{path} is no result of a round, {place}: {first['msg']}: {remedy}"
            ) from error
        if found.plan != self.fingerprint:
            raise BenchmarkError(f"{path} is of another measurement: {remedy}")
        if (found.round, found.side) != (round_number, side) or found.samples.keys() != keys:
            raise BenchmarkError(f"{path} is of round {found.round}, {found.side}, or not whole: {remedy}")
        return found

    def write(self, found: Round) -> None:
        """Keep the figures of one server. Raises OSError."""
        write_whole(self.path(found.round, found.side), found.model_dump_json(indent=2) + "\n")


def _read_json(path: Path) -> Any:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} is damaged ({error}): delete it to have it measured again") from error


def _difference(found: Any, wanted: Any, place: str = "the plan") -> str:
    """The first value that differs, by its path, with both; nothing if the plans are one."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        places = {key: f"{place}.{key}".removeprefix("the plan.") for key in keys}
        each = (_difference(found.get(key), wanted.get(key), places[key]) for key in keys)
        return next(filter(None, each), "")
    return "" if found == wanted else f"{place} is {found!r:.120} there and {wanted!r:.120} here"
