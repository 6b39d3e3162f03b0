"""Text into tokens of its own (words, numbers, marks), each with its offset and with a mask that hides numerals.

One ideograph is one token, a numeral in any script or spelling has the same mask (the letters A to Z too, since lists
count with them), and a space is none. So `Step 9`, `Step 10` and `Step ten` have the same masks, which is what the
search for counters needs.
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
_LONGEST = 64  # characters of one token: what is longer comes in pieces, so that a cut text needs little kept back
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_HAN = "".join(_HAN_DIGITS) + "".join(_HAN_UNITS)
_TOKEN = re.compile(
    # Plain letters come first because they are most of most texts; a word with others in it is then two tokens.
    rf"[A-Za-z]{{1,{_LONGEST}}}|\d{{1,{_LONGEST}}}|[{_HAN}]{{1,{_LONGEST}}}|[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
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
    """The value of a Roman numeral in capitals, None if it is none."""
    if not _ROMAN.fullmatch(token):
        return None
    values = [_ROMAN_VALUES[char] for char in token]
    after = [*values[1:], 0]
    return sum(-value if value < next_ else value for value, next_ in zip(values, after, strict=True))


@lru_cache(maxsize=8192)
def mask_of(token: str) -> str:
    """One character: NUMERAL, or one that stands for the token (two words share one about once in a million).

    By a checksum, not by hash(): the verdict must be the same in every process.
    """
    if value_of(token) is not None or token.isdecimal():
        return NUMERAL
    if len(token) == 1:
        return token if token != NUMERAL else "\ue000"
    return chr(0x10000 + crc32(token.encode("utf-8", "surrogatepass")) % 0x100000)


class Words:
    """The tokens of the last `most` to 2 × `most` of a stream that comes in blocks.

    Offsets are worked out when they are asked for, from the kept blocks: a sane text never needs one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._carry = ""
        self.dropped = 0  # tokens that are no longer kept
        self.tokens: list[str] = []
        self._turned: deque[str] = deque(maxlen=most)  # masks of each block, the newest first, each from its last
        self._texts: list[tuple[int, int, str]] = []  # (index of its first token from the beginning, offset, text)

    def feed(self, block: str, offset: int) -> None:
        """Take the next block, which begins at `offset` of the text; keep back a token that may go on."""
        text, base = self._carry + block, offset - len(self._carry)
        found = _TOKEN.findall(text)
        self._carry = ""
        if found and text.endswith(found[-1]) and len(found[-1]) < _LONGEST:
            self._carry = found.pop()
        self._take(found, text[: len(text) - len(self._carry)], base)
        if len(self.tokens) >= 2 * self._most:
            self._drop(len(self.tokens) - self._most)

    def finish(self, rest: str, offset: int) -> None:
        """Take the end of the text."""
        text = self._carry + rest
        self._take(_TOKEN.findall(text), text, offset - len(self._carry))
        self._carry = ""

    def _take(self, found: list[str], text: str, base: int) -> None:
        self._texts.append((self.dropped + len(self.tokens), base, text))
        self.tokens += found
        self._turned.appendleft("".join(map(mask_of, found))[::-1])

    def _drop(self, count: int) -> None:
        self.dropped += count
        del self.tokens[:count]
        del self._texts[: bisect_right(self._texts, self.dropped, key=itemgetter(0)) - 1]

    def turned_masks(self, blocks: int) -> str:
        """The masks of the last so many blocks, from the last token to the first."""
        return "".join(islice(self._turned, blocks))[: len(self.tokens)]

    def start(self, index: int) -> int:
        """Offset of a kept token; a token that is no longer kept stands where the first kept one does."""
        wanted = max(index, 0) + self.dropped
        first, base, text = self._texts[bisect_right(self._texts, wanted, key=itemgetter(0)) - 1]
        return base + next(islice(_TOKEN.finditer(text), wanted - first, None)).start()

    def end(self, index: int) -> int:
        """Offset just after a kept token."""
        return self.start(index) + len(self.tokens[index])
