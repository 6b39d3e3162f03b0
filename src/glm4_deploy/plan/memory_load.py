"""A load in words: `64 users, 8k context`. Pure."""

import re
from dataclasses import dataclass

from glm4_deploy.errors import UsageError

# Not the tail of something else: -1, 1e3, 0x10.
_NUMBER = r"(?<![\w.,+−–-])(\d{1,3}(?:,\d{3})+|\d+(?:[.,]\d+)?)\s*(k|m)?"
_STRAY = re.compile(r"\d|(?:^|,)\s*[+−–-]")
HINT = 'write it like --for "64 users, 8k context"'
_USERS = re.compile(
    _NUMBER + r"\s*(?:concurrent\s+|parallel\s+)?(?:users?|requests?|seqs?|sequences?|clients?|chats?)\b"
)
_CONTEXT = re.compile(
    _NUMBER
    + r"\s*(?:tokens?\s*)?(?:(?:of\s+)?context|ctx)\b|context\s*(?:of|=|:)?\s*"
    + _NUMBER
    + r"|"
    + _NUMBER
    + r"\s*tokens?\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests at once, and tokens that each may hold; None: not said."""

    requests: int | None
    context: int | None


def parse_load(text: str) -> Load:
    """`64 users, 8k context` → 64 and 8192; `k` is 1024 for tokens and 1000 for users.

    Raises:
        UsageError: neither users nor a context in it, or a number that is neither.
    """
    words = text.lower().replace("_", "")
    users, context = _USERS.search(words), _CONTEXT.search(words)
    requests = _value(users, kilo=1000) if users else None
    tokens = _value(context, kilo=1024) if context else None
    if _STRAY.search(_without(words, users, context)):
        raise UsageError(f"no load in {text[:60]!r}: a number in it is neither users nor a context", hint=HINT)
    if (requests is None and tokens is None) or requests == 0 or tokens == 0:
        raise UsageError(f"no load in {text[:60]!r}", hint=HINT)
    return Load(requests=requests, context=tokens)


def _without(words: str, *matches: re.Match[str] | None) -> str:
    """What is left once those stretches are taken out."""
    taken = {at for match in matches if match for at in range(*match.span())}
    return "".join(" " if at in taken else char for at, char in enumerate(words))


def _value(match: re.Match[str], *, kilo: int) -> int:
    number, unit = next(pair for pair in zip(match.groups()[::2], match.groups()[1::2], strict=True) if pair[0])
    whole = re.fullmatch(r"\d{1,3}(?:,\d{3})+", number)
    return round(float(number.replace(",", "" if whole else ".")) * {"k": kilo, "m": kilo**2}.get(unit or "", 1))
