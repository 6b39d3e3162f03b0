"""Tokens of a text (words, numerals, marks), each with a mask that hides numerals.

`Step 9`, `Step 10` and `Step ten` have the same masks, which is what the search for counters needs. An ideograph is one
token, a space is none, and the letters A to Z count as numerals, since lists count with them.
"""

import re
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from string import ascii_letters
from typing import Final
from zlib import crc32

NUMERAL: Final = "#"
STAMP: Final = "\ue001"
_LONGEST = 64  # characters of one token; longer words are split, so that little must be kept back at a cut
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_HAN = "".join(_HAN_DIGITS) + "".join(_HAN_UNITS)
# A date or a time of day, and an identifier: letters and digits that alternate, as in a hash.
_CLOCK = (
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d{1,9})?Z?)?(?!\w)|\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d{1,9})?(?!\w)"
)
_ID = r"(?<![A-Za-z\d+/])(?=[A-Za-z]{0,16}\d{1,16}[A-Za-z]{1,16}\d)[A-Za-z\d]{6,64}+(?![+/=])"
_HEX = r"(?<![A-Za-z\d])(?=\d*[a-f])(?=[a-f]*\d)[\da-f]{8,64}(?![A-Za-z\d])"
_DAY = r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
STAMPS = re.compile(f"{_CLOCK}|{_ID}|{_HEX}|{_DAY}")
_TENS_AND_ONES = (
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty-(?:one|two|three|four|five|six|seven|eight|nine)\b"  # `forty-two`
)
_TOKEN = re.compile(
    # Blanks are taken together with what follows them, and plain words, marks and ideographs come first, because most
    # text is made of them; a word with other letters becomes two tokens.
    rf"[ \t]{{0,8}}+([A-Za-z]{{1,{_LONGEST}}}+(?![\d-])|[!-/:-@\[-^`{{-~]|\n|[{_HAN}]{{1,{_LONGEST}}}"
    rf"|[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\w\s]|(?=[A-Za-z\d])(?:{_TENS_AND_ONES}|{_CLOCK}|{_ID})"
    rf"|[A-Za-z]{{1,{_LONGEST}}}|\d{{1,{_LONGEST}}}|[^\W\d_]{{1,{_LONGEST}}}|_)"
)


def tokens_of(text: str) -> list[str]:
    """The tokens of a text."""
    return _TOKEN.findall(text)


_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_SPELLED = (
    {word: value for value, word in enumerate(_CARDINALS.split())}
    | {word: value for value, word in enumerate(_ORDINALS.split())}
    | {word: 10 * value for value, word in enumerate(_TENS.split(), start=3)}
)
_DAYS = frozenset(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August "  # noqa: SIM905
    "September October November December".split()
)
_ROMAN = re.compile(r"[IVXLC]{1,9}")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


@lru_cache(maxsize=8192)
def value_of(token: str) -> int | None:
    """The number that a token stands for, or None. A single letter counts from a (or A) = 1."""
    if token.isdecimal():
        return int(token) if len(token) <= 18 else None
    if token[0] in _HAN_DIGITS or token[0] in _HAN_UNITS:
        return _han(token)
    lower = token.lower()
    if lower in _SPELLED:
        return _SPELLED[lower]
    tens, hyphen, ones = lower.partition("-")
    if hyphen:
        return _SPELLED[tens] + _SPELLED[ones] if tens in _SPELLED else None
    if len(token) > 1 and (roman := roman_of(token)) is not None:
        return roman
    return ord(lower) - 96 if len(token) == 1 and token in ascii_letters else None


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


def roman_of(token: str) -> int | None:
    """The value of a Roman numeral in capitals, or None."""
    if not _ROMAN.fullmatch(token):
        return None
    values = [_ROMAN_VALUES[char] for char in token]
    after = [*values[1:], 0]
    return sum(-value if value < next_ else value for value, next_ in zip(values, after, strict=True))


