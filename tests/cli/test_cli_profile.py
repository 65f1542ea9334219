"""`redknot profile`: what it refuses before it loads a model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.profiler.foreign_attention import FOREIGN


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kv-share", "0.2", "--global-fraction", "0.1"), "two budgets: give one"),
        (("--windows", "1K", "--lengths", "1400"), "give at least 2348"),
        (("--lengths", "9K"), "9216 tokens are more than the model's 8192"),
        (("--data", "/nowhere/text"), "cannot be read as UTF-8 text"),
        (("--data", "/dev/null"), "/dev/null: is no regular file: give one of UTF-8 text"),
        (("--device", "abacus"), "--device is 'abacus': Expected one of cpu, cuda"),
        (("--device", "meta"), "--device is 'meta': "),
        (("--sink", "2048"), "--sink is 2048: it shows texts of 1024 tokens whole, give less"),
    ],
)
def test_wrong_options_are_one_line_that_says_what_to_give(
    redknot: Run, model_path: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = redknot("profile", model_path, "-o", tmp_path / "heads.json", *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_there_is_not_replaced(redknot: Run, model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "heads.json"
    output.write_text("kept")
    result = redknot("profile", model_path, "-o", output)
    assert result.exit_code == 1
    assert "--force to replace it" in result.stderr
    assert output.read_text() == "kept"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_output_that_is_a_folder_is_told_before_the_model_is_looked_at(
    fails: Callable[..., str], tmp_path: Path, force: tuple[str, ...]
) -> None:
    (tmp_path / "heads").mkdir()
    command = ("profile", tmp_path / "no-model", "-o", tmp_path / "heads", *force)
    assert f"{tmp_path / 'heads'} is a folder: give the name of a file as --output" in fails(*command)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--lengths", "0"), ("--check-lengths", "1K,-1"), ("--windows", "none")),
        *(("--texts", "1001"), ("--check-texts", "0"), ("--sink", "9" * 20), ("--kv-share", "nan")),
        *(("--max-nll-increase", "inf"), ("--max-kl", "inf"), ("--essay-weight", "inf")),
    ],
)
def test_numbers_that_cannot_be_are_told_with_their_option(
    fails: Callable[..., str], tmp_path: Path, option: str, value: str
) -> None:
    command = ("profile", tmp_path / "no-model", "-o", tmp_path / "heads.json", option, value)
    assert option in fails(*command, status=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a sliding window in every layer", "(mistral) has layers with a sliding window of their own"),
        ("soft caps alone", "(gemma2) has soft-capped attention scores (attn_logit_softcapping 50.0)"),
        ("chunked attention", "(llama4_text) has 3 of 4 layers with chunked local attention"),
        ("latent attention", "REDKNOT does not serve MLA models: there is nothing to profile in"),
    ],
)
def test_a_model_whose_heads_cannot_be_scored_is_refused_by_name(
    fails: Callable[..., str], tmp_path: Path, name: str, said: str
) -> None:
    folder = tmp_path / "model"
    FOREIGN[name][0].save_pretrained(folder)
    assert said in fails("profile", folder, "-o", tmp_path / "heads.json")
    assert list(tmp_path.iterdir()) == [folder]
