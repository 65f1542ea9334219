"""What all commands share: help, versions, exit statuses, one-line errors, no need of vLLM."""

import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import vllm_redknot
from tests.cli.conftest import Run
from vllm_redknot.cli import main, target

COMMANDS = ("inspect", "convert", "plan", "config", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_command_explains_itself_at_any_width(redknot: Run, command: str, width: int) -> None:
    result = redknot(command, "--help", width=width)
    assert result.exit_code == 0
    assert f"Usage: redknot {command}" in result.stdout
    assert "--json" in result.stdout
    assert "Example" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width


def test_without_a_command_the_help_is_printed_and_the_usage_is_wrong(redknot: Run) -> None:
    result = redknot()
    assert result.exit_code == 2
    assert all(command in result.output for command in COMMANDS)


def test_the_version_is_the_packages(redknot: Run) -> None:
    assert redknot("--version").stdout.strip() == vllm_redknot.__version__


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("inspekt",), "inspect"),
        (("inspect", "--no-such-option", "x"), "--no-such-option"),
        (("inspect", "x", "--contexts", "many"), "'many' is no number of tokens"),
        (("convert", "x"), "--output"),
        (("convert", "x", "-o", "y", "--to", "v9"), "v9"),
        (("plan", "--layers", "0"), "--layers"),
        (("doctor", "extra"), "extra"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    fails: Callable[..., str], arguments: tuple[str, ...], named: str
) -> None:
    assert named in fails(*arguments, status=2)


def test_a_setting_that_cannot_be_used_is_wrong_usage(
    fails: Callable[..., str], heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "redknot.window is 0" in fails("inspect", heads_file, "--window", "0", status=2)
    monkeypatch.setenv("REDKNOT_SINK", "lots")
    assert "REDKNOT_SINK='lots'" in fails("inspect", heads_file, status=2)


def test_a_mistake_of_ours_is_one_line_too(
    fails: Callable[..., str], heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "load_profile", {}.__getitem__)
    line = fails("inspect", heads_file)
    assert "internal error, TypeError" in line
    assert "redknot doctor" in line


def test_nothing_but_the_doctor_needs_vllm_or_torch(heads_file: Path, tmp_path: Path) -> None:
    commands = [
        ["inspect", str(heads_file)],
        ["convert", str(heads_file), "-o", str(tmp_path / "out.json"), "--json"],
        ["plan", "--heads", str(heads_file), "--query-heads", "8", "--head-dim", "64"],
        ["config", "org/name", "--heads", str(heads_file)],
    ]
    code = f"""
import sys
sys.modules.update(vllm=None, torch=None, transformers=None)
from vllm_redknot.cli.main import app
for command in {commands!r}:
    try:
        app(command)
    except SystemExit as end:
        assert end.code == 0, (command, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_console_script_is_this_command(repo_root: Path) -> None:
    scripts = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["redknot"]) is main.main


def test_the_module_runs_like_the_script(heads_file: Path) -> None:
    command = [sys.executable, "-m", "vllm_redknot.cli", "inspect", str(heads_file.parent / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("redknot: head-class file")
    assert len(done.stderr.splitlines()) == 1
