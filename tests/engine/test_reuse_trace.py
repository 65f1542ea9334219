"""Requests that draw documents from a store while it is damaged: each answer is right, none is lost, nothing is held.

What `benchmarks.reuse --trace --faults` does with servers, on a small model inside the test process.
"""

import itertools
from pathlib import Path

import pytest

from benchmarks.reuse_answers import BOUND, Answer, difference, reused_sets
from benchmarks.reuse_faults import Faults
from benchmarks.reuse_trace import Trace, TraceRequest, draw_trace
from tests.engine import reuse_engine
from tests.engine.harness import Engine, _completion
from tests.engine.reuse_engine import Question, ask, assert_nothing_held, params, reusing, store_alone, worker
from tests.engine.reuse_world import LIMITS, World
from vllm_redknot.reuse.faults import DAMAGED, Miss

pytestmark = pytest.mark.slow

REQUESTS = 96
FAULTS = 48
AT_ONCE = 6
BOUNDARY = 8


def answer_of(answer: reuse_engine.Answer) -> Answer:
    completion = answer.completion
    return Answer(
        completion.token_ids,
        completion.logprobs,
        completion.runners_up,
        answer.reused,
        answer.details["prefix_tokens"],
    )


def question_of(trace: Trace, request: TraceRequest) -> Question:
    return Question(trace.prompt(request), {"spans": trace.spans(request), "boundary": BOUNDARY})


def ask_with_faults(server: Engine, trace: Trace, faults: Faults) -> dict[int, Answer]:
    """Answers by request, `AT_ONCE` under way at any time, and a fault after every second answer."""
    engine, answers = server.llm.llm_engine, dict[int, Answer]()
    waiting, ended = iter(enumerate(trace.requests)), itertools.count(1)

    def send(count: int) -> None:
        for number, request in itertools.islice(waiting, count):
            question = question_of(trace, request)
            engine.add_request(
                str(number), {"prompt_token_ids": question.prompt}, params(question.control, 6)
            )

    send(AT_ONCE)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            details = output.kv_transfer_params["redknot_reuse"]
            answer = reuse_engine.Answer(_completion(output), details)
            answers[int(output.request_id)] = answer_of(answer)
            if next(ended) % (REQUESTS // FAULTS) == 0:
                faults.make()
            send(1)
    return answers


def test_every_answer_under_faults_is_the_one_of_the_documents_it_reused(
    world: World, tmp_path: Path
) -> None:
    trace = draw_trace(world.tokens, 12, 120, REQUESTS, 3, seed=2)
    settings = {"min_reuse": 31, "boundary": BOUNDARY}
    limits = {**LIMITS, "enable_prefix_caching": False, "max_num_batched_tokens": 96}
    # Room for some documents: most come from the disk, as long as they are sound there.
    little = {**settings, "store_memory_gib": 0.0015}
    with reusing(world.folder, tmp_path / "damaged", world.heads, little, **limits) as server:
        store_alone(server, *trace.documents)
        assert worker().store.flush()
        faults = Faults(tmp_path / "damaged", seed=3)
        answers = ask_with_faults(server, trace, faults)
        faults.end()
        assert_nothing_held(server)
        counters = worker().store.counters()
    assert sorted(answers) == list(range(REQUESTS))
    assert len(faults.made) >= 6, faults.made
    assert counters.hits_disk > 0
    assert sum(counters.misses[reason] for reason in (*DAMAGED, Miss.MISSING)) > 0, counters
    reused = []
    with reusing(world.folder, tmp_path / "sound", world.heads, settings, **limits) as server:
        store_alone(server, *trace.documents)
        for number, request in enumerate(trace.requests):
            sets = list(reused_sets(trace.spans(request), BOUNDARY, answers[number].segment_tokens))
            assert sets, answers[number]
            gaps = {
                places: difference(answers[number], exact(server, trace, request, places)) for places in sets
            }
            assert min(gaps.values()) < BOUND, (number, gaps)
            reused.append(len(min(gaps, key=lambda places: gaps[places])))
    # The check tells documents apart: some answers came from all of them, some from fewer.
    assert 0 < reused.count(3) < REQUESTS


def exact(server: Engine, trace: Trace, request: TraceRequest, places: tuple[int, ...]) -> Answer:
    """The answer of an engine without faults, exactly these documents reused."""
    spans = [trace.spans(request)[place] for place in places]
    control = {"spans": spans, "boundary": BOUNDARY} if spans else "off"
    answer = answer_of(ask(server, trace.prompt(request), control, max_tokens=6))
    assert answer.segment_tokens == sum(end - begin - (BOUNDARY if begin else 0) for begin, end in spans)
    return answer
