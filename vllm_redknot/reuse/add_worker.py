"""A process that is one vLLM engine and puts documents into a segment store, each computed alone.

The settings are arguments of vllm.LLM; a request is {"tokens": [ids]}. Lines on stdout: {"facts": {"scope", "dtype"}},
then per document {"there", "bytes", "evicted", "problem"}: whether it was stored before, bytes of its file, how many
others gave way to it, and why it is not stored (else null). See `evals/worker_lines.py` for the rest.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_redknot.config import SECTION
from vllm_redknot.evals.worker_lines import answer_lines

if TYPE_CHECKING:
    from vllm_redknot.reuse.store import SegmentStore

WRITE_SECONDS: Final = 600.0
"""A document's time to reach the disk, others' locks included."""
LIST_SECONDS: Final = 600.0


def main() -> None:
    """Entry point of the process."""
    answer_lines(lambda line: array("i", line["tokens"]), _serve)


def _serve(settings: dict[str, Any], documents: list[array[int]]) -> Iterator[dict[str, Any]]:
    from vllm import LLM
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from vllm_redknot.reuse.connector import SegmentReuseConnector

    llm = LLM(**settings)
    connector = get_kv_transfer_group()
    assert isinstance(connector, SegmentReuseConnector)
    store = connector.store
    # What is there already must be known, however many that are.
    store.refresh(LIST_SECONDS)
    yield {"facts": {"scope": store.scope.name, "dtype": store.scope.fingerprint.dtype}}
    folder = Path(settings["additional_config"][SECTION]["store"])
    for tokens in documents:
        yield _add(llm, store, folder, tokens.tolist())
    store.close()


def _add(llm: Any, store: SegmentStore, folder: Path, tokens: list[int]) -> dict[str, Any]:
    from vllm import SamplingParams

    from vllm_redknot.reuse.control import ARGUMENT
    from vllm_redknot.reuse.scope import content_id

    content = content_id(tokens)
    there = store.is_on_disk(content)
    before = store.counters()
    if not there:
        wish = {"spans": [[0, len(tokens)]], "reuse": False}
        params = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, extra_args={ARGUMENT: wish}
        )
        llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False)
        store.flush(WRITE_SECONDS)
    counters = store.counters()
    reply = {"there": there, "bytes": 0, "evicted": counters.evictions_disk - before.evictions_disk}
    file = folder / store.scope.file_name(content)
    if store.is_on_disk(content) and file.is_file():
        return {**reply, "bytes": file.stat().st_size, "problem": None}
    reasons = counters.write_failures - before.write_failures
    names = ", ".join(reason.value for reason in reasons) or "not computed"
    return {**reply, "problem": f"is not stored ({names}): the log says more"}


if __name__ == "__main__":
    main()
