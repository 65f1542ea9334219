import random

import pytest

from vllm_redknot.heads.flops import attention_work, visible_keys, visible_pairs
from vllm_redknot.heads.profile import EVERYTHING, HeadVisibility, all_global


def counted(window: int | None, sink: int, query: int) -> int:
    """Keys that query sees, by the definition."""
    return sum(window is None or query - key < window or key < sink for key in range(query + 1))


@pytest.mark.parametrize("seed", range(60))
def test_pairs_and_keys_equal_the_count_by_definition(seed: int) -> None:
    rng = random.Random(seed)
    tokens = rng.randint(1, 60)
    window = rng.choice([None, 1, rng.randint(1, 80)])
    seen = HeadVisibility(window, rng.choice([0, rng.randint(0, 70)]) if window else 0)
    assert visible_pairs(seen, tokens) == sum(counted(*seen, query) for query in range(tokens))
    assert visible_keys(seen, tokens) == counted(*seen, tokens - 1)


def test_work_counts_every_query_head_of_every_layer() -> None:
    work = attention_work(all_global((0, 1, 2), 2), query_heads=8, head_dim=64, context=100)
    assert work.prefill == 3 * 8 * 4 * 64 * (100 * 101 // 2)
    assert work.decode == 3 * 8 * 4 * 64 * 100
    assert visible_pairs(EVERYTHING, 100) == 5050
