import pytest
import typer

from vllm_redknot.cli.units import (
    parse_bytes,
    parse_token_list,
    parse_tokens,
    show_bytes,
    show_flops,
    show_tokens,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8192", 8192), ("8K", 8192), ("8k", 8192), ("1M", 2**20), ("0.5K", 512), (" 32K ", 32768)],
)
def test_tokens_are_read_in_binary_units(text: str, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "K", "-1", "0", "8G", "1e3", "nan", "2048M", "9" * 30, "8K8", "8,K"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no number of tokens"):
        parse_tokens(text)


def test_a_list_of_lengths_is_sorted_and_has_each_once() -> None:
    assert parse_token_list("32K, 8K,8192", "--lengths") == [8192, 32768]


def test_a_length_of_a_list_that_is_none_is_told_with_its_option() -> None:
    with pytest.raises(typer.BadParameter, match=r"^--lengths: '0' is no number of tokens:"):
        parse_token_list("1K,0", "--lengths")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1073741824", 2**30),
        ("1GiB", 2**30),
        ("1G", 2**30),
        ("1GB", 10**9),
        ("1.5 gib", 3 * 2**29),
        ("7B", 7),
    ],
)
def test_bytes_are_read_in_both_kinds_of_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1X", "1 000", "inf"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no number of bytes"):
        parse_bytes(text)


def test_numbers_are_shown_short() -> None:
    assert [show_tokens(n) for n in (100, 1024, 8192, 8193, 2**20)] == ["100", "1K", "8K", "8193", "1M"]
    assert [show_bytes(n) for n in (0, 1023, 1024, 2**30, 1.5 * 2**40, 2**60)] == [
        *("0 B", "1023 B", "1 KiB", "1 GiB", "1.5 TiB", "1.049e+06 TiB")
    ]
    assert [show_flops(n) for n in (5, 1e3, 2.345e9, 5.63e15)] == ["5", "1K", "2.35G", "5.63P"]
