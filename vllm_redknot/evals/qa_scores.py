"""Exact match and F1 of an answer, as the official SQuAD and HotpotQA evaluation scripts define them.

Rajpurkar et al. 2016 (arXiv:1606.05250), section 6.1; Yang et al. 2018 (arXiv:1809.09600), for yes and no.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Final

ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
WHOLE_ANSWERS: Final = frozenset({"yes", "no", "noanswer"})
"""Answers that are right or wrong as a whole: a sentence that holds one is not half right."""


def normalize(answer: str) -> str:
    """Lower case; without punctuation, articles and superfluous spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, accepted: Iterable[str]) -> float:
    """1.0 if the answer is one of those accepted, normalised, else 0.0."""
    return float(normalize(answer) in {normalize(right) for right in accepted})


def f1(answer: str, accepted: Iterable[str]) -> float:
    """The best word-overlap F1 with an accepted answer, 0 to 1."""
    return max(_f1(normalize(answer), normalize(right)) for right in accepted)


def _f1(answer: str, right: str) -> float:
    if answer == right:
        return 1.0
    if WHOLE_ANSWERS & {answer, right}:
        return 0.0
    words, right_words = answer.split(), right.split()
    shared = (Counter(words) & Counter(right_words)).total()
    return 2 * shared / (len(words) + len(right_words)) if shared else 0.0
