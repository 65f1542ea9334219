"""Numbers as people write them on a command line: 32K tokens, 80GiB, lists of both."""

import re
from typing import Final

import typer

from vllm_redknot.heads.profile import MAX_POSITIONS

TOKEN_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20}
BYTE_UNITS: Final = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{unit + "IB": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)},
    **{unit: 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)},
}
CONTEXTS: Final = (8 * 1024, 32 * 1024, 128 * 1024)
"""What figures are shown for unless asked otherwise."""
NUMBER: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)")


def parse_tokens(text: str) -> int:
    """`8192`, `8K` (8192) or `1M`: 1 to 2^30 tokens. Raises typer.BadParameter."""
    count = _parse(text, TOKEN_UNITS)
    if count is None or not 1 <= count <= MAX_POSITIONS:
        raise typer.BadParameter(f"{text!r} is no number of tokens: give one such as 8192, 32K or 1M")
    return count


def parse_token_list(text: str, option: str) -> list[int]:
    """`8K,32K,128K`, rising and each once. Raises typer.BadParameter, which names the option."""
    try:
        return sorted({parse_tokens(part.strip()) for part in text.split(",")})
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{option}: {error.message}") from error


def parse_bytes(text: str) -> int:
    """`80GiB` or `80G` (2^30 each), `80GB` (10^9 each), or plain bytes. Raises typer.BadParameter."""
    count = _parse(text, BYTE_UNITS)
    if count is None:
        raise typer.BadParameter(
            f"{text!r} is no number of bytes: give one such as 80GiB, 80GB or 1073741824"
        )
    return count


def default_contexts(longest: int | None) -> list[int]:
    """Round lengths that a model can have, and its longest; without one, the round ones."""
    if longest is None:
        return list(CONTEXTS)
    return [*(context for context in CONTEXTS if context < longest), longest]


def _parse(text: str, units: dict[str, int]) -> int | None:
    found = NUMBER.fullmatch(text.strip())
    factor = units.get(found[2].upper()) if found else None
    return None if found is None or factor is None else round(float(found[1]) * factor)


def show_tokens(count: int) -> str:
    """`32K` where that is exact, else the number."""
    for unit, factor in (("M", 2**20), ("K", 2**10)):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def show_bytes(count: float) -> str:
    """Three or four digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} TiB"


def show_flops(count: float) -> str:
    """Three digits and the letter of a decimal unit."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(count) < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:,.3g}P"
