"""Questions about paragraphs: the development sets of SQuAD v2 (answerable ones) and HotpotQA, read as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from vllm_redknot.evals.texts import data_file

DataSet = Literal["squad", "hotpotqa"]
DATA_SETS: Final[tuple[DataSet, ...]] = ("squad", "hotpotqa")


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and the paragraphs that tell."""

    text: str
    accepted: tuple[str, ...]
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """A data set. `paragraphs` are all of its paragraphs, each once; a question's own are among them."""

    questions: tuple[Question, ...]
    paragraphs: tuple[str, ...]


def read_questions(data_set: DataSet) -> Questions:
    """The data set, in the order of its file.

    Raises:
        TextsMissingError: The package with the data is not installed.
    """
    return {"squad": _squad, "hotpotqa": _hotpotqa}[data_set]()


@cache
def _squad() -> Questions:
    """SQuAD v2, its unanswerable questions left out. A paragraph of Wikipedia tells each answer."""
    found, paragraphs = [], []
    for article in json.loads(data_file("squad.json").read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            context = _one_line(paragraph["context"])
            paragraphs.append(context)
            for asked in paragraph["qas"]:
                if asked["is_impossible"]:
                    continue
                accepted = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                found.append(Question(_one_line(asked["question"]), accepted, (context,)))
    return Questions(tuple(found), tuple(dict.fromkeys(paragraphs)))


@cache
def _hotpotqa() -> Questions:
    """HotpotQA in its distractor setting. Two paragraphs, named by their titles, tell an answer together."""
    found = []
    paragraphs: dict[str, None] = {}
    for asked in json.loads(data_file("hotpotqa.json").read_text(encoding="utf-8")):
        texts = {title: _one_line(f"{title}: {''.join(sentences)}") for title, sentences in asked["context"]}
        paragraphs |= dict.fromkeys(texts.values())
        told = tuple(texts[title] for title in dict.fromkeys(title for title, _ in asked["supporting_facts"]))
        found.append(Question(_one_line(asked["question"]), (asked["answer"],), told))
    return Questions(tuple(found), tuple(paragraphs))


def _one_line(text: str) -> str:
    return " ".join(text.split())
