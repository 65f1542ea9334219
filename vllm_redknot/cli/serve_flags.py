"""`vllm serve` command lines with head classes, as argument lists; quoting is left to the shell's rules."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from vllm_redknot.config import SECTION, RedknotConfig
from vllm_redknot.settings import BACKEND_NAME


def redknot_section(config: RedknotConfig, given: Collection[str]) -> dict[str, Any]:
    """The settings in `given`, and those that REDKNOT_* variables changed; what is left out has its default."""
    default = RedknotConfig(cache_dir=config.cache_dir)
    values = {key: getattr(config, key) for key in RedknotConfig.model_fields}
    return {key: value for key, value in values.items() if key in given or value != getattr(default, key)}


def backend_flags(section: dict[str, Any]) -> list[str]:
    """The flags that turn REDKNOT on with these settings."""
    flags = ["--attention-backend", BACKEND_NAME]
    if section:
        flags += ["--additional-config", json.dumps({SECTION: section})]
    return flags


def shell_line(command: Sequence[str]) -> str:
    """One command for a POSIX shell, a flag with its value per line."""
    words = [shlex.quote(word) for word in command]
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)
