"""Untrusted text: make it safe to show, cut it to size, remove secrets from it. May import nothing.

A model's answer, a log line or a file name may contain characters that move the cursor, reverse the direction of text
or hide a line; CONTROLS is the one definition of them. Text for people goes through `one_line`, `cap`, `clean_text`,
`quote` or `strip_controls`. JSON goes through `escape_json`, because its reader must get the same value back.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from glm4_deploy.errors import UsageError

# C0 and C1 controls, bidirectional marks, embeddings and isolates, zero-width characters, line and paragraph
# separators, annotations, shorthand and musical format controls, tags, noncharacters. This is the inside of a character
# class, in a syntax that Rust's regex crate (pydantic) accepts too. The joiners U+200C and U+200D are left out: Persian
# and emoji need them.
CONTROLS = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_SURROGATES = r"\ud800-\udfff"
_CONTROL = re.compile(rf"(?![\t\n])[{CONTROLS}{_SURROGATES}]")
_CONTROL_OR_NEWLINE = re.compile(rf"(?!\t)[{CONTROLS}{_SURROGATES}]")
# Of an OSC sequence that is not closed in its line only the introducer is removed: it must not hide what follows.
ANSI = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\](?:[^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\))?|[@-Z\\^_])")
# The same as characters, as JSON and pastes have it.
PASTED_COLOR = re.compile(r"(?:\\u001b|\\x1b|\\033|\^\[)\[[0-9;]{0,20}m")

BRIEF = 160  # characters: a server's message quoted inside one of ours


def clean_text(text: str) -> str:
    """The text with control characters replaced by symbols or names; tabs and newlines stay."""
    return _CONTROL.sub(_symbol, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 400) -> str:
    """As `clean_text`, on one line of at most `limit` characters."""
    flat = " ".join(clean_text(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def cap(text: str, limit: int) -> str:
    """As `clean_text`, cut to `limit` characters, followed by the number of characters cut."""
    shown = clean_text(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}\n… {len(shown) - limit} more characters"


def quote(text: str, limit: int = 60) -> str:
    """As `one_line`, in quotes; `nothing` for blank text."""
    return repr(one_line(text, limit)) if text.strip() else "nothing"


def first_difference(one: str, other: str) -> str:
    """Where two texts differ, and how each continues from there."""
    shorter = min(len(one), len(other))
    where = next((place for place in range(shorter) if one[place] != other[place]), shorter)
    return f"they differ from character {where}: {quote(one[where:], 30)} against {quote(other[where:], 30)}"


def strip_controls(text: str) -> str:
    """A log line without ANSI sequences and control characters; tabs stay."""
    return _CONTROL_OR_NEWLINE.sub("", ANSI.sub("", text) if "\x1b" in text else text)


def escape_json(text: str) -> str:
    """JSON text with every control character escaped, so that its reader gets the same value back.

    A JSON encoder escapes only up to U+001F. Newlines between values stay.
    """
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode pictures of control characters
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return "␡" if code == 0x7F else f"<{unicodedata.name(match[0], f'U+{code:04X}')}>"


def paint(text: str, good: bool, color: bool) -> str:
    """The text in bold green or red; unchanged without `color`."""
    return f"\x1b[{'1;32' if good else '1;31'}m{text}\x1b[0m" if color else text


# Stored text: limited in size, not cleaned.

MAX_STORED = 20_000  # characters: about four times the longest healthy answer


def bound(text: str, limit: int = MAX_STORED) -> str:
    """At most `limit` characters of the text, then the number of characters cut: how a report stores an answer."""
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit} more characters"


def head_and_tail(text: str, limit: int) -> str:
    """A log cut to `limit` bytes: its beginning (one eighth), the number of bytes left out, its end."""
    data = text.encode("utf-8", errors="replace")
    if len(data) <= limit:
        return text
    head, tail = data[: limit // 8], data[-(limit - limit // 8 - 100) :]
    left_out = len(data) - len(head) - len(tail)
    return (
        head.decode("utf-8", errors="ignore")
        + f"\n… {left_out} bytes left out …\n"
        + tail.decode("utf-8", errors="ignore")
    )


# User input.

_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600}


def seconds_of(text: str, *, zero: bool = False) -> float:
    """Seconds of a duration: `500ms`, `90s`, `30m`, `8h`, or a plain number of seconds.

    Raises:
        UsageError: not a duration, or 0 where `zero` does not allow it.
    """
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]+)?)(ms|s|m|h|)", text.strip())
    if match is None or (float(match[1]) == 0 and not zero):
        raise UsageError(f"not a duration: {text[:40]!r}", hint="write it like 90s, 30m, 8h or 500ms")
    return float(match[1]) * _UNITS[match[2]]


CLOSE = 0.7  # difflib's similarity: "jetson" is jetson-thor (0.71), "nope" is not hopper (0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or '' if no known name is close."""
    from difflib import get_close_matches

    near = get_close_matches(name[:200], list(known), n=1, cutoff=CLOSE)
    return f"did you mean {near[0]!r}?" if near else ""


