"""Text into tokens of its own (words, numbers, marks), each with its offset and with a mask that hides numerals.

One ideograph is one token, a numeral in any script or spelling has the same mask (the letters A to Z too, since lists
count with them), and a space is none. So `Step 9`, `Step 10` and `Step ten` have the same masks, which is what the
search for counters needs.
"""

import re
from bisect import bisect_left
from functools import lru_cache
from typing import Final

NUMERAL: Final = "#"
_LONGEST = 64  # characters of one token: what is longer comes in pieces, so that a cut text needs little kept back
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_HAN = "".join(_HAN_DIGITS) + "".join(_HAN_UNITS)
_TOKEN = re.compile(
    rf"\d{{1,{_LONGEST}}}|[{_HAN}]{{1,{_LONGEST}}}|[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    rf"|[^\W\d_]{{1,{_LONGEST}}}|\n|[^\w\s]|_"
)
_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_SPELT = (
    {word: value for value, word in enumerate(_CARDINALS.split())}
    | {word: value for value, word in enumerate(_ORDINALS.split())}
    | {word: 10 * value for value, word in enumerate(_TENS.split(), start=3)}
)
_ROMAN = re.compile(r"[IVXLC]{1,9}")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


@lru_cache(maxsize=8192)
def value_of(token: str) -> int | None:
    """The number that a token stands for, None if it is none. A single letter counts from a (or A) = 1."""
    if token.isdecimal():
        return int(token) if len(token) <= 18 else None
    if token[0] in _HAN_DIGITS or token[0] in _HAN_UNITS:
        return _han(token)
    lower = token.lower()
    if lower in _SPELT:
        return _SPELT[lower]
    if len(token) > 1 and _ROMAN.fullmatch(token):
        return _roman(token)
    return ord(lower) - 96 if len(token) == 1 and "a" <= lower <= "z" else None


def _han(token: str) -> int:
    if not any(char in _HAN_UNITS for char in token):
        return int("".join(str(_HAN_DIGITS[char]) for char in token[:18]))
    total = digit = 0
    for char in token:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
        else:
            total, digit = total + max(digit, 1) * _HAN_UNITS[char], 0
    return total + digit


def _roman(token: str) -> int:
    values = [_ROMAN_VALUES[char] for char in token]
    after = [*values[1:], 0]
    return sum(-value if value < next_ else value for value, next_ in zip(values, after, strict=True))


@lru_cache(maxsize=8192)
def mask_of(token: str) -> str:
    """One character: NUMERAL, or one that stands for the token (two tokens share one about once in a million)."""
    if value_of(token) is not None or token.isdecimal():
        return NUMERAL
    return chr(0x100 + hash(token) % 0xD000) if len(token) == 1 else chr(0xE000 + hash(token) % 0x102000)


class Words:
    """The tokens of the last `most` to 2 × `most` of a stream that comes in blocks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._carry = ""
        self.dropped = 0  # tokens that are no longer kept
        self.tokens: list[str] = []
        self.masks: list[str] = []
        self.starts: list[int] = []

    def feed(self, block: str, offset: int) -> None:
        """Take the next block, which begins at `offset` of the text; keep back a token that may go on."""
        text, base = self._carry + block, offset - len(self._carry)
        taken = 0
        for match in _TOKEN.finditer(text):
            first, last = match.span()
            if last == len(text) and last - first < _LONGEST:
                break
            self._add(match.group(), base + first)
            taken = last
        rest = text[taken:].lstrip()
        self._carry = rest
        if len(self.tokens) >= 2 * self._most:
            self._drop(len(self.tokens) - self._most)

    def finish(self, rest: str, offset: int) -> None:
        """Take the end of the text."""
        text, base = self._carry + rest, offset - len(self._carry)
        for match in _TOKEN.finditer(text):
            self._add(match.group(), base + match.start())
        self._carry = ""

    def since(self, offset: int) -> int:
        """Index of the first kept token at or after an offset of the text."""
        return bisect_left(self.starts, offset)

    def _add(self, token: str, start: int) -> None:
        self.tokens.append(token)
        self.masks.append(mask_of(token))
        self.starts.append(start)

    def _drop(self, count: int) -> None:
        self.dropped += count
        del self.tokens[:count]
        del self.masks[:count]
        del self.starts[:count]
