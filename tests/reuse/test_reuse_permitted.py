"""Which repair a request gets of a server, by its wish, the server's policy and its receipt."""

from typing import Any

import pytest

from vllm_redknot.reuse.control import parse_control
from vllm_redknot.reuse.permitted import Permitted
from vllm_redknot.reuse.policy import Blend

BOUNDARIES = Permitted(24)
BLENDS = Permitted(24, share=0.15)
RECEIPT = Permitted(24, share=0.15, least_share=0.1)


def repair(permitted: Permitted, wish: dict[str, Any]) -> tuple[int, float | None, str]:
    found, problem = permitted.repair(parse_control({"redknot_reuse": wish}, 9))
    return found.boundary, None if found.blend is None else found.blend.share, problem


@pytest.mark.parametrize(
    ("permitted", "wish", "boundary", "share"),
    [
        (BOUNDARIES, {}, 24, None),
        (BOUNDARIES, {"boundary": 0}, 0, None),
        (BLENDS, {}, 0, 0.15),
        (BLENDS, {"policy": "blend"}, 0, 0.15),
        (BLENDS, {"share": 1}, 0, 1.0),
        (BLENDS, {"share": 0}, 0, 0.0),
        (BLENDS, {"policy": "boundary"}, 24, None),
        (BLENDS, {"boundary": 3}, 3, None),
        (RECEIPT, {}, 0, 0.15),
        (RECEIPT, {"share": 0.1}, 0, 0.1),
    ],
)
def test_what_is_asked_for_is_given(
    permitted: Permitted, wish: dict[str, Any], boundary: int, share: float | None
) -> None:
    assert repair(permitted, wish) == (boundary, share, "")


def test_a_server_for_boundaries_gives_one_instead_of_blend_and_says_so() -> None:
    for wish in ({"policy": "blend"}, {"share": 0.5}):
        boundary, share, problem = repair(BOUNDARIES, wish)
        assert (boundary, share) == (24, None)
        assert problem == (
            'policy "blend" is not served here (the server\'s settings need "policy": "blend"): boundary 24 was used'
        )


def test_a_receipt_for_blend_holds_for_blend_alone_and_for_its_share() -> None:
    boundary, share, problem = repair(RECEIPT, {"boundary": 64})
    assert (boundary, share) == (0, 0.15)
    assert (
        problem
        == 'policy "boundary" is not what the server\'s receipt is for: "blend" with share 0.15 was used'
    )
    boundary, share, problem = repair(RECEIPT, {"share": 0.05})
    assert (boundary, share) == (0, 0.1)
    assert problem == "share 0.05 is less than 0.1, which the server's receipt is for: 0.1 was used"


@pytest.mark.parametrize(
    ("share", "tokens", "chosen"), [(0, 99, 0), (1, 99, 99), (0.15, 200, 30), (0.15, 17, 3)]
)
def test_a_share_is_rounded_to_tokens(share: float, tokens: int, chosen: int) -> None:
    assert Blend(share).chosen(tokens) == chosen
