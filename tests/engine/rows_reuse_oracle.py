"""An independent model of reuse with row skipping: the two oracles together. It shares no code with the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.engine.oracle import State
from tests.engine.reuse_oracle import ReuseModel
from tests.engine.rows_oracle import SkippedRows


class StoredRun(NamedTuple):
    """Prompt tokens [begin, end), of which those from `clean` on have the KV that another prompt computed."""

    begin: int
    clean: int
    end: int
    computed_in: Sequence[int]  # that prompt
    offset: int = 0  # of the token at `begin` in it


class RowReuseModel(ReuseModel):
    """`ReuseModel` whose tokens skip rows by their place in the prompt that computes them.

    A stored run's tokens skip, or not, by their place in the prompt that it was stored from.
    """

    def __init__(self, folder: Path, heads: State, rows: dict[str, Any]) -> None:
        super().__init__(folder, heads)
        self.rows = rows
        self._skipped = SkippedRows(self.model)

    @torch.inference_mode()
    def answer(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        runs: Sequence[StoredRun],
        rows: dict[str, Any] | None = None,
    ) -> list[float]:
        """Logprob of each token of an answer; with other `rows` than the model's where given."""
        rows = self.rows if rows is None else rows
        stored: list[list[tuple[int, int, torch.Tensor, torch.Tensor]]] = [[] for _ in self._layers]
        for run in runs:
            self._skipped.expect(len(run.computed_in), len(run.computed_in), rows)
            # Its first token stands where the keys of the run come to be at their true places.
            self._run(run.computed_in, run.begin - run.offset, [[] for _ in self._layers])
            first, last = (run.offset + place - run.begin for place in (run.clean, run.end))
            for layer, found in zip(self._layers, stored, strict=True):
                key, value = layer.redknot_seen
                found.append((run.clean, run.end, key[:, :, first:last], value[:, :, first:last]))
        self._skipped.expect(len(prompt) + len(answer), len(prompt), rows)
        logits = self._run([*prompt, *answer], 0, stored)[len(prompt) - 1 : -1]
        chosen = logits.float().log_softmax(-1).gather(1, torch.tensor(list(answer))[:, None])
        values: list[float] = chosen[:, 0].tolist()
        return values
