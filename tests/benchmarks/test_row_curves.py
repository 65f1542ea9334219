"""The points of the row-skipping curves compare what they say they compare."""

import pytest
import torch

from benchmarks.row_curves import (
    LATE,
    RECENT,
    SIGNALS,
    SINK,
    TwoTurns,
    largest,
    points,
    turn_rows,
)
from vllm_redknot.evals.cases import Case
from vllm_redknot.profiler.row_model import FfnInput

DEPTH = 30


@pytest.mark.parametrize("share", [0.5, 0.2, 0.001])
def test_every_rule_computes_equally_many_rows_and_its_own(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    added, residual, output = (torch.rand(997, generator=generator) + 0.1 for _ in range(3))
    state = FfnInput(added, residual, torch.empty(997, 0), lambda: output)
    chosen = {}
    for name, signal in SIGNALS.items():
        choose = largest(signal, 3, share)
        assert choose(2, state) is None
        found = choose(3, state)
        assert found is not None
        assert int(found.sum()) == -(-997 * share // 1)
        chosen[name] = found
    assert chosen["relative norm"][(added / residual).argmax()]
    assert chosen["attention norm (mass)"][added.argmax()]
    assert chosen["oracle: FFN output norm"][output.argmax()]
    assert len({tuple(found.tolist()) for found in chosen.values()}) == len(chosen)


def test_points_have_names_of_their_own_and_skip_nothing_before_their_first_layer() -> None:
    made = list(points(DEPTH, quick=False))
    assert len({point.name for point in made}) == len(made) > 50
    for point in made:
        rows = point.rows(1000, 1010)
        assert point.first <= min(rows.ffn_from, rows.attention_from)
        assert not rows.skips[:SINK].any()
        assert not rows.skips[1000:].any()
        assert rows.skips[SINK]


def test_a_second_turn_skips_what_is_served_or_what_the_first_one_skipped() -> None:
    turns = TwoTurns(Case("needle", tuple(range(900)), (1,), (0, 0)), 600, "far back")
    served, kept, only = (
        turn_rows(turns, how, LATE, DEPTH, 900, 905).skips.nonzero()[:, 0].tolist()
        for how in ("as served", "first turn as it was", "first turn only")
    )
    assert served == list(range(SINK, 900 - RECENT))
    assert only == list(range(SINK, 600 - RECENT))
    assert kept == only + list(range(600, 900 - RECENT))
