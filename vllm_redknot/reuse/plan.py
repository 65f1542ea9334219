"""From stored runs found in a prompt to the spans whose forward pass is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.policy import RepairPolicy

MIN_TOKENS: Final = 16
"""Shorter spans are computed: each span costs an engine step."""


class Run(NamedTuple):
    """Tokens of a stored segment that stand in a prompt."""

    content: str
    num_tokens: int  # of the segment
    offset: int  # first token within the segment
    begin: int  # first token within the prompt
    length: int


class CleanSpan(NamedTuple):
    """Prompt tokens [begin, end) that take their KV from tokens [offset, ..) of a segment."""

    begin: int
    end: int
    content: str
    offset: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing is missing from its KV: the start of a segment at the start of the prompt."""
        return self.begin == 0 and self.offset == 0

    def after(self, position: int) -> CleanSpan:
        """What is left of it from `position` on."""
        skipped = max(0, position - self.begin)
        return CleanSpan(self.begin + skipped, self.end, self.content, self.offset + skipped)

    def before(self, position: int) -> CleanSpan:
        """What there is of it before `position`."""
        return self._replace(end=min(self.end, position))


def plan_spans(
    runs: Iterable[Run], layout: SegmentFormat, policy: RepairPolicy, num_prompt_tokens: int
) -> tuple[CleanSpan, ...]:
    """Disjoint spans in order. Left out: what is too short, overlaps an earlier span, or needs KV that is not kept.

    The prompt's last token is always computed: its logits are the answer's first token.
    """
    spans: list[CleanSpan] = []
    for run in sorted(runs, key=lambda run: (run.begin, -run.length)):
        repaired = policy.recomputed(run.begin, run.offset, run.length)
        begin, end = run.begin + repaired, min(run.begin + run.length, num_prompt_tokens - 1)
        offset = run.offset + repaired
        if end - begin < MIN_TOKENS or (spans and run.begin < spans[-1].end):
            continue
        if layout.covers(run.num_tokens, offset, offset + end - begin, begin):
            spans.append(CleanSpan(begin, end, run.content, offset))
    return tuple(spans)