def is_stamp(token: str) -> bool:
    """A date, a day, a time or an identifier: it differs in every record."""
    if token in _DAYS:
        return True
    return len(token) > 3 and not token.isalpha() and not token.isdecimal() and token[0] not in _HAN_DIGITS


def mask_of(token: str) -> str:
    """One character: NUMERAL, STAMP, or one that stands for the token (two words share one about once in a million).

    From a checksum rather than hash(), so that the verdict is the same in every process.
    """
    if value_of(token) is not None or token.isdecimal():
        return NUMERAL
    if is_stamp(token):
        return STAMP
    if len(token) == 1:
        return token if token != NUMERAL else "\ue000"
    return chr(0x10000 + crc32(token.encode("utf-8", "surrogatepass")) % 0x100000)


class _Masks(dict[str, str]):
    """The masks of recent tokens: a plain dictionary, because it is read for every token."""

    def __missing__(self, token: str) -> str:
        if len(self) >= _CACHED:
            self.clear()
        return self.setdefault(token, mask_of(token))


_CACHED = 8192
_MASKS = _Masks()


class TokenWindow:
    """The last `size` to 1.25 × `size` tokens of a stream that arrives in blocks.

    Offsets are computed on request, from the blocks kept: a sane text never needs one.

    Attributes:
        kept: the tokens; functions here address them by their index in this list.
        dropped: how many came before them.
    """

    def __init__(self, size: int, blocks: int) -> None:
        self._size = size
        self._carry = ""  # the end of the last block: a token that may continue
        self.dropped = 0
        self.kept: list[str] = []
        self._reversed_masks: deque[str] = deque(maxlen=blocks)  # one string per block, newest first
        self._blocks: list[tuple[int, int, str]] = []  # (number of its first token, offset, text)

    def feed(self, block: str, offset: int) -> None:
        """Take the next block, which begins at `offset` of the text."""
        text, base = self._carry + block, offset - len(self._carry)
        tokens = _TOKEN.findall(text)
        self._carry = ""
        if tokens and text.endswith(tokens[-1]) and len(tokens[-1]) < _LONGEST:
            self._carry = tokens.pop()
        self._take(tokens, text[: len(text) - len(self._carry)], base)
        if len(self.kept) >= self._size * 5 // 4:
            self._drop(len(self.kept) - self._size)

    def finish(self, block: str, offset: int) -> None:
        """Take the end of the text."""
        text = self._carry + block
        self._take(_TOKEN.findall(text), text, offset - len(self._carry))
        self._carry = ""

    def _take(self, tokens: list[str], text: str, base: int) -> None:
        self._blocks.append((self.dropped + len(self.kept), base, text))
        masks = "".join(map(_MASKS.__getitem__, tokens))
        if STAMP in masks:
            # All stamps of one length are one token, so that they hide no repetition.
            tokens = [STAMP * len(token) if mask == STAMP else token for token, mask in zip(tokens, masks, strict=True)]
        self.kept += tokens
        self._reversed_masks.appendleft(masks[::-1])

    def merge(self, entries: int) -> None:
        """Make the last `entries` blocks one, as if they had arrived together."""
        self._reversed_masks.appendleft("".join(self._reversed_masks.popleft() for _ in range(entries)))

    def _drop(self, count: int) -> None:
        self.dropped += count
        del self.kept[:count]
        del self._blocks[: bisect_right(self._blocks, self.dropped, key=itemgetter(0)) - 1]

    def reversed_masks(self, blocks: int) -> str:
        """The masks of the last `blocks` blocks, last token first."""
        return "".join(islice(self._reversed_masks, blocks))[: len(self.kept)]

    def start(self, index: int) -> int:
        """Offset of a token; for one that was dropped (a negative index), that of the first one kept."""
        number = max(index, 0) + self.dropped
        first, base, text = self._blocks[bisect_right(self._blocks, number, key=itemgetter(0)) - 1]
        return base + next(islice(_TOKEN.finditer(text), number - first, None)).start(1)

    def end(self, index: int) -> int:
        """Offset just after a token."""
        return self.start(index) + len(self.kept[index])
