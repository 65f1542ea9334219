import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report import samples
from vllm_redknot.report.collect import collect
from vllm_redknot.report.page import page

Render = Callable[..., str]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Renders documents, each a file of the name it is given by."""

    def run(**documents: Any) -> str:
        for name, document in documents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        return page(collect(tmp_path))

    return run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one document of every kind."""
    folder = tmp_path / "results"
    folder.mkdir()
    for make in (samples.bench, samples.evaluation, samples.heads, samples.profile):
        (folder / f"{make.__name__}.json").write_text(json.dumps(make()))
    return folder
