"""The tokens that a model expects before any text, such as Llama's <|begin_of_text|>."""

from tokenizers import Tokenizer


def opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself; empty for many models."""
    return tuple(tokenizer.encode("", add_special_tokens=True).ids)
