"""Head positions the RedKnot project draws at random: some of its published files are such draws."""

import random
from typing import Final

SEED: Final = 1234
RANDOM_WARNING: Final = (
    f"the global heads are a random draw (seed {SEED}), not chosen by measurement: expect wrong answers to"
    " questions about text outside the windows"
)


def drawn_positions(rows: int, heads: int, count: int) -> set[tuple[int, int]]:
    """The first `count` (row, head) places when all, listed row by row, are shuffled with the seed."""
    places = [(row, head) for row in range(rows) for head in range(heads)]
    # random.Random gives the same shuffle on every platform and Python version the project supports.
    random.Random(SEED).shuffle(places)
    return set(places[:count])
