"""Secrets out of what is kept: a boot log repeats the command line and the environment of its engine."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

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
