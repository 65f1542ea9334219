"""The divergence is a lower bound, tight where lists are long; texts and positions are the right ones."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vllm_redknot.evals.fidelity import POSITIONS, EssayItem, essay_items, essay_scores, kl_lower_bound
from vllm_redknot.evals.requests import Answer, Distributions, Request
from vllm_redknot.evals.texts import essay_sentences

VOCABULARY = 400


def likely(logits: NDArray[np.float64], there: NDArray[np.int64], top: int) -> Distributions:
    """What an engine returns of these distributions."""
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    best = np.argsort(-logprobs, axis=1, kind="stable")[:, :top]
    ids = np.concatenate([there[:, None], best], axis=1)
    return Distributions(ids.astype(np.int32), np.take_along_axis(logprobs, ids, axis=1).astype(np.float32))


def true_kl(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (left, right))
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 3.0])
def test_the_divergence_is_bounded_from_below_and_exact_with_the_whole_vocabulary(noise: float) -> None:
    draw = np.random.default_rng(0)
    dense = draw.normal(0.0, 3.0, size=(50, VOCABULARY))
    ours = dense + draw.normal(0.0, 1.0, size=dense.shape) * noise
    there = draw.integers(VOCABULARY, size=50)
    exact = true_kl(dense, ours)
    bounds = [
        kl_lower_bound(likely(dense, there, top), likely(ours, there, top)) for top in (1, 16, VOCABULARY)
    ]
    for bound in bounds:
        assert (bound >= 0).all()
        assert (bound <= exact + 1e-5).all()
    assert bounds[2] == pytest.approx(exact, abs=1e-5)
    # The farther apart, the fewer tokens both lists have.
    if 0 < noise <= 1:
        assert bounds[1].mean() > 0.5 * exact.mean()


def test_a_token_that_one_list_lacks_is_never_taken_for_impossible() -> None:
    dense = Distributions(np.array([[5, 1, 2]], np.int32), np.log(np.array([[0.05, 0.6, 0.3]], np.float32)))
    ours = Distributions(np.array([[5, 3, 4]], np.int32), np.log(np.array([[0.05, 0.6, 0.3]], np.float32)))
    assert kl_lower_bound(dense, ours)[0] == pytest.approx(0.0, abs=1e-6)


def test_scores_are_of_the_span_of_their_length() -> None:
    """Positions before 4 agree; after that the engines swap two tokens."""
    dense = Distributions(
        np.tile(np.array([1, 1, 2], np.int32), (7, 1)), np.log(np.tile([0.7, 0.7, 0.2], (7, 1)))
    )
    ours = Distributions(dense.ids.copy(), dense.logprobs.copy())
    ours.ids[3:] = [1, 2, 1]
    ours.logprobs[3:] = np.log([0.2, 0.7, 0.2])
    item = EssayItem((4, 8), Request("essays/0", tuple(range(8)), spans=((1, 4), (4, 8)), top=2))
    scores = essay_scores(item, Answer("a", scored=dense), Answer("a", scored=ours))
    found = {(score.place.length, score.metric): (score.stock, score.redknot) for score in scores}
    kl = 0.7 * np.log(0.7 / 0.2) + 0.2 * np.log(0.2 / 0.7)
    assert found[4, "kl"] == (None, pytest.approx(0.0, abs=1e-9))
    assert found[8, "kl"] == (None, pytest.approx(kl))
    assert found[4, "top-1 agreement"] == (None, 1.0)
    assert found[8, "top-1 agreement"] == (None, 0.0)
    assert found[8, "nll"] == (pytest.approx(-np.log(0.7)), pytest.approx(-np.log(0.2)))


def test_texts_are_held_out_apart_and_scored_before_every_length(model_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    items = essay_items(tokenizer, [1024, 2048, 2100], seed=3, limit=4)
    assert [item.request.spans for item in items] == [((512, 1024), (1536, 2048), (2048, 2100))] * 4
    assert all(len(item.request.prompt) == 2100 for item in items)
    starts = [int(item.request.key.split("/")[1]) for item in items]
    assert min(b - a for a, b in pairwise(starts)) >= 2100
    text = " ".join(essay_sentences("held-out"))
    assert tokenizer.decode(list(items[2].request.prompt[10:-10])) in text
    assert [item.request for item in essay_items(tokenizer, [1024, 2048, 2100], 3, 4)] == [
        item.request for item in items
    ]
    assert essay_items(tokenizer, [2048], 4, 4)[0].request.prompt != items[0].request.prompt[:2048]
    assert items[0].request.spans[0][1] - items[0].request.spans[0][0] == POSITIONS


def test_more_texts_than_there_are_essays_is_refused(model_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"1000 texts of 8192 do not fit, give at most \d+ with --limit"):
        essay_items(tokenizer, [8192], seed=0, limit=1000)
