"""A load in words: `64 users, 8k context`. Pure."""

import re
from dataclasses import dataclass

from glm4_deploy.errors import UsageError

_NUMBER = r"(\d+(?:[.,]\d+)?)\s*(k|m)?"
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
        UsageError: neither users nor a context in it.
    """
    words = text.lower().replace("_", "")
    users, context = _USERS.search(words), _CONTEXT.search(words)
    requests = _value(users, kilo=1000) if users else None
    tokens = _value(context, kilo=1024) if context else None
    if (requests is None and tokens is None) or requests == 0 or tokens == 0:
        raise UsageError(f"no load in {text[:60]!r}", hint='write it like --for "64 users, 8k context"')
    return Load(requests=requests, context=tokens)


def _value(match: re.Match[str], *, kilo: int) -> int:
    number, unit = next(pair for pair in zip(match.groups()[::2], match.groups()[1::2], strict=True) if pair[0])
    return round(float(number.replace(",", ".")) * {"k": kilo, "m": kilo**2}.get(unit or "", 1))
