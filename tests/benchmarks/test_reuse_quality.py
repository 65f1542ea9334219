"""The table of repair policies: what is asked in which order, what it adds up to, and how it goes on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from benchmarks import reuse_quality
from benchmarks.reuse_quality import in_rounds, main, with_policies
from benchmarks.reuse_quality_cells import BOTH, blend_policy, boundary_policy, case_name, in_cells
from vllm_redknot.evals.engine_process import EngineError
from vllm_redknot.evals.reuse_cases import ReuseCase, ReuseChoices, reuse_cases
from vllm_redknot.evals.score import Place, Score

FAKE = str(Path(__file__).parent.parent / "evals" / "fake_reuse_engine.py")
CHOICES = ReuseChoices(0, documents=3, document_tokens=150, texts=2, questions=4, length=450, seed=0)
Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def cases(model_path: Path) -> list[ReuseCase]:
    return list(reuse_cases(Tokenizer.from_file(str(model_path / "tokenizer.json")), CHOICES))


@pytest.fixture
def measure(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Runs the short form with the fake engine, bundled heads; `how` it answers."""

    def run(*given: str, how: tuple[str, ...] = ()) -> dict[str, Any]:
        monkeypatch.setattr(reuse_quality, "WORKER", (FAKE, *how))
        output = tmp_path / "out.json"
        places = ("--model-folder", str(model_path), "--run", str(tmp_path / "run"), "--output", str(output))
        main([*places, "--quick", "-H", "bundled", *given])
        document: dict[str, Any] = json.loads(output.read_text())
        return document

    return run


def by_policy(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (run,) = document["runs"]
    return {result["policy"]: result for result in run["results"]}


def test_each_round_has_its_part_of_every_task_and_a_text_stays_together(cases: list[ReuseCase]) -> None:
    ordered = [case_name(case) for case in in_rounds(cases, 2)]
    assert sorted(ordered) == sorted(map(case_name, cases))
    tasks = [[name.split("/")[0] for name in half] for half in (ordered[:10], ordered[10:])]
    assert tasks == [["needle"] * 3 + ["named"] * 3 + ["squad"] * 2 + ["hotpotqa"] * 2] * 2
    assert [name.split("/")[1] for name in ordered[:6] + ordered[10:16]] == ["0"] * 6 + ["1"] * 6


def test_policies_are_asked_of_the_same_prompt_one_after_the_other(cases: list[ReuseCase]) -> None:
    asked = with_policies(cases[0], [boundary_policy(0), boundary_policy(16), blend_policy(0.25)])
    assert [(name, request.key) for name, request in asked.items()] == [
        (name, f"{name}/needle/0/0") for name in ("dense", "none", "boundary-16", "blend-0.25")
    ]
    assert [request.policy for request in asked.values()] == [
        *(None, {"boundary": 0}, {"boundary": 16}),
        {"policy": "blend", "share": 0.25},
    ]
    # Three documents of 150 tokens, the first of which begins the prompt.
    assert [request.reused for request in asked.values()] == [0, 450, 418, 374]
    assert len({request.prompt for request in asked.values()}) == 1


def test_every_policy_is_judged_and_the_smallest_good_boundary_named(
    measure: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measure(how=("least", "16"))
    found = by_policy(document)
    assert {name: result["budget_kept"] for name, result in found.items()} == {
        **{"none": False, "boundary-4": False, "boundary-16": True, "boundary-32": True, "boundary-64": True}
    }
    assert document["smallest_boundary_in_budget"] == 16
    (run,) = document["runs"]
    assert run["cases"] == {"needle": 3, "named": 3, "squad": 3, "hotpotqa": 3}
    assert run["heads"]["origin"] == "bundled smollm2-135m.json"
    prompt = run["samples"][0]["prompt_tokens"]
    assert run["samples"][0]["boundary-16"]["computed"] == prompt - 418
    assert found["boundary-16"]["computed"]["needle"] - found["none"]["computed"]["needle"] == 32
    against = {
        (cell["task"], cell["metric"]): cell["difference"] for cell in found["boundary-16"]["against_none"]
    }
    assert against["needle", "found"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert against[BOTH, "f1"]["value"] > 0.9
    assert all(cell["difference"]["value"] == 0 for cell in found["boundary-4"]["against_none"])
    assert found["none"]["against_none"] == []
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ")}
    assert "not kept" in rows["none"]
    assert " low " in rows["none"]
    assert "0 of 3" in rows["none"]
    assert rows["boundary-16"].endswith("| kept |")
    assert "low" not in rows["boundary-16"]
    assert len({line.count("|") for line in rows.values()}) == 1
    assert any(
        re.fullmatch(r"72 answers in 0\.\d min; 0 are left, an estimated 0 min", line) for line in lines
    )


def test_an_interrupted_run_goes_on_and_another_policy_asks_for_its_own_answers_alone(
    measure: Measure, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="after 1 of 24 answers"):
        measure("--boundaries", "16", how=("crash",))
    first = measure("--boundaries", "16")
    # Nothing is left to ask: this engine would not survive it.
    assert measure("--boundaries", "16", how=("crash",)) == first
    with pytest.raises(EngineError, match="after 1 of 12 answers"):
        measure("--boundaries", "16", "64", how=("crash",))
    both = by_policy(measure("--boundaries", "16", "64"))
    assert both["boundary-16"] == by_policy(first)["boundary-16"]
    assert len(list((tmp_path / "run").glob("*/boundary-64.jsonl"))) == 1


def test_tables_can_be_made_of_what_is_answered_and_not_of_less_than_all_tasks(
    measure: Measure, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no case of hotpotqa, named, needle, squad is answered"):
        measure("--boundaries", "16", "--answered", how=("crash",))
    measure("--boundaries", "16")
    (answers,) = (tmp_path / "run").glob("*/boundary-16.jsonl")
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(lines[:-1]))
    (run,) = measure("--boundaries", "16", "--answered", how=("crash",))["runs"]
    assert run["cases"] == {"needle": 3, "named": 3, "squad": 3, "hotpotqa": 2}
    assert len(run["samples"]) == 11


def test_f1_of_both_data_sets_is_one_cell_and_each_cell_is_placed_in_denses_interval() -> None:
    scores = [Score(Place("squad", 450), "f1", dense, 0.5) for dense in (0.0, 0.0, 1.0, 1.0)] + [
        Score(Place("hotpotqa", 450), "f1", 1.0, reuse) for reuse in (1.0, 0.0, 0.0, 0.0)
    ]
    scores.append(Score(Place("squad", 450), "kl", None, 0.1))
    found = {(cell["task"], cell["metric"]): cell for cell in in_cells(scores, seed=0)}
    assert found[BOTH, "f1"]["n"] == 8
    assert found[BOTH, "f1"]["dense"]["value"] == 0.75
    assert found[BOTH, "f1"]["reuse"]["value"] == 0.375
    assert found[BOTH, "f1"]["difference"]["value"] == -0.375
    assert found["squad", "f1"]["within_dense_interval"] is True
    assert found["hotpotqa", "f1"]["within_dense_interval"] is False
    assert found["squad", "kl"]["within_dense_interval"] is None
