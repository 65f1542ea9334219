"""Calibration of row skipping on models of which it is known what may be skipped."""

from pathlib import Path

import pytest
import torch
from layered_model import LAYERS, SHAPE, cases, write_layered_model

from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.profiler.choose import profile_of
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import Journal, open_journal
from vllm_redknot.profiler.row_judge import RowJudge, RowLimits
from vllm_redknot.profiler.row_model import RowModel
from vllm_redknot.profiler.row_run import RowChoice
from vllm_redknot.rows.savings import PrefillSavings
from vllm_redknot.rows.schedule import RowSchedule

RECENTS = (64, 128)
CONTEXT = 1024


def induction_alone(induction: int) -> HeadProfile:
    """Only the induction head sees everything."""
    windows: list[list[int | None]] = [[16, 16] for _ in range(LAYERS)]
    windows[induction][0] = None
    return profile_of(windows, tuple(range(LAYERS)), 4)


def judge_of(folder: Path, heads: HeadProfile, journal: Journal) -> RowJudge:
    return RowJudge(RowModel(HookedModel(folder, torch.float32)), heads, cases(3), journal)


def choice_of(judge: RowJudge, heads: HeadProfile, limits: RowLimits | None = None) -> RowChoice:
    return RowChoice(judge, PrefillSavings(SHAPE, heads, CONTEXT), limits or RowLimits(), LAYERS)


@pytest.mark.parametrize(
    ("ffn", "attention", "induction", "ffn_from", "attention_from"),
    [(0, 2, 4, 1, 3), (3, 1, 5, 4, 4), (1, 2, 3, 2, 3), (0, 4, 5, 1, 5)],
)
def test_exactly_the_layers_that_context_tokens_do_not_need_are_found(
    ffn: int, attention: int, induction: int, ffn_from: int, attention_from: int, tmp_path: Path
) -> None:
    write_layered_model(tmp_path, ffn, attention, induction)
    for heads in (all_global(tuple(range(LAYERS)), 2), induction_alone(induction)):
        with open_journal(tmp_path / "journal", {"heads": heads.fingerprint()}, restart=True) as journal:
            judge = judge_of(tmp_path, heads, journal)
            assert all(answer.found for answer in judge.answers(None) if answer.task == "needle")
            choice = choice_of(judge, heads)
            found = choice.choose(RECENTS, 4, lambda _: {})
            expected = RowSchedule(ffn_from=ffn_from, attention_from=attention_from, sink=4, recent=64)
            assert found == expected
            # Nothing it skips mattered at all, and one layer more loses every needle.
            (row, essays) = judge.compare(expected, RowLimits()).comparisons
            assert (row.beside.found, row.beside.nll) == (3, pytest.approx(row.beside.dense_nll, abs=1e-4))
            assert essays.kl < 1e-4
            for worse in ({"ffn_from": ffn_from - 1}, {"ffn_from": ffn_from - 1, "attention_from": None}):
                broken = judge.compare(RowSchedule(**{**dict(expected), **worse}), RowLimits())
                assert broken.comparisons[0].beside.found == 0
                assert any(failure.startswith("needle: 0 answers") for failure in broken.failures)
            assert len(choice.tried) < 30


def test_limits_that_nothing_holds_leave_row_skipping_off(tmp_path: Path) -> None:
    write_layered_model(tmp_path, LAYERS - 2, 1, LAYERS - 1)
    heads = all_global(tuple(range(LAYERS)), 2)
    with open_journal(tmp_path / "journal", {}) as journal:
        judge = judge_of(tmp_path, heads, journal)
        choice = choice_of(judge, heads)
        # A text longer than `recent`: everything that this model can skip is the last layer.
        assert choice.choose((64,), 4, lambda _: {}) == RowSchedule(
            ffn_from=LAYERS - 1, attention_from=LAYERS - 1, sink=4, recent=64
        )
        impossible = RowLimits(recall=1.01)
        assert choice_of(judge, heads, impossible).choose((64,), 4, lambda _: {}) is None


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            RowLimits(recall=0.95, nll_increase=1e9, kl=1e9),
            "needle: 0 answers found where heads alone find 3",
        ),
        (RowLimits(recall=0.0, nll_increase=-1e9, kl=1e9), "essays: NLL rises by"),
        (RowLimits(recall=0.0, nll_increase=1e9, kl=0.0), "essays: KL from heads alone is"),
        (RowLimits(recall=0.0, nll_increase=1e9, kl=1e9, needle_nll=0.1), "needle: NLL rises by"),
        (RowLimits(recall=0.0, nll_increase=1e9, kl=1e9, needle_kl=0.1), "needle: KL from heads alone is"),
    ],
)
def test_each_limit_refuses_alone(limits: RowLimits, said: str, tmp_path: Path) -> None:
    write_layered_model(tmp_path, 0, 2, 4)
    heads = all_global(tuple(range(LAYERS)), 2)
    with open_journal(tmp_path / "journal", {}) as journal:
        verdict = judge_of(tmp_path, heads, journal).compare(
            RowSchedule(ffn_from=0, attention_from=1, recent=16), limits
        )
    (failure,) = verdict.failures
    assert failure.startswith(said)


def test_an_interrupted_search_goes_on_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layered_model(tmp_path, 0, 2, 4)
    heads = induction_alone(4)
    passes = 0
    stop_at = 10**9
    run = RowModel.run

    def counted(*arguments: object, **named: object) -> object:
        nonlocal passes
        if passes == stop_at:
            raise KeyboardInterrupt
        passes += 1
        return run(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(RowModel, "run", counted)

    def search(name: str) -> RowSchedule | None:
        nonlocal passes
        passes = 0
        with open_journal(tmp_path / name, {}) as journal:
            return choice_of(judge_of(tmp_path, heads, journal), heads).choose(RECENTS, 4, lambda _: {})

    expected = search("whole")
    whole = passes
    assert search("whole") == expected
    assert passes == 0, "everything is in the journal"
    stop_at = whole // 2
    with pytest.raises(KeyboardInterrupt):
        search("cut")
    stop_at = 10**9
    assert search("cut") == expected
    # The other half, and the heads-alone pass of each case again: its states are not kept on disk.
    assert passes <= whole - whole // 2 + len(cases(3))
