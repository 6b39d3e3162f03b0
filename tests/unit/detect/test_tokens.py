"""Tokens, their masks and offsets."""

import pytest

from glm4_deploy.detect.tokens import NUMERAL, TokenWindow, mask_of, value_of


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("17", 17),
        ("٣", 3),
        ("seven", 7),
        ("Twelfth", 12),
        ("XIV", 14),
        ("B", 2),
        ("二十三", 23),
        ("一百零五", 105),
        ("十", 10),
        ("二〇二四", 2024),
        ("lamp", None),
        ("İ", None),
        ("9" * 40, None),
    ],
)
def test_numerals_in_any_spelling(token: str, value: int | None) -> None:
    assert value_of(token) == value


def test_masks_hide_numerals_and_keep_words_apart() -> None:
    assert mask_of("9") == mask_of("10") == mask_of("ten") == mask_of("9" * 40) == NUMERAL
    assert len({mask_of("step"), mask_of("day"), mask_of("#"), NUMERAL}) == 4


def test_offsets_survive_blocks_and_dropping() -> None:
    text = "".join(f"word{number} 灯塔, " for number in range(400))
    window = TokenWindow(100, 1000)
    for start in range(0, len(text), 64):
        window.feed(text[start : start + 64], start)
    window.finish("", len(text))
    assert window.dropped > 0
    for index, token in enumerate(window.kept):
        assert text[window.start(index) : window.end(index)] == token


def test_tokens_do_not_depend_on_where_blocks_end() -> None:
    text = "Straße 12345 " + "x" * 200 + " naïve 第二十三步 end"
    whole = TokenWindow(1000, 1000)
    whole.finish(text, 0)
    for size in (1, 7, 64):
        parts = TokenWindow(1000, 1000)
        for start in range(0, len(text), size):
            parts.feed(text[start : start + size], start)
        parts.finish("", len(text))
        assert parts.kept == whole.kept
