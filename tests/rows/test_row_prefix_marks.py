"""Block hashes tell KV of different schedules, and of prompts that end elsewhere, apart: and nothing more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_redknot.rows.block_hashes import RowBlockHasher
from vllm_redknot.rows.schedule import RowSchedule

BLOCK = 16
LATE = RowSchedule.parse({"ffn_from": 1, "sink": 4, "recent": 20})


def hash_blocks(request: Any) -> list[bytes]:
    """A stand-in for vLLM's hasher: the tokens' number tells a block, 32 bytes long."""
    full = request.num_tokens // BLOCK
    return [f"block {index}".encode().ljust(32) for index in range(len(request.block_hashes), full)]


def request(prompt: int, tokens: int | None = None, **sampling: Any) -> SimpleNamespace:
    params = SimpleNamespace(**{"prompt_logprobs": None, "extra_args": None, **sampling})
    return SimpleNamespace(
        num_prompt_tokens=prompt, num_tokens=tokens or prompt, block_hashes=[], sampling_params=params
    )


def hashes(schedule: RowSchedule, asked: SimpleNamespace) -> list[bytes]:
    return RowBlockHasher(hash_blocks, schedule, BLOCK)(asked)


def common(left: list[bytes], right: list[bytes]) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def test_the_same_prompt_hits_all_of_its_blocks() -> None:
    assert hashes(LATE, request(100)) == hashes(LATE, request(100))


def test_a_longer_prompt_hits_only_blocks_before_the_recent_tokens() -> None:
    # Tokens 80 to 99 skip nothing, so block 5 holds tokens that the longer prompt would skip.
    assert common(hashes(LATE, request(100)), hashes(LATE, request(200))) == 5
    assert common(hashes(LATE, request(99)), hashes(LATE, request(200))) == 4


def test_other_schedules_and_requests_without_skipping_hit_nothing() -> None:
    other = RowSchedule.parse({"ffn_from": 1, "sink": 4, "recent": 21})
    mine = hashes(LATE, request(100))
    assert common(mine, hashes(other, request(100))) == 0
    for sampling in ({"prompt_logprobs": 0}, {"extra_args": {"redknot_rows": "off"}}):
        off = hashes(LATE, request(100, **sampling))
        assert off == hash_blocks(request(100))
        assert common(mine, off) == 0


def test_prompts_too_short_to_skip_keep_vllms_hashes() -> None:
    assert hashes(LATE, request(24, tokens=48)) == hash_blocks(request(24, tokens=48))
    assert hashes(LATE, request(25, tokens=48)) != hash_blocks(request(25, tokens=48))


def test_pooling_requests_keep_vllms_hashes() -> None:
    pooling = request(100)
    pooling.sampling_params = None
    assert hashes(LATE, pooling) == hash_blocks(request(100))


def test_blocks_hashed_later_are_marked_like_those_hashed_at_once() -> None:
    whole = hashes(LATE, request(100, tokens=160))
    grown = request(100)
    hasher = RowBlockHasher(hash_blocks, LATE, BLOCK)
    for tokens in (100, 140, 160):
        grown.num_tokens = tokens
        grown.block_hashes.extend(hasher(grown))
    assert grown.block_hashes == whole
    assert all(len(value) == 32 for value in whole)
