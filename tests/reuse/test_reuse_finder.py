"""The finder against a slow one that looks at every diagonal, in random stores and prompts."""

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from store_world import LAYOUT

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.finder import Match, SegmentFinder
from vllm_redknot.reuse.spans import Span, parse_spans
from vllm_redknot.reuse.windows import MAX_CANDIDATES, MIN_RUN, WINDOW, window_hashes

Store = Mapping[str, Sequence[int]]


def finder(store: Store, min_tokens: int = MIN_RUN, layout: bool = False) -> SegmentFinder:
    found = SegmentFinder(min_tokens)
    for content, tokens in store.items():
        count = len(tokens)
        found.add(content, tokens, *((LAYOUT.min_end(count), LAYOUT.sinks(count)) if layout else ()))
    return found


def equal_runs(prompt: Sequence[int], tokens: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(begin, end, segment_begin) of all maximal runs of equal tokens."""
    for shift in range(-len(tokens) + 1, len(prompt)):
        begin = None
        low, high = max(0, shift), min(len(prompt), shift + len(tokens))
        for at in range(low, high + 1):
            same = at < high and prompt[at] == tokens[at - shift]
            if same and begin is None:
                begin = at
            elif not same and begin is not None:
                yield begin, at, begin - shift
                begin = None


def slow_find(
    prompt: Sequence[int], store: Store, min_tokens: int, spans: Sequence[Span] | None, layout: bool
) -> tuple[Match, ...]:
    """The longest usable piece of a run beside what is chosen already, again and again."""
    free = [spans is None or any(span.begin <= at < span.end for span in spans) for at in range(len(prompt))]
    edge = {span.begin for span in spans or ()}
    runs = [(*run, content) for content, tokens in store.items() for run in equal_runs(prompt, tokens)]
    chosen = []
    while True:
        best = None
        for run_begin, run_end, segment_begin, content in runs:
            begin = run_begin
            for end in range(run_begin, run_end + 1):
                if end < run_end and free[end] and not (end in edge and end > begin):
                    continue
                # [begin, end) is free, and what comes next is not.
                start, at = begin, segment_begin + begin - run_begin
                count = len(store[content])
                if layout and start < LAYOUT.sinks(count) and segment_begin > run_begin:
                    start, at = LAYOUT.sinks(count), at + LAYOUT.sinks(count) - start
                usable = not layout or at + end - start >= LAYOUT.min_end(count)
                if end - start >= min_tokens and usable:
                    best = min(best or (1,), (start - end, start, content, at))
                begin = end if end < run_end and free[end] else end + 1
        if best is None:
            return tuple(sorted(chosen))
        negative, begin, content, at = best
        chosen.append(Match(begin, begin - negative, content, at))
        free[begin : begin - negative] = [False] * -negative


def random_case(generator: random.Random) -> tuple[Store, list[int]]:
    """Slices of one text as segments, and a prompt of other slices of it with strange tokens between."""
    alphabet = generator.choice((30, 1000, 50_000))
    text = generator.choices(range(alphabet), k=160)

    def part(least: int, most: int) -> list[int]:
        length = generator.randint(least, most)
        begin = generator.randrange(len(text) - length)
        return text[begin : begin + length]

    store = {
        f"{generator.randrange(10):x}{number}": part(50, 110) for number in range(generator.randint(1, 4))
    }
    prompt: list[int] = []
    for _ in range(generator.randint(1, 3)):
        prompt += generator.choices(range(alphabet), k=generator.choice((0, 1, 5)))
        prompt += generator.choice(
            (part(40, 155), part(100, 155), part(100, 155), next(iter(store.values())))
        )
    return store, prompt


@pytest.mark.parametrize("seed", range(40))
def test_it_finds_what_a_slow_search_of_every_diagonal_finds(seed: int) -> None:
    generator = random.Random(seed)
    store, prompt = random_case(generator)
    min_tokens = generator.choice((MIN_RUN, MIN_RUN, 40))
    edges = sorted(generator.sample(range(len(prompt) + 1), min(4, len(prompt) // 2 * 2)))
    spans = [Span(*pair) for pair in zip(edges[::2], edges[1::2], strict=True)]
    for layout in (False, True):
        quick = finder(store, min_tokens, layout)
        for within in (None, spans):
            found = quick.find(prompt, within)
            assert found == slow_find(prompt, store, min_tokens, within, layout)
            for match in found:
                tokens = store[match.content]
                segment_end = match.segment_begin + match.num_tokens
                assert prompt[match.begin : match.end] == tokens[match.segment_begin : segment_end]
                run = (len(tokens), match.segment_begin, segment_end, match.begin)
                assert not layout or LAYOUT.covers(*run)


def test_the_cases_have_runs_overlaps_and_trimmed_pieces() -> None:
    found, trimmed = 0, 0
    for seed in range(40):
        store, prompt = random_case(random.Random(seed))
        whole = {run[:2] for tokens in store.values() for run in equal_runs(prompt, tokens)}
        for match in finder(store).find(prompt):
            found += 1
            trimmed += (match.begin, match.end) not in whole
    assert found > 40
    assert trimmed > 2


def test_documents_are_found_where_tokens_at_their_joins_differ() -> None:
    generator = np.random.default_rng(0)
    documents = {f"{i}": generator.integers(0, 50_000, 100 + i).tolist() for i in range(4)}
    prompt: list[int] = []
    for tokens in documents.values():
        prompt += [1, 2, 3, *tokens[1:-1], 4]
    found = finder(documents).find(prompt)
    assert [(match.content, match.segment_begin, match.num_tokens) for match in found] == [
        (content, 1, len(tokens) - 2) for content, tokens in documents.items()
    ]
    assert [match.shift for match in found] == [match.begin - 1 for match in found]


def test_the_order_in_which_segments_came_changes_nothing() -> None:
    generator = random.Random(5)
    template = generator.choices(range(500), k=40)
    store = {f"{i:02}": template + generator.choices(range(500), k=50) for i in range(3 * MAX_CANDIDATES)}
    prompt = [token for content in ("17", "03", "22") for token in store[content]] + template
    expected = finder(store).find(prompt)
    assert [match.content for match in expected[:3]] == ["17", "03", "22"]
    for _ in range(5):
        shuffled = list(store)
        generator.shuffle(shuffled)
        found = SegmentFinder(MIN_RUN)
        for content in shuffled:
            found.add(content, store[content])
            if generator.random() < 0.2:
                found.find(prompt)
        assert found.find(prompt) == expected


def test_a_discarded_segment_is_not_found_and_may_come_back() -> None:
    store = {"a": list(range(100)), "b": list(range(50, 150))}
    found = finder(store)
    assert [match.content for match in found.find(range(150))] == ["a", "b"]
    found.discard("a")
    found.discard("a")
    assert found.find(range(150)) == (Match(50, 150, "b", 0),)
    found.add("a", store["a"])
    found.add("a", store["a"])
    assert [match.content for match in found.find(range(150))] == ["a", "b"]
    assert found.contents == {"a", "b"}


def test_repetition_is_searched_in_bounded_work() -> None:
    same = SegmentFinder()
    for number in range(100):
        same.add(f"{number}", [7] * (200 + number))
    found = same.find([7] * 20_000)
    assert found
    assert all(match.num_tokens >= 64 for match in found)


def test_nothing_is_found_in_nothing() -> None:
    assert SegmentFinder().find([]) == ()
    assert finder({"a": [1] * 10}).find([1] * 10) == ()
    assert finder({"a": list(range(100))}).find(range(30)) == ()


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 100])
def test_a_window_hash_depends_on_its_tokens_and_their_order_alone(length: int) -> None:
    tokens = np.random.default_rng(1).integers(0, 2**31, length)
    hashes = window_hashes(tokens)
    assert len(hashes) == max(0, length - WINDOW + 1)
    for at, value in enumerate(hashes):
        assert window_hashes(tokens[at : at + WINDOW])[0] == value
    if length == 100:
        assert len({*hashes.tolist(), *window_hashes(tokens[::-1]).tolist()}) == 2 * len(hashes)


def test_a_minimum_that_windows_cannot_promise_is_refused() -> None:
    with pytest.raises(ReuseError, match="at least 31"):
        SegmentFinder(MIN_RUN - 1)


def test_spans_come_back_in_order() -> None:
    assert parse_spans([[5, 9], (0, 5)], 9) == (Span(0, 5), Span(5, 9))
    assert parse_spans([], 0) == ()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "ab",
        5,
        {},
        [5],
        [[5]],
        [[1, 2, 3]],
        [[2, 2]],
        [[3, 2]],
        [[-1, 2]],
        [[0, 11]],
        [[0.0, 2]],
        [[False, True]],
        ["12"],
        [{"a": 1, "b": 2}],
        [[0, 5], [4, 6]],
        [[i, i + 1] for i in range(1025)],
    ],
)
def test_spans_that_cannot_be_are_refused(value: object) -> None:
    with pytest.raises(ReuseError, match="span"):
        parse_spans(value, 10 if not isinstance(value, list) or len(value) < 1000 else 5000)
