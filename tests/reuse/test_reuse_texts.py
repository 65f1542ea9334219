"""Documents marked by their text are found in a prompt's tokens, whatever happened to their ends."""

import re

import numpy as np
import pytest

from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.text_tokens import TextTokenizer
from vllm_redknot.reuse.texts import EDGE, Located, locate

PIECES = re.compile(r" ?\w+| +|\n|[^\w\s]+")


class Words:
    """A tokenizer of words with the space before them, runs of spaces, and runs of signs: joins merge."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        self.encoded.append(text)
        return [
            self.vocabulary.setdefault(piece, len(self.vocabulary) + 250) for piece in PIECES.findall(text)
        ]


class World:
    """A tokenizer, and prompts that are asked for texts."""

    def __init__(self) -> None:
        self.tokens = TextTokenizer(Words())
        self._words = 0

    def document(self, words: int = 40) -> str:
        """A sentence of new words."""
        self._words += words
        return " ".join(f"w{word}" for word in range(self._words - words, self._words)) + "."

    def locate(self, prompt: str, *texts: str) -> Located:
        """Where texts are in a prompt."""
        return locate(self.tokens(prompt), texts, self.tokens)

    def place(self, prompt: str, part: str) -> Span:
        """Tokens of the first place of a part, all of which are whole in the prompt."""
        begin = len(self.tokens(prompt[: prompt.index(part)]))
        return Span(begin, begin + len(self.tokens(part)))


@pytest.fixture
def world() -> World:
    return World()


def test_texts_as_they_are_are_whole_spans(world: World) -> None:
    first, second = world.document(), world.document()
    prompt = f"Read this:\n{first}\n{second}\nWhat?"
    expected = (world.place(prompt, first), world.place(prompt, second))
    assert world.locate(prompt, first, second) == Located(expected, ())
    # A text that is the whole prompt too.
    assert world.locate(first, first) == Located((Span(0, 41),), ())


def test_tokens_that_merge_at_a_join_are_left_out(world: World) -> None:
    document = world.document()
    # "w0" merges with the word before it, and "." with the signs behind it: 39 tokens agree.
    located = world.locate(f"Read{document}!? What", document)
    assert located == Located((Span(1, 40),), ())


def test_as_many_tokens_may_differ_at_each_end_as_the_bound_says(world: World) -> None:
    document = world.document(100)
    middle = " ".join(document.split()[EDGE : 1 - EDGE])
    assert world.locate(f"So: {middle} and so on", document) == Located((Span(2, 103 - 2 * EDGE),), ())
    shorter = " ".join(middle.split()[1:])
    assert world.locate(f"So: {shorter} and so on", document) == Located((), (0,))


def test_of_a_short_text_a_quarter_may_differ_at_each_end(world: World) -> None:
    assert world.locate("a b c d e f g h", "x c d e") == Located((Span(2, 5),), ())
    assert world.locate("a b c d e f g h", "x y d e") == Located((), (0,))
    assert world.locate("a b c", "b") == Located((), (0,))
    assert world.locate("a b c", " b") == Located((Span(1, 2),), ())


def test_a_text_that_a_template_has_stripped_is_found(world: World) -> None:
    document = world.document()
    prompt = f"user\n{document}\nend"
    expected = Located((world.place(prompt, document),), ())
    assert world.locate(prompt, f"\n {document}\n\n") == Located((Span(3, 44),), ())
    # With so much white space more tokens differ than may.
    spaces = "".join(f"{' ' * n}\n" for n in range(2, EDGE + 2))
    assert world.locate(prompt, spaces + document + spaces) == expected


def test_a_text_of_white_space_or_nothing_is_not_found(world: World) -> None:
    assert world.locate("a b c", "", "  ") == Located((), (0, 1))


def test_a_repeated_text_is_found_as_often_as_it_stands_there(world: World) -> None:
    document = world.document()
    prompt = f"{document}\n{document}\nWhat?"
    assert world.locate(prompt, document) == Located((Span(0, 41),), ())
    assert world.locate(prompt, document, document) == Located((Span(0, 41), Span(42, 83)), ())
    assert world.locate(prompt, document, document, document) == Located((Span(0, 41), Span(42, 83)), (2,))


def test_a_text_is_looked_for_behind_the_one_before_it_first(world: World) -> None:
    first, second = world.document(), world.document()
    prompt = f"{second}\n{first}\n{second}\n"
    assert world.locate(prompt, first, second).spans == (Span(42, 83), Span(84, 125))
    assert world.locate(prompt, second, first).spans == (Span(0, 41), Span(42, 83))


def test_texts_in_another_order_than_the_prompts_are_found_too(world: World) -> None:
    documents = [world.document() for _ in range(4)]
    prompt = "\n".join(documents)
    located = world.locate(prompt, *(documents[index] for index in (2, 0, 3, 1)))
    assert located == Located(tuple(world.place(prompt, document) for document in documents), ())


def test_found_texts_never_overlap(world: World) -> None:
    document = world.document(60)
    words = document.split()
    half, other = " ".join(words[:40]), " ".join(words[20:])
    # Two that share their middle: whichever comes first has it.
    assert world.locate(document, half, other) == Located((Span(0, 40),), (1,))
    assert world.locate(document, other, half) == Located((Span(21, 61),), (1,))
    # A part of what is found already, and one that begins where it ends.
    rest = " " + " ".join(words[40:])
    assert world.locate(document, half, " ".join(words[5:20]), rest) == Located(
        (Span(0, 40), Span(40, 61)), (1,)
    )


def test_ends_do_not_reach_into_other_texts(world: World) -> None:
    # The second text begins with the last tokens of the first, which the first has.
    first, second = world.document(), world.document()
    shared = " ".join(first.split()[-4:])
    located = world.locate(f"{first} {second}", first, f"{shared} {second}")
    assert located == Located((Span(0, 41), Span(41, 82)), ())


def test_a_text_that_is_not_there_is_named_and_the_others_go_on(world: World) -> None:
    first, second = world.document(), world.document()
    prompt = f"{first}\n{second}"
    assert world.locate(prompt, world.document(), first, world.document(), second) == Located(
        (Span(0, 41), Span(42, 83)), (0, 2)
    )


def test_random_cuts_of_random_tokens_are_found_where_they_were_cut() -> None:
    random = np.random.default_rng(7)
    for _ in range(50):
        # Ids like those of surrogate characters and of single bytes too.
        prompt = random.choice(np.array([0, 1, 255, 256, 0xD800, 0xDFFF, 0xFFFF, 250_000]), 400).astype(
            np.int32
        )
        edges = np.sort(random.choice(401, 6, replace=False))
        spans = tuple(
            Span(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= 12
        )
        texts = {str(number): prompt[span.begin : span.end] for number, span in enumerate(spans)}
        assert locate(prompt, list(texts), texts.__getitem__) == Located(spans, ())


def test_a_text_that_almost_repeats_itself_is_not_in_a_prompt_that_does() -> None:
    prompt, almost = np.full(200_000, 256, np.int32), np.full(20_000, 256, np.int32)
    almost[10_000] = 1
    assert locate(prompt, ["text"], {"text": almost}.__getitem__) == Located((), (0,))


def test_a_text_is_tokenised_once_until_others_have_taken_its_room() -> None:
    words = Words()
    tokens = TextTokenizer(words, max_kept=20)
    assert tokens("a b c d").tolist() == tokens("a b c d").tolist() == [250, 251, 252, 253]
    assert tokens("").tolist() == []
    tokens("e f g")
    tokens("a b c d")
    assert words.encoded == ["a b c d", "", "e f g"]
    # 10 of 20 are kept: room for 9 more tokens and one for the text. The least recently used go.
    tokens("1 2 3 4 5 6 7 8 9 10 11")
    tokens("a b c d")
    assert words.encoded[3:] == ["1 2 3 4 5 6 7 8 9 10 11"]
    tokens("e f g")
    assert words.encoded[4:] == ["e f g"]


def test_a_text_larger_than_all_room_is_tokenised_and_not_kept() -> None:
    words = Words()
    tokens = TextTokenizer(words, max_kept=4)
    assert len(tokens("a b c d e f")) == len(tokens("a b c d e f")) == 6
    assert len(words.encoded) == 2
