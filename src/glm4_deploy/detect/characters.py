"""Rules of salad about characters: broken bytes, reserved tokens, marks and noise, scripts within words, emoji.

Each takes the end of a text and says why it is not text, or None.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise, permutations
from unicodedata import name

from glm4_deploy.detect.thresholds import SALAD


def broken_bytes(sample: str) -> str | None:
    """Bytes that are no text, shown as U+FFFD."""
    last = sample[-SALAD.bytes_tail :]
    broken = last.count("\ufffd")
    if broken < SALAD.broken or broken < SALAD.broken_share * len(last):
        return None
    return f"{broken} of the last {len(last)} characters are U+FFFD: bytes that are no text"


# The national standards of the time before Unicode hold the characters in use; Big5 has its rare ones last.
_STANDARDS = {"gb2312": b"\xff", "big5": b"\xc9", "shift_jis": b"\xff", "euc_kr": b"\xc9"}
_EASTERN = re.compile("[\u4e00-\u9fff\uac00-\ud7a3]")


def rare_characters(sample: str) -> str | None:
    """Ideographs and syllables drawn at random: most that Unicode has are in no dictionary of everyday use."""
    eastern = [] if sample.isascii() else _EASTERN.findall(sample)
    rare = sum(map(_is_rare, eastern)) if len(eastern) >= SALAD.eastern else 0
    if not rare or rare < SALAD.rare_share * len(eastern):
        return None
    return f"{rare} of {len(eastern)} ideographs and syllables are in no national standard"


@lru_cache(maxsize=4096)
def _is_rare(char: str) -> bool:
    codes = ((char.encode(standard, "ignore"), rare) for standard, rare in _STANDARDS.items())
    return not any(len(code) == 2 and code < rare for code, rare in codes)  # EUC-KR spells the others out in 8 bytes


_WESTERN = re.compile("[\u00a1-\u024f]")


def many_accents(sample: str) -> str | None:
    """Bytes read as if each were a letter: more letters with accents than all Latin alphabets need, in no order."""
    last = sample[-SALAD.accents_tail :]
    letters = [] if last.isascii() else _WESTERN.findall(last)
    kinds = len(set(letters))
    if kinds < SALAD.accents or len(letters) < SALAD.accents_share * len(last):
        return None
    if sum(one < other for one, other in pairwise(letters)) > SALAD.rising * len(letters):
        return None  # a table of them
    return f"{len(letters)} of the last {len(last)} characters are {kinds} different letters with accents and signs"


# Tokens that no text needs: unused ones, bytes of a character, and what a decoder does not know. `[MASK]`, `[PAD]` and
# their like are written about, and in rows.
_RESERVED = re.compile(
    r"\[control_\d{1,5}\]|\[(?:UNUSED_TOKEN|unused)_?\d{1,4}\]|<unused_?\d{1,5}>|<extra_id_\d{1,3}>|<0x[0-9A-F]{2}>"
    r"|<SPECIAL_\d{1,5}>|<\|reserved\w{0,30}\|>"
)
_UNKNOWN = re.compile(r"<unk>|\[UNK\]|<\|unk\|>")


def _share(found: Sequence[str], text: str) -> float:
    return sum(map(len, found)) / max(len(text), 1)


def reserved_share(sample: str) -> float:
    """The share of reserved tokens among the last characters."""
    last = sample[-SALAD.reserved_tail :]
    return _share(_RESERVED.findall(last) + _UNKNOWN.findall(last), last)


def reserved_tokens(sample: str) -> str | None:
    """Reserved tokens of a vocabulary, among words or alone."""
    last = sample[-SALAD.reserved_tail :]
    for pattern, least in ((_RESERVED, SALAD.reserved), (_UNKNOWN, SALAD.unknown)):
        found = pattern.findall(last)
        if len(found) >= least and _share(found, last) >= SALAD.reserved_share and "`" not in last:
            kinds = ", ".join(sorted(set(found))[:4])
            return f"{len(found)} reserved tokens of a vocabulary among the last {len(last)} characters: {kinds}"
    return None


_PUNCTUATION = re.compile("[!-/:-@\\[-`{-~\u2010-\u2026\u3001-\u3011\uff01-\uff0f\uff1a-\uff1f]")


def marks_in_no_order(sample: str) -> str | None:
    """Marks and nothing else, in any order. In drawings, tables and boards a mark predicts the next."""
    last = "".join(sample[-4 * SALAD.marks :].split())[-SALAD.marks :]
    if len(last) < SALAD.marks or len(_PUNCTUATION.findall(last)) < (1 - SALAD.marks_letters) * len(last):
        return None
    bits = _entropy(pairwise(last)) - _entropy(last)
    if bits < SALAD.marks_bits or _is_fastq(sample):
        return None
    return f"the last {len(last)} characters are marks in no order: {bits:.1f} bits each, given the one before"


def _entropy(symbols: Iterable[object]) -> float:
    """Bits per symbol."""
    counts = Counter(symbols)
    return -sum(count * math.log2(count / counts.total()) for count in counts.values()) / counts.total()


def _is_fastq(sample: str) -> bool:
    """Whether it ends in the qualities of a sequence, which stand under a line with a plus sign."""
    return sample.rstrip().rpartition("\n")[0].rpartition("\n")[2].startswith("+")


def noise(sample: str) -> str | None:
    """Printable characters at random: as many marks as letters, without a blank."""
    *_, line = sample.rsplit(None, 1) or [""]
    last = line[-SALAD.noise :]
    if len(last) < SALAD.noise or not last.isascii() or sum(map(str.isalnum, last)) > SALAD.noise_letters * len(last):
        return None
    counts = Counter(last).values()
    if len(counts) < SALAD.noise_kinds or max(counts) > SALAD.noise_most * len(last) or _is_fastq(sample):
        return None
    return f"the last {len(last)} characters are {len(counts)} different ones, more marks than letters, without a blank"


# Scripts

_EAST = {"CJK": "EAST", "HIRAGANA": "EAST", "KATAKANA": "EAST", "KATAKANA-HIRAGANA": "EAST", "HALFWIDTH": "EAST"}
_NO_SCRIPT = dict.fromkeys(("MICRO", "MASCULINE", "FEMININE", "MODIFIER", "FULLWIDTH", "MATHEMATICAL"), "LATIN")
_SPACED = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)*")  # words with nothing but single spaces between them


def mixed_scripts(sample: str) -> str | None:
    """Words that change their script in the middle, or neighbours of many scripts."""
    if sample.isascii():
        return None
    kinds: Counter[str] = Counter()
    within = between = letters = words = 0
    for run in _SPACED.findall(sample):
        if max(run) < _LATIN_END:
            found = run.count(" ") + 1
            words += found
            letters += len(run) - found + 1
            kinds["LATIN"] += found
            continue
        scripts = [[_script(char) for char in word] for word in run.split(" ")]
        for word in scripts:
            words += 1
            letters += len(word)
            kinds.update(set(word))
            # Chinese and Japanese write foreign words without a space before them.
            within += sum(one != other and "EAST" not in (one, other) for one, other in pairwise(word))
            between += sum(one != other for one, other in pairwise(word))
        between += sum(one[-1] != other[0] for one, other in pairwise(scripts))
    if len(kinds) >= SALAD.scripts and within >= SALAD.switches and within >= SALAD.switch_share * letters:
        return f"the script changes {within} times within words, among {len(kinds)} scripts: no language does that"
    many = sum(count >= SALAD.script_share * words for count in kinds.values())
    if many >= SALAD.neighbours and between >= SALAD.between and between >= SALAD.between_share * words:
        return f"the script changes {between} times between {words} words, among {many} scripts"
    return None


_SCRIPTS = {
    "Cyrillic": "\u0400-\u052f",
    "Semitic": "\u0590-\u06ff",
    "Indic": "\u0900-\u0dff",
    "Thai": "\u0e01-\u0e3a",
}
# Languages without spaces, and Korean with its particles, put other scripts' words beside their own; but they put no
# few letters of another script between two syllables, and scripts with spaces are not mixed at all.
_IMPOSSIBLE = re.compile(
    "|".join(
        [
            f"(?<=[\uac00-\ud7a3])[{''.join(_SCRIPTS.values())}\u3041-\u3096\u30a1-\u30fa]{{1,3}}(?=[\uac00-\ud7a3])",
            *(f"[{_SCRIPTS[one]}][{_SCRIPTS[other]}]" for one, other in permutations(_SCRIPTS, 2)),
        ]
    )
)


def impossible_words(sample: str) -> str | None:
    """Words of two scripts that no language writes together: `오ран지`."""
    if sample.isascii():
        return None
    found = _IMPOSSIBLE.findall(sample)
    if len(found) < SALAD.impossible:
        return None
    return f"{len(found)} times the script changes within a word as in no language: {', '.join(sorted(set(found))[:6])}"


_LATIN_END = "\u0250"


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    if char < _LATIN_END:
        return "LATIN"
    script = name(char, "LATIN").split(" ", 1)[0]
    return _EAST.get(script) or _NO_SCRIPT.get(script, script)


# Emoji

_FACE = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")
_FACES = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff\ufe0f\u200d ]*")


def few_faces(sample: str) -> str | None:
    """A page of emoji on one line, of a few kinds."""
    faces = faces_of(sample)
    if len(faces) < SALAD.faces or len(set(faces)) > SALAD.faces_kinds:
        return None
    return f"the last {len(faces)} characters are {len(set(faces))} different emoji"


def faces_of(sample: str) -> list[str]:
    """The emoji at its end."""
    match = _FACES.match(sample[::-1])
    return _FACE.findall(match[0]) if match else []
