"""Which repair a request gets: what it asks for, what the server does by itself, and what its receipt is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vllm_redknot.reuse.control import Control
from vllm_redknot.reuse.policy import BLEND, BOUNDARY, Blend


class Repair(NamedTuple):
    """What is recomputed of the moved documents of one request."""

    boundary: int
    blend: Blend | None  # None: the first `boundary` tokens; else `boundary` is 0


@dataclass(frozen=True)
class Permitted:
    """One server's choices.

    Attributes:
        boundary: tokens recomputed per moved span where a request does not say.
        least_boundary: what a request may lower the boundary to.
        share: of blend where a request does not say; None where the server does not serve blend.
        least_share: the share of a receipt for blend: requests get blend with at least this. None: there is none.
    """

    boundary: int
    least_boundary: int = 0
    share: float | None = None
    least_share: float | None = None

    def repair(self, control: Control) -> tuple[Repair, str]:
        """What a request gets, and what its response says of that; "" if it is what was asked for."""
        policy = control.policy or (BOUNDARY if self.share is None else BLEND)
        if policy == BLEND and self.share is None:
            boundary = max(self.boundary, self.least_boundary)
            return Repair(boundary, None), (
                f'policy "{BLEND}" is not served here (the server\'s settings need "policy": "{BLEND}"): boundary'
                f" {boundary} was used"
            )
        if policy == BLEND:
            return self._blend(control)
        if self.least_share is not None:
            repair, _ = self._blend(Control())
            assert repair.blend is not None
            return repair, (
                f'policy "{BOUNDARY}" is not what the server\'s receipt is for: "{BLEND}" with share'
                f" {repair.blend.share} was used"
            )
        boundary = self.boundary if control.boundary is None else control.boundary
        if control.boundary is None or boundary >= self.least_boundary:
            return Repair(boundary, None), ""
        return Repair(self.least_boundary, None), (
            f"boundary {boundary} is less than {self.least_boundary}, which the server's receipt is for:"
            f" {self.least_boundary} was used"
        )

    def _blend(self, control: Control) -> tuple[Repair, str]:
        share = self.share if control.share is None else control.share
        assert share is not None
        least = self.least_share or 0.0
        if share >= least:
            return Repair(0, Blend(share)), ""
        return Repair(0, Blend(least)), (
            f"share {share} is less than {least}, which the server's receipt is for: {least} was used"
        )
