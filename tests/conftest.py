"""Fixtures that every test may use.

vLLM on the CPU needs no environment variable here: size the KV cache with `kv_cache_memory_bytes`, not with
VLLM_CPU_KVCACHE_SPACE, which other tests of the process would inherit, and start engines with `enforce_eager=True`
unless compilation is what the test is about.
"""

import os
from pathlib import Path

# Before any test imports huggingface_hub or vLLM, which read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Tests run in as many processes as there are cores; vLLM on a CPU computes with few threads anyway.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tools.smollm2_folder import default_folder, problems

REPO_ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model-folder", type=Path, default=default_folder(), help="folder of the test model")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's root folder."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def model_path(request: pytest.FixtureRequest) -> Path:
    """Folder of SmolLM2-135M-Instruct, verified by checksum."""
    folder: Path = request.config.getoption("--model-folder").expanduser().absolute()
    if wrong := problems(folder):
        pytest.fail("run make setup: " + "; ".join(wrong))
    return folder


@pytest.fixture(scope="session")
def shared_data(repo_root: Path) -> Path:
    """Sample head-class files and scores beside the repository; without them the test is skipped."""
    folder = repo_root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"sample files not found: {folder} does not exist")
    return folder
