"""Secrets out of what is kept: a boot log repeats the command line and the environment of its engine."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

# Untrusted text made fit to show: no control character reaches a terminal, no answer fills a page.

# C0 and C1 controls, and what steers the direction of text: an answer could hide or forge a line with them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """The text with control characters shown as symbols; tabs and newlines stay."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(_symbol, text.replace("\r\n", "\n")))


def one_line(text: str, limit: int = 400) -> str:
    """As `clean`, on one line of at most `limit` characters."""
    flat = " ".join(clean_text(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def cap(text: str, limit: int) -> str:
    """As `clean`, cut to `limit` characters with a word on how many are missing."""
    shown = clean_text(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}\n… {len(shown) - limit} more characters"


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode pictures of control characters
    return "␡" if code == 0x7F else f"<{unicodedata.name(match[0], f'U+{code:04X}')}>"


# Untrusted text inside a report, and inside the short phrases of a verdict.

KEPT = 20_000  # characters: some four times what the longest honest answer here has


def shorten(text: str, limit: int = 160) -> str:
    """On one line, at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def bound(text: str, limit: int = KEPT) -> str:
    """At most `limit` characters and a word on the rest: what a report keeps of an answer, whatever the server sent."""
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit} more characters"


def quote(text: str, limit: int = 60) -> str:
    """As `shorten`, in quotes; `nothing` for an answer that holds no word."""
    return repr(shorten(text, limit)) if text.strip() else "nothing"


def parting(one: str, other: str) -> str:
    """Where two texts part, and how each goes on from there."""
    shorter = min(len(one), len(other))
    where = next((place for place in range(shorter) if one[place] != other[place]), shorter)
    return f"they part at character {where}: {quote(one[where:], 30)} against {quote(other[where:], 30)}"


# Takes the API key out of whatever leaves the probe: a server's error text may repeat it.

T = TypeVar("T")
KEY_MASK = "[key]"


def scrub(value: T, key: str | None) -> T:
    """The same value with the key masked in every text; dataclasses and tuples are walked."""
    return value if key is None else cast("T", _walk(value, key))


def _walk(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value.replace(key, KEY_MASK) if key in value else value
    if isinstance(value, tuple):
        return tuple(_walk(item, key) for item in value) if value and not isinstance(value[0], float) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _walk(getattr(value, field.name), key) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


MASK = "[redacted]"
SECRET_NAME = re.compile(r"(?i)(?:^|[_.-])(?:api[_-]?keys?|keys?|tokens?|secrets?|passw(?:or)?d|credentials?|auth)$")
SHORTEST = 6  # a shorter value is a word that a log may hold for other reasons

# Repetitions are bounded: a line of 64 KiB must not take seconds.
# A quote or a list that does not end was cut off: what there is of it is masked.
_QUOTED = r"""(?:'[^'\n]*'?|"[^"\n]*"?)"""
_WORDS = r"(?:api[_-]?keys?|access[_-]?key|private[_-]?key|token|secret|password|passwd|credentials?)"
_NAME = rf"(?:(?<![A-Za-z0-9_])(?!(?:bos|eos|pad|unk|cls|sep|mask)_)(?:[A-Za-z0-9]+[_-]){{0,16}}{_WORDS}['\"]?)"
_VALUE = (
    rf"(?:\[\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*(?:\s*\]|[^\]\n]*)|{_QUOTED}|(?!None\b|null\b|\[)[^\s,;'\"()\[\]{{}}]+)"
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # Tokens that tell themselves: Hugging Face, OpenAI style, NVIDIA, GitHub, JSON web tokens.
    (re.compile(r"\b(?:hf_|sk-|nvapi-|gh[pousr]_|github_pat_)[A-Za-z0-9_-]{8,}"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,2000}\.[A-Za-z0-9_-]{5,8000}\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"(?i)\b(Bearer|Basic)[ =]+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"""(?i)(\bauthorization['"]?\s*[:=]\s*['"]?)[^\s'",;}][^'",;}\n]*"""), rf"\1{MASK}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/:@]*:[^\s/@]+@"), rf"\1{MASK}@"),
    # NAME=value, `'api_key': ['x', 'y']` as vLLM logs its arguments, and `--api-key value`.
    (re.compile(rf"(?i)({_NAME}\s*[:=]\s*){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(--(?:[a-z0-9]+-){{0,16}}{_WORDS}\s+){_VALUE}"), rf"\1{MASK}"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with tokens, keys and the values in `secrets` masked."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    for pattern, mask in _RULES:
        text = pattern.sub(mask, text)
    return text


def secret_name(name: str) -> bool:
    """Whether a variable or a flag of this name holds a secret: HF_TOKEN does, TOKENIZERS_PARALLELISM does not."""
    return SECRET_NAME.search(name) is not None


_SECRET_WORD = re.compile(r"(^|_)(API_?KEY|TOKEN|PASSWORD|SECRET)($|_)", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret itself, not the path of one."""
    return bool(_SECRET_WORD.search(name) or secret_name(name)) and not name.upper().endswith("_FILE")


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings fit to keep: what stands under a secret's name is masked, at any depth; other text is redacted."""
    return {name: MASK if secret_name(name) and value is not None else _clean(value) for name, value in values.items()}


def secrets_in(values: Mapping[str, Any]) -> frozenset[str]:
    """The values that stand under a secret's name in an environment."""
    return frozenset(str(value) for name, value in values.items() if secret_name(name) and value)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return redact(value) if isinstance(value, str) else value
