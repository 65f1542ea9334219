"""How the process of the reuse gate asks its engine: what it stores, what it forces, and what it refuses to compare."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_redknot.evals.reuse_requests import ReuseRequest
from vllm_redknot.evals.reuse_worker import reuse_answer

VOCABULARY = 50
DENSE = ReuseRequest("dense/a", tuple(range(10)), max_tokens=4, forced=(20, 21, 22), top=3)
REUSE = ReuseRequest(
    *("reuse/a", tuple(range(10)), 4, (), (20, 21, 22)),
    top=3,
    documents=((0, 4), (4, 8)),
    policy={"boundary": 2},
    reused=6,
)


@dataclass
class FakeEngine:
    """Expects `greedy` tokens, each next token a nat less likely; `cached` tokens were not computed.

    `said` is what its responses say of reuse; nothing where it `stops` at a string.
    """

    greedy: tuple[int, ...]
    cached: int = 0
    asked: list[tuple[tuple[int, ...], Any, Any]] = field(default_factory=list)
    resets: int = 0
    said: dict[str, Any] = field(default_factory=dict)
    stops: bool = False

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompt: dict[str, list[int]], params: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        ids = tuple(prompt["prompt_token_ids"])
        self.asked.append((ids, params.extra_args["redknot_reuse"], params))
        tokens = self.greedy[len(ids) - 10 :][: params.max_tokens] if len(ids) >= 10 else (0,)
        steps = [self.step(token, params) for token in tokens]
        output = SimpleNamespace(text=" ".join(map(str, tokens)), token_ids=tokens, logprobs=steps)
        told = None if self.stops and params.stop else {"redknot_reuse": self.said}
        return [SimpleNamespace(outputs=[output], num_cached_tokens=self.cached, kv_transfer_params=told)]

    def step(self, greedy: int, params: Any) -> dict[int, Any]:
        order = [(greedy + rank) % VOCABULARY for rank in range(VOCABULARY)]
        shown = params.logprob_token_ids or order[: params.logprobs or 0]
        return {
            token: SimpleNamespace(logprob=-0.5 - order.index(token), rank=order.index(token) + 1)
            for token in shown
        }


def test_one_generation_gives_all_while_greedy_tokens_are_the_forced_ones() -> None:
    engine = FakeEngine((20, 21, 22, 23))
    answer = reuse_answer(engine, DENSE, set())
    assert [(ids, wish) for ids, wish, _ in engine.asked] == [(DENSE.prompt, "off")]
    assert answer.text == "20 21 22 23"
    assert answer.forced_logprobs == (-0.5, -0.5, -0.5)
    assert answer.scored is not None
    assert answer.scored.ids.tolist() == [[20, 20, 21, 22], [21, 21, 22, 23], [22, 22, 23, 24]]
    assert answer.scored.logprobs[0].tolist() == [-0.5, -0.5, -1.5, -2.5]


def test_from_where_they_part_the_forced_tokens_are_asked_as_a_prompt() -> None:
    engine = FakeEngine((20, 19, 22, 23))
    answer = reuse_answer(engine, DENSE, set())
    assert [ids[10:] for ids, _, _ in engine.asked] == [(), (20, 21)]
    assert answer.text == "20 19 22 23"
    assert answer.forced_logprobs == (-0.5, -2.5, -0.5)


def test_a_forced_token_that_is_not_among_the_likely_ones_is_asked_for_by_name() -> None:
    engine = FakeEngine((20, 9, 22, 23))
    answer = reuse_answer(engine, DENSE, set())
    by_name = [params for _, _, params in engine.asked if params.logprob_token_ids]
    assert [params.logprob_token_ids for params in by_name] == [[21]]
    assert answer.scored is not None
    assert answer.scored.ids[1].tolist() == [21, 9, 10, 11]
    assert answer.scored.logprobs[1].tolist() == [-12.5, -0.5, -1.5, -2.5]
    assert np.isfinite(answer.forced_logprobs).all()


def test_documents_are_stored_alone_and_the_prompt_asks_for_them_from_an_empty_prefix_cache() -> None:
    engine = FakeEngine((20, 21, 22, 23), cached=6)
    answer = reuse_answer(engine, REUSE, set())
    assert answer.reused == 6
    assert [(ids, wish) for ids, wish, _ in engine.asked] == [
        ((0, 1, 2, 3), {"spans": [[0, 4]], "reuse": False}),
        ((4, 5, 6, 7), {"spans": [[0, 4]], "reuse": False}),
        (REUSE.prompt, {"spans": [[0, 4], [4, 8]], "boundary": 2}),
    ]
    assert engine.resets == 1


def test_documents_of_the_request_before_are_not_computed_again() -> None:
    engine, stored = FakeEngine((20, 21, 22, 23), cached=6), set[tuple[int, ...]]()
    reuse_answer(engine, REUSE, stored)
    assert stored == {(0, 1, 2, 3), (4, 5, 6, 7)}
    engine.asked.clear()
    other = replace(REUSE, documents=((4, 8), (2, 4)), policy={"boundary": 1})
    reuse_answer(engine, other, stored)
    assert [(ids, wish) for ids, wish, _ in engine.asked] == [
        ((2, 3), {"spans": [[0, 2]], "reuse": False}),
        (REUSE.prompt, {"spans": [[4, 8], [2, 4]], "boundary": 1}),
    ]
    # Only those have surely not been evicted.
    assert stored == {(2, 3), (4, 5, 6, 7)}


BLEND = replace(REUSE, documents=((1, 4), (4, 8)), policy={"policy": "blend", "share": 0.15}, reused=6)


def test_under_blend_the_response_tells_what_came_from_the_store() -> None:
    engine = FakeEngine((20, 21, 22, 23), said={"policy": "blend", "segment_tokens": 6})
    reuse_answer(engine, BLEND, set())
    wish = {"spans": [[1, 4], [4, 8]], "policy": "blend", "share": 0.15}
    assert [(ids, wish) for ids, wish, _ in engine.asked[2:]] == [(BLEND.prompt, wish)]
    with pytest.raises(RuntimeError, match="reuse/a: 5 tokens were not computed instead of 6"):
        reuse_answer(
            FakeEngine((20, 21, 22, 23), said={"policy": "blend", "segment_tokens": 5}), BLEND, set()
        )


def test_an_engine_that_does_not_blend_is_not_measured_as_if_it_did() -> None:
    engine = FakeEngine((20, 21, 22, 23), said={"segment_tokens": 7, "problem": "boundary 16 was used"})
    with pytest.raises(RuntimeError, match="blend was asked for and not given: boundary 16 was used"):
        reuse_answer(engine, BLEND, set())


def test_where_a_stop_string_has_lost_the_response_it_is_asked_for_again() -> None:
    engine = FakeEngine((20, 21, 22, 23), said={"policy": "blend", "segment_tokens": 6}, stops=True)
    reuse_answer(engine, replace(BLEND, stop=("23",)), set())
    again = engine.asked[-1]
    assert (again[0], again[2].max_tokens, again[2].stop) == (BLEND.prompt, 1, [])


@pytest.mark.parametrize(("request_", "cached"), [(REUSE, 0), (REUSE, 5), (DENSE, 6)])
def test_an_answer_that_would_be_compared_with_itself_is_an_error(
    request_: ReuseRequest, cached: int
) -> None:
    told = f"{request_.key}: {cached} tokens were not computed instead of {request_.reused}"
    with pytest.raises(RuntimeError, match=told):
        reuse_answer(FakeEngine((20, 21, 22, 23), cached), request_, set())
