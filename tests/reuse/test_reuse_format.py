import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from store_world import GLOBAL, LAYOUT, SCOPE

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.reuse.segment import Segment, kept_positions, torch_dtype


def dense(layout: SegmentFormat, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(layout.layer_ids), layout.num_kv_heads, num_tokens, layout.head_size)
    numbers = torch.arange(2 * torch.Size(shape).numel(), dtype=torch.float32).view(2, *shape)
    return numbers[0], numbers[1]


def cut_from_dense(
    layout: SegmentFormat, tokens: Sequence[int], keys: torch.Tensor, values: torch.Tensor
) -> Segment:
    """The segment of the KV of every token: keys and values [L, H, n, D], at positions 0 to n - 1."""
    kv = torch.full((layout.num_rows(len(tokens)), 2, layout.head_size), torch.nan, dtype=torch_dtype(layout))
    segment = Segment(layout, np.asarray(tokens, np.int32), kv)
    for row, head in itertools.product(range(len(layout.layer_ids)), range(layout.num_kv_heads)):
        kept = segment.head(row, head)
        kept.keys.copy_(keys[row, head, kept.positions])
        kept.values.copy_(values[row, head, kept.positions])
    return segment


def seen_of_run(
    layout: SegmentFormat, head: tuple[int, int], begin: int, end: int, position: int
) -> set[int]:
    """Segment tokens of [begin, end) at `position` that some later query sees, by the definition of visibility."""
    window, sink = layout.window[head[0]][head[1]], layout.sink[head[0]][head[1]]
    query = position + end - begin
    keys = {token: position + token - begin for token in range(begin, end)}
    return {token for token, key in keys.items() if window is None or query - key < window or key < sink}


def test_a_segment_keeps_all_tokens_of_global_heads_and_sinks_and_window_of_local_ones() -> None:
    layout = replace(LAYOUT, dtype="float32")
    keys, values = dense(layout, 50)
    segment = cut_from_dense(layout, range(50), keys, values)
    kept = {(0, 0): range(50), (0, 1): [*range(4), *range(32, 50)], (1, 0): [0, 1, *range(24, 50)]}
    for (row, head), positions in kept.items():
        rows = segment.head(row, head)
        assert rows.positions.tolist() == list(positions)
        assert torch.equal(rows.keys, keys[row, head, list(positions)])
        assert torch.equal(rows.values, values[row, head, list(positions)])
    assert len(segment.kv) == 50 + 22 + 28 + 50
    assert segment.kv.nbytes == layout.kv_bytes(50)


def test_a_short_segment_keeps_everything() -> None:
    keys, values = dense(replace(LAYOUT, dtype="float32"), 22)
    segment = cut_from_dense(replace(LAYOUT, dtype="float32"), range(22), keys, values)
    assert torch.equal(segment.kv[:, 0].view(2, 2, 22, 4), keys)
    assert torch.equal(segment.kv[:, 1].view(2, 2, 22, 4), values)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_is_covered_exactly_when_all_that_later_queries_see_is_kept(seed: int) -> None:
    generator = random.Random(seed)
    layout = replace(
        LAYOUT,
        window=tuple(tuple(generator.choice((None, 1, 3, 8, 20)) for _ in range(2)) for _ in range(2)),
        sink=tuple(tuple(generator.choice((0, 1, 5)) for _ in range(2)) for _ in range(2)),
        slack=generator.choice((0, 1, 4)),
    )
    outcomes = set()
    for _ in range(400):
        count = generator.randint(1, 30)
        begin = generator.randint(0, count - 1)
        end = generator.randint(begin + 1, count)
        position = generator.randint(0, 8)
        kept = {(r, h): set(kept_positions(layout, count, r, h).tolist()) for r in range(2) for h in range(2)}
        needed = {head: seen_of_run(layout, head, begin, end, position) for head in kept}
        covered = all(needed[head] <= kept[head] for head in kept)
        assert layout.covers(count, begin, end, position) == covered, (count, begin, end, position)
        outcomes.add(covered)
        if end >= layout.min_end(count) and (begin <= position or position >= layout.sinks(count)):
            assert covered
    assert True in outcomes


def test_a_whole_segment_is_covered_anywhere_and_all_global_ones_in_any_part() -> None:
    for position in range(10):
        assert LAYOUT.covers(100, 0, 100, position)
        assert LAYOUT.covers(100, 1, 97, position + 5)
        assert not LAYOUT.covers(100, 0, 96, position)
        assert GLOBAL.covers(100, 40, 60, position)
    assert not LAYOUT.covers(100, 3, 100, 0)
    assert (LAYOUT.min_end(100), LAYOUT.sinks(100)) == (97, 4)
    assert (GLOBAL.min_end(100), GLOBAL.sinks(100)) == (1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer_ids": (3, 0)},
        {"layer_ids": (0,)},
        {"dtype": "fp8"},
        {"window": ((None, 0), (24, None))},
        {"sink": ((0, -1), (2, 0))},
        {"head_size": 0},
        {"slack": -1},
    ],
)
def test_a_format_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ReuseError):
        replace(LAYOUT, **wrong)  # type: ignore[arg-type]


def test_kv_that_does_not_fit_tokens_or_format_is_refused() -> None:
    good = cut_from_dense(replace(LAYOUT, dtype="float32"), range(9), *dense(LAYOUT, 9))
    for kv in (good.kv[1:], good.kv.double(), good.kv.expand(1, -1, -1, -1), good.kv.flip(0).transpose(1, 2)):
        with pytest.raises(ReuseError):
            Segment(good.format, good.tokens, kv)


def test_scopes_differ_where_fingerprint_or_format_do_and_in_nothing_else() -> None:
    changed = {
        "weights": "x",
        "config": "x",
        "dtype": "x",
        "rope": "x",
        "heads": "x",
        "rows": "x",
        "tp_size": 2,
    }
    prints = [replace(SCOPE.fingerprint, **{key: value}) for key, value in changed.items()]
    scopes = [Scope(fingerprint, LAYOUT) for fingerprint in (SCOPE.fingerprint, *prints)]
    scopes += [Scope(replace(prints[-1], tp_rank=1), LAYOUT), Scope(replace(prints[0], version=2), LAYOUT)]
    scopes += [Scope(SCOPE.fingerprint, GLOBAL), Scope(SCOPE.fingerprint, replace(LAYOUT, slack=0))]
    assert len({scope.name for scope in scopes}) == len(scopes)
    assert Scope(replace(SCOPE.fingerprint, model="renamed"), LAYOUT).name == SCOPE.name
    assert Scope.from_json(SCOPE.to_json()) == SCOPE
