"""Untrusted text made fit to show: no control character reaches a terminal, no answer fills a page."""

import re
import unicodedata

# C0 and C1 controls, and what steers the direction of text: an answer could hide or forge a line with them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """The text with control characters shown as symbols; tabs and newlines stay."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(_symbol, text.replace("\r\n", "\n")))


def one_line(text: str, limit: int = 400) -> str:
    """As `clean`, on one line of at most `limit` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def cap(text: str, limit: int) -> str:
    """As `clean`, cut to `limit` characters with a word on how many are missing."""
    shown = clean(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}\n… {len(shown) - limit} more characters"


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode pictures of control characters
    return "␡" if code == 0x7F else f"<{unicodedata.name(match[0], f'U+{code:04X}')}>"
