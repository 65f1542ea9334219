"""Rounds: the servers in turns, so that what drifts on a machine meets both alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vllm_redknot.benchmarking.client import ask, prompt_seed, row_counts, warm_up
from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.benchmarking.figures import samples
from vllm_redknot.benchmarking.server import VLLM, Capacity, last_lines, serving
from vllm_redknot.benchmarking.store import Round, Side, Store
from vllm_redknot.benchmarking.workloads import Workload

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """What is run. `flags` are those of `vllm serve`, by side; `start_timeout` is in seconds."""

    model: Path
    flags: Mapping[Side, Sequence[str]]
    workloads: tuple[Workload, ...]
    rounds: int
    start_timeout: float
    command: Sequence[str] = VLLM

    @property
    def sides(self) -> tuple[Side, ...]:
        """The servers, stock first."""
        return tuple(self.flags)

    @property
    def steps(self) -> int:
        """How often `measure` says something."""
        return len(self.sides) * self.rounds * (1 + len(self.workloads))

    @property
    def keys(self) -> frozenset[str]:
        """Of the workloads."""
        return frozenset(workload.key for workload in self.workloads)


def order(sides: tuple[Side, ...], round_number: int) -> tuple[Side, ...]:
    """Every other round is the other way round."""
    return sides if round_number % 2 else sides[::-1]


def measure(measurement: Measurement, store: Store, say: Say, check: Callable[[], None]) -> list[Round]:
    """All rounds; those that `store` has are not measured again.

    Args:
        say: called with what begins, `measurement.steps` times.
        check: called before the first server starts, if one has to; raises BenchmarkError where none could.

    Raises:
        BenchmarkError: a server or the client failed, or a file of an earlier run is not what it should be.
    """
    rounds = range(1, measurement.rounds + 1)
    turns = [(number, side) for number in rounds for side in order(measurement.sides, number)]
    # Before the first server starts: a damaged file is better known now than in an hour.
    kept = {turn: store.read(*turn, measurement.keys) for turn in turns}
    if None in kept.values():
        check()
    found = []
    for number, side in turns:
        title = f"round {number} of {measurement.rounds}, {side}"
        earlier = kept[number, side]
        if earlier is None:
            earlier = one_round(measurement, store, number, side, partial(_titled, say, title))
            store.write(earlier)
        else:
            for _ in range(1 + len(measurement.workloads)):
                say(f"{title}: kept from an earlier run")
        found.append(earlier)
    return found


def _titled(say: Say, title: str, text: str) -> None:
    say(f"{title}: {text}")


def one_round(measurement: Measurement, store: Store, number: int, side: Side, say: Say) -> Round:
    """One server, asked everything once; see `measure` for what is raised."""
    log, model = store.log(number, side), measurement.model
    say("the server starts")
    with (
        tempfile.TemporaryDirectory(prefix="redknot-bench-") as folder,
        serving(
            model, measurement.flags[side], log, measurement.start_timeout, measurement.command
        ) as server,
    ):
        capacity = Capacity.of_log(log)
        warm_up(server, model)
        figures: dict[str, list[float]] = {}
        for workload in measurement.workloads:
            say(workload.described)
            seed = prompt_seed(workload, number)
            result = ask(server, model, workload, seed, Path(folder), measurement.command)
            try:
                figures[workload.key] = samples(workload, result)
            except BenchmarkError as error:
                raise BenchmarkError(str(error), last_lines(log)) from error
        rows = row_counts(server)
    return Round(
        plan=store.fingerprint,
        round=number,
        side=side,
        max_concurrency=capacity.max_concurrency,
        kv_cache_tokens=capacity.tokens,
        samples=figures,
        rows=rows,
    )
