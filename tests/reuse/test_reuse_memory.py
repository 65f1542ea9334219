"""The memory tier against a dict model, in random operations."""

import random
from collections import Counter

import pytest
from store_world import document, segment

from vllm_redknot.reuse.memory import MemoryTier

SEGMENTS = [segment(document(seed, 31 + 5 * seed)) for seed in range(12)]
BUDGET = sum(found.nbytes for found in SEGMENTS) // 3


class Model:
    """What the tier must do, written down plainly: least recently used first in a list."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.leases: Counter[int] = Counter()
        self.reserved: list[int] = []

    @property
    def used(self) -> int:
        return sum(SEGMENTS[i].nbytes for i in (*self.order, *self.reserved))

    def reserve(self, number: int) -> list[int] | None:
        need = self.used + SEGMENTS[number].nbytes - BUDGET
        evicted = []
        for candidate in (i for i in self.order if not self.leases[i]):
            if need <= 0:
                break
            need -= SEGMENTS[candidate].nbytes
            evicted.append(candidate)
        if need > 0:
            return None
        self.order = [i for i in self.order if i not in evicted]
        self.reserved.append(number)
        return evicted


@pytest.mark.parametrize("seed", range(30))
def test_random_operations_do_what_a_list_does(seed: int) -> None:
    generator, model, tier = random.Random(seed), Model(), MemoryTier(BUDGET)
    events: Counter[str] = Counter()
    for _ in range(400):
        number = generator.randrange(len(SEGMENTS))
        content = SEGMENTS[number].content
        match generator.choice(("reserve", "commit", "cancel", "lease", "release")):
            case "reserve" if number not in model.order and number not in model.reserved:
                expected = model.reserve(number)
                found = tier.reserve(SEGMENTS[number].nbytes)
                assert found == (None if expected is None else [SEGMENTS[i].content for i in expected])
                events["no room" if found is None else "evicted" if found else "reserved"] += 1
            case "commit" if model.reserved:
                number = model.reserved.pop()
                leases = generator.choice((0, 0, 1, 2))
                tier.commit(SEGMENTS[number], leases)
                model.order.append(number)
                model.leases[number] += leases
            case "cancel" if model.reserved:
                tier.cancel(SEGMENTS[model.reserved.pop()].nbytes)
            case "lease":
                found = tier.lease(content)
                assert (found is SEGMENTS[number]) == (number in model.order)
                if found:
                    model.order.remove(number)
                    model.order.append(number)
                    model.leases[number] += 1
                events["lease" if found else "absent"] += 1
            case "release" if model.leases[number]:
                tier.release(content)
                model.leases[number] -= 1
        tier.check_integrity()
        assert tier.used_bytes == model.used <= BUDGET
        assert list(tier.contents) == [SEGMENTS[i].content for i in model.order]
        assert tier.num_leases == model.leases.total()
        assert tier.leased == {SEGMENTS[i].content for i in model.leases if model.leases[i]}
    assert {"no room", "evicted", "reserved", "lease", "absent"} <= events.keys()


def test_a_lease_that_was_not_taken_cannot_be_given_back() -> None:
    tier = MemoryTier(BUDGET)
    assert tier.reserve(SEGMENTS[0].nbytes) == []
    tier.commit(SEGMENTS[0], leases=0)
    with pytest.raises(AssertionError, match="no lease"):
        tier.release(SEGMENTS[0].content)


def test_what_exceeds_the_budget_evicts_nothing() -> None:
    tier = MemoryTier(SEGMENTS[0].nbytes)
    assert tier.reserve(SEGMENTS[0].nbytes) == []
    tier.commit(SEGMENTS[0], leases=0)
    assert tier.reserve(SEGMENTS[11].nbytes) is None
    assert SEGMENTS[0].content in tier.contents
