import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, WriteModel
from vllm_redknot.config import RedknotConfig
from vllm_redknot.reuse.chat_documents import ChatDocuments


def words_of(text: str) -> list[str]:
    """The words a POSIX shell makes of a command that is pasted into it."""
    script = f"set -- {text}\nfor word; do printf '%s\\0' \"$word\"; done"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split(
        "\0"
    )[:-1]


def settings_in(command: list[str]) -> dict[str, Any]:
    """The `redknot` section of a command's --additional-config."""
    return dict(json.loads(command[command.index("--additional-config") + 1])["redknot"])


def test_the_line_is_one_command_for_the_shell(
    redknot: Run, write_model: WriteModel, heads_file: Path
) -> None:
    folder = write_model("it's a model; rm -rf $HOME")
    heads = heads_file.rename(heads_file.with_name('my "heads".json'))
    result = redknot(
        "config", folder, "--heads", heads, "--window", "1024", "--max-model-len", "32K", "--tp", "2"
    )
    words = words_of(result.stdout)
    assert words[:5] == ["vllm", "serve", str(folder), "--attention-backend", "REDKNOT"]
    assert settings_in(words) == {"heads": str(heads), "window": 1024}
    assert words[-4:] == ["--tensor-parallel-size", "2", "--max-model-len", "32768"]
    assert "tensor parallelism promotes 2 local heads" in result.stderr


def test_what_is_printed_passes_the_servers_own_validation(redknot: Run, model_path: Path) -> None:
    document = json.loads(
        redknot(
            *("config", model_path, "--window", "300", "--sink", "8", "--dense-prefix-layers", "2", "--json"),
            *(
                "--max-groups",
                "8",
                "--kernel",
                "torch",
                "--duo-threshold",
                "0.25",
                "--cache-dir",
                "/somewhere",
            ),
        ).stdout
    )
    section = settings_in(document["command"])
    assert section == document["settings"]
    assert RedknotConfig.from_additional_config({"redknot": section}, environ={}).window == 300
    assert set(section) == {
        *("window", "sink", "dense_prefix_layers", "max_groups", "kernel", "duo_threshold", "cache_dir")
    }
    assert words_of(document["shell"]) == document["command"]


def test_defaults_need_no_settings(redknot: Run, model_path: Path) -> None:
    document = json.loads(redknot("config", model_path, "--json").stdout)
    assert "--additional-config" not in document["command"]
    assert document["heads"] == "bundled smollm2-135m.json"
    assert document["warnings"] == []


def test_settings_of_the_environment_are_written_out(
    redknot: Run, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDKNOT_WINDOW", "77")
    assert settings_in(words_of(redknot("config", model_path).stdout)) == {"window": 77}


def test_with_reuse_the_server_takes_documents_of_chats(
    redknot: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--middleware" not in words_of(redknot("config", model_path).stdout)
    monkeypatch.setenv("REDKNOT_REUSE", "force")
    monkeypatch.setenv("REDKNOT_STORE", str(tmp_path))
    words = words_of(redknot("config", model_path).stdout)
    assert settings_in(words) == {"reuse": "force", "store": str(tmp_path)}
    module, name = words[words.index("--middleware") + 1].rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is ChatDocuments


def test_a_heads_path_is_made_absolute(
    redknot: Run, heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(heads_file.parent)
    result = redknot("config", "org/name", "--heads", heads_file.name)
    assert settings_in(words_of(result.stdout)) == {"heads": str(heads_file)}
    assert "the fit of the head classes is not checked" in result.stderr
    assert words_of(result.stdout)[2] == "org/name"


def test_rows_are_written_out_whatever_they_were_read_from(
    redknot: Run, write_model: WriteModel, heads_file: Path, tmp_path: Path
) -> None:
    rows = {"ffn_from": 2, "attention_from": 3, "recent": 64}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for given in (json.dumps(rows), tmp_path / "rows.json"):
        result = redknot("config", write_model(), "--heads", heads_file, "--rows", given)
        assert settings_in(words_of(result.stdout)) == {"heads": str(heads_file), "rows": rows}
    document = json.loads(redknot("config", "org/name", "--rows", "off", "--json").stdout)
    assert document["settings"] == settings_in(document["command"]) == {"rows": "off"}


def test_a_schedule_in_the_head_file_must_fit_the_model_unless_it_is_turned_off(
    redknot: Run, fails: Callable[..., str], write_model: WriteModel, heads_file: Path
) -> None:
    heads = json.loads(heads_file.read_text())
    heads["sections"]["rows"] = {"ffn_from": 9}
    heads_file.write_text(json.dumps(heads))
    command = ("config", write_model(), "--heads", heads_file)
    assert "rows.ffn_from is 9: the model's layers are 0 to 3" in fails(*command)
    assert redknot(*command, "--rows", "off").exit_code == 0


def test_without_a_model_the_line_has_a_place_for_it(redknot: Run) -> None:
    assert words_of(redknot("config", "--heads", "all-global").stdout)[2] == "MODEL"


@pytest.mark.parametrize(
    ("flags", "status", "named"),
    [
        (("--window", "0"), 2, "redknot.window is 0"),
        (("--kernel", "cuda"), 2, "redknot.kernel is 'cuda'"),
        (("--duo-threshold", "7"), 2, "redknot.duo_threshold is 7.0"),
        (("--block-size", "24"), 2, "multiple of 16"),
        (("--dense-prefix-layers", "9"), 2, "redknot.dense_prefix_layers is 9"),
        (("--tp", "3"), 1, "do not split over tensor-parallel size 3"),
        (("--heads", "none.json"), 1, "none.json"),
        (("--heads", ""), 2, "redknot.heads is ''"),
        (("--rows", '{"ffn_from": 4}'), 1, "rows.ffn_from is 4: the model's layers are 0 to 3"),
        (("--rows", '{"ffn_form": 2}'), 2, "redknot.rows is"),
        (("--rows", "none.json"), 2, "none.json"),
    ],
)
def test_what_a_server_would_refuse_is_refused_here(
    fails: Callable[..., str], write_model: WriteModel, flags: tuple[str, ...], status: int, named: str
) -> None:
    assert named in fails("config", write_model(), *flags, status=status)


def test_heads_for_another_model_are_refused(
    fails: Callable[..., str], write_model: WriteModel, heads_file: Path
) -> None:
    assert "do not fit the model" in fails("config", write_model(num_hidden_layers=8), "--heads", heads_file)