# Secrets: one mask and one rule for names. A boot log repeats the engine's command line and environment.

MASK = "[redacted]"
T = TypeVar("T")


def scrub(value: T, key: str | None) -> T:
    """The same value with the key masked in every string, also inside dataclasses and tuples."""
    return value if key is None else cast("T", _walk(value, key))


def _walk(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value.replace(key, MASK) if key in value else value
    if isinstance(value, tuple):
        return tuple(_walk(item, key) for item in value) if value and not isinstance(value[0], float) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _walk(getattr(value, field.name), key) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


MIN_SECRET_LENGTH = 6  # a log may contain a shorter value for other reasons

# Repetitions are bounded: a line of 64 KiB must not take seconds.
# An unclosed quote or list was truncated: the part that is left is masked.
_QUOTED = r"""(?:'[^'\n]*'?|"[^"\n]*"?)"""
_KEYWORDS = (
    r"(?:api[ _-]?keys?|access[_-]?key|private[_-]?key|token|secret|(?:pg)?passw(?:or)?d|passphrase|credentials?"
    r"|cookie|(?:client|tls)[_-]key[_-]data|(?<=_)pass)"
)
_VOCABULARY = r"(?:bos|eos|pad|unk|cls|sep|mask)[_-]"  # eos_token is part of the vocabulary, not a secret
_NAME = rf"(?:(?<![A-Za-z0-9_])(?!{_VOCABULARY})(?:[A-Za-z0-9]+[_-]){{0,16}}{_KEYWORDS}\\{{0,3}}['\"]?)"
_VALUE = (
    r"(?:\\{1,3}['\"][^'\"\\\n]*"  # a quote that JSON in JSON escapes
    rf"|\[\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*(?:\s*\]|[^\]\n]*)|\[[^\[\]'\"\n]+\]?|{_QUOTED}"
    r"|(?!None\b|null\b|\[)[^\s,;'\"()\[\]{}]+)"
)
_BEGIN = r"(?:\b|(?<=[0-9;\[]m))"  # of a word, or after the code of a color
# Tokens recognisable by how they begin, as their issuers document them. A prefix that could begin a word of a log
# comes with the length of what follows.
_PREFIXED = (
    # model hubs and APIs, experiment trackers, rented GPUs
    r"hf_|api_org_|sk-|nvapi-|gsk_|xai-|pplx-|r8_|lsv2_(?:pt|sk)_|rpa_|fw_(?=\w{20})|ABSK(?=\w{60})"
    # code and packages
    r"|gh[pousr]_|github_pat_|gl(?:pat|rt|dt|ptt|cbt|ft|soat|imt|agent|oas)-|GR1348941|AT(?:BB|ATT3|CTT3)|pypi-|rubygems_"
    r"|CLOJARS_|cio(?=[A-Za-z0-9]{32}\b)|oy2(?=[a-z0-9]{43}\b)|AKCp(?=\w{40})|cmVmdGtu(?=\w{40})|sq[apu]_|dckr_[po]at_"
    # clouds, monitoring, infrastructure
    r"|GOCSPX-|ya29\.|do[opr]_v1_|v1\.0-(?=[0-9a-f]{24}-)|fo1_|fm[12]_|dapi(?=[0-9a-f]{32})|hv[bsr]\.|tskey-|pul-(?=[0-9a-f]{40})"
    r"|dp\.(?:pt|st|ct|sa|scim|audit)\.|gl(?:sa|c)_(?=\w{20})|eyJrIjoi(?=\w{40})|NR(?:AK|JS|II)-|sntry[su]_|AGE-SECRET-KEY-1|pscale_|sbp_|sb_secret_"
    # messages, payment, offices
    r"|xox[abceposr]-|xapp-|SG\.|[sr]k_(?:live|test)_|whsec_|xkeysib-|key-(?=[0-9a-f]{32}\b)|SK(?=[0-9a-f]{32}\b)|PMAK-|shp(?:at|ca|pa|ss)_"
    r"|figd_|lin_api_|ntn_(?=\w{30})|secret_(?=[A-Za-z0-9]{43}\b)"
)
_WEBHOOK = (
    r"hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/[0-9]{1,25}/"
    r"|api\.telegram\.org/bot|webhook\.office\.com/webhookb2/"
)
_USER = r"['\"]?[^\s:'\"]{0,100}:"
_WORDS = r"[^\n|;&]{0,300}?"  # of one command
_LOGIN = r"(?:docker|podman|nerdctl|buildah|skopeo|helm|oras|crane|regctl|cosign|az)\b" + _WORDS + r"\blogin"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_BEGIN}(?:{_PREFIXED})[A-Za-z0-9_.~=-]{{8,}}"), MASK),
    (
        re.compile(
            rf"{_BEGIN}(?:npm_[A-Za-z0-9]{{36}}\b|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}\b|AIza[A-Za-z0-9_-]{{35}}"
            r"|[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{40,}"  # Terraform
            r"|[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,40}"  # Azure
            r"|[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}\b"  # Discord
            r"|glm4-[A-Za-z0-9_-]{43,})"  # of this kit's gateway
        ),
        MASK,
    ),
    (re.compile(rf"({_WEBHOOK})[A-Za-z0-9_/:@.-]{{16,}}"), rf"\1{MASK}"),
    # A password as a command's argument, with or without a space before it.
    (re.compile(rf"(\b{_LOGIN}\b{_WORDS}\s-p[ =]?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(\b(?:sshpass|twine)\b{_WORDS}\s-p\s?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(\b(?:mysql\w{{0,10}}|mariadb[\w-]{{0,10}}|7za?)\b{_WORDS}\s-p){_VALUE}"), rf"\1{MASK}"),
    (
        re.compile(
            rf"(\b(?:redis-cli\b{_WORDS}\s-a|sqlcmd\b{_WORDS}\s-P|ldap[a-z]{{1,10}}\b{_WORDS}\s-w)\s{{1,3}}){_VALUE}"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(rf"(\bcurl\b{_WORDS}\s(?:-u|-U|--user|--proxy-user)[ =]?{_USER})(?!//)[^\s'\"]+"), rf"\1{MASK}"),
    (re.compile(rf"(\becho\s(?:-n\s)?){_VALUE}(?=\s{{0,3}}\|[^\n]{{0,60}}\blogin\b)"), rf"\1{MASK}"),
    (re.compile(rf"(\blogin\s[^\s]{{1,100}}\s{{1,3}}password\s{{1,3}}){_VALUE}"), rf"\1{MASK}"),  # .netrc
    (re.compile(r"(\bwandb\s+login\s+)(?:[A-Za-z0-9]{1,10}-)?[0-9a-f]{40}\b"), rf"\1{MASK}"),
    (re.compile(rf"(\bset\sapi-key\s+){_VALUE}"), rf"\1{MASK}"),
    (re.compile(r"(\s-pass(?:in|out)?\s+pass:)[^\s'\"]+"), rf"\1{MASK}"),
    # Names that are written together: connection strings of Azure, npm's configuration, Docker's.
    (re.compile(rf"((?:Account|SharedAccess|Storage)Key\s?=\s?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"((?<![A-Za-z0-9])_(?:authToken|password|auth)\s?=\s?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(r"""(\\{0,3}"auth\\{0,3}"\s?:\s?\\{0,3}")[A-Za-z0-9+/=]{8,}"""), rf"\1{MASK}"),
    (re.compile(rf"{_BEGIN}eyJ[A-Za-z0-9_-]{{5,2000}}\.[A-Za-z0-9_-]{{5,8000}}\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)[^-]{0,20000}(-----END|)"), rf"\1{MASK}\2"),
    (re.compile(r"(?i)\b(Bearer|Basic)[ =]+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"""(?i)(\b(?:authorization|cookie)['"]?\s*[:=]\s*['"]?)[^\s'",;}][^'",}\n]*"""), rf"\1{MASK}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/:@]{0,200}:[^\s/]{1,500}@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/:@]{8,}@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)([?&](?:key|sig|(?:x-(?:amz|goog)-)?signature|x-(?:amz|goog)-(?:credential|security-token)|auth|code)=)[^&\s'\"]{6,}"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"""(SecretStr\(\s*['"])(?!\*)[^'"\n]*"""), rf"\1{MASK}"),
    (re.compile(rf"(?i)((?<![A-Za-z0-9])(?:[A-Za-z0-9]+[_-]){{0,4}}pwd['\"]?\s*[:=]\s*)(?!/){_VALUE}"), rf"\1{MASK}"),
    # NAME=value, `'api_key': ['x', 'y']` as vLLM logs its arguments, and `--api-key value`.
    (re.compile(rf"(?i)({_NAME}\s*[:=]\s*){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(--(?:[a-z0-9]+-){{0,16}}{_KEYWORDS}\s+){_VALUE}"), rf"\1{MASK}"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with tokens, keys and the given secrets masked."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, MASK)
    for pattern, mask in _RULES:
        text = pattern.sub(mask, text)
    return text


# The name ends with a secret word, or contains one as environment variables do (HF_TOKEN_2). The path of a secret
# (API_KEY_FILE) and a number of tokens (max_num_batched_tokens) do not count.
_SECRET_NAME = re.compile(
    rf"(?is)(?!{_VOCABULARY})(?!(?:old)?pwd$)(?!.*[_.-](?:file|path|dir|ids?)$)(?:.*[_.-])?"
    rf"(?:(?:{_KEYWORDS}|secrets|passw(?:or)?ds|pwd|keys?|auth|(?:access|api|auth|bearer|hf|refresh)[_.-]?tokens)$"
    r"|(?:api[_-]?key|password|secret|(?-i:TOKEN))_)"
)


def secret_name(name: str) -> bool:
    """Whether a value with this name is a secret: HF_TOKEN is, TOKENIZERS_PARALLELISM is not."""
    return _SECRET_NAME.match(name) is not None


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings safe to store: values named like a secret are masked at any depth, other text is redacted."""
    return {name: MASK if secret_name(name) and value is not None else _clean(value) for name, value in values.items()}


def secrets_in(values: Mapping[str, Any]) -> frozenset[str]:
    """The values of an environment that are named like a secret."""
    return frozenset(str(value) for name, value in values.items() if secret_name(name) and value)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return redact(value) if isinstance(value, str) else value
