"""What can excuse a repetition: how the text ended, what the repeated unit is made of, what the prompt asked for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from unicodedata import category


class Ending(StrEnum):
    """How the text ended. RUNNING: it has not ended yet (a stream)."""

    RUNNING = "running"
    STOPPED = "stopped"
    CUT = "cut"
    UNKNOWN = "unknown"

    @staticmethod
    def of(finish_reason: str | None) -> "Ending":
        """From OpenAI's finish_reason: `length` is a cut, any other value the model's own stop."""
        if not finish_reason:
            return Ending.UNKNOWN
        return Ending.CUT if finish_reason == "length" else Ending.STOPPED


class Shape(StrEnum):
    """What a repeated unit is made of. Rows of numbers and markup repeat in good texts; prose hardly ever does."""

    PROSE = "prose"
    STRUCTURE = "structure"
    SYMBOLS = "symbols"
    ZEROS = "zeros"  # base64 of zero bytes: good files contain pages of it


_ENUMERATOR = re.compile(r"^\s*[\[(]\d+[\])]", re.MULTILINE)
_STOPS = frozenset(".,;:!?'\"-，。：；！？、“”‘’「」《》—…")
_EMPTY_WORD = re.compile(r"\b(?:null|true|false|none|nan|nil|undefined|0x[0-9a-f]+|x)\b", re.IGNORECASE)
_STRUCTURE = re.compile(
    r"[{}\[\]<>|=\\@\t]|;\s*$|\"\s*[:,]|\w\(|\w[_/]\w|\d\d:\d\d|[^\s.!?] {2,}\S|\n {2,}\w|^\s*- \w+: ", re.MULTILINE
)
_SHORT = 64  # characters


def shape_of(unit: str) -> Shape:
    """Symbols: hardly any letters. Structure: markup, code, rows, log lines. Prose: everything else, in any script.

    A short unit is judged by several copies in a row, so that it does not matter where in it the first one begins.
    """
    if len(unit) < _SHORT:
        unit *= _SHORT // max(len(unit), 1) + 1
    return _shape_of(unit[:2000]) if unit.strip("A\n") else Shape.ZEROS


@lru_cache(maxsize=32)  # a loop shows the same few units again and again
def _shape_of(sample: str) -> Shape:
    sample = _ENUMERATOR.sub("", sample)
    visible = len("".join(sample.split()))
    solid = visible - sum(map(sample.count, _STOPS))
    letters = _letters(_EMPTY_WORD.sub("", sample))
    if letters < 0.3 * max(solid, 0.8 * visible) or not letters:
        return Shape.SYMBOLS
    marks = len(_STRUCTURE.findall(sample))
    return Shape.STRUCTURE if marks > 0.02 * len(sample) or letters < 0.75 * solid else Shape.PROSE


def _letters(text: str) -> int:
    # Vowel signs and the like are marks, not letters, but words are written with them.
    marks = 0 if text.isascii() else sum(char >= "\u0300" and category(char)[0] == "M" for char in text)
    return sum(map(str.isalpha, text)) + marks


def is_verse(text: str, *, width: int = 56) -> bool:
    """Short lines throughout, as in songs and poems: fewer than `width` columns on average.

    An ideograph fills two columns. The last line may be cut off, so it does not count.
    """
    lines = [line for line in text[:4000].split("\n") if line.strip()]
    whole = lines[:-1] if len(lines) > 4 else lines
    return len(lines) >= 4 and columns_of("".join(whole)) < width * len(whole)


def columns_of(text: str) -> int:
    """Its width in columns of a terminal."""
    return len(text) if text.isascii() else len(text) + len(_WIDE.findall(text))


_WIDE = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U0001f000-\U0003ffff]"
)


def is_wide(text: str) -> bool:
    """Mostly ideographs and the like, by every eighth character."""
    sample = text[::8]
    return not sample.isascii() and len(_WIDE.findall(sample)) > len(sample) // 2


_BLANKS = re.compile(r"\s{2,}")


def weight_of(unit: str) -> float:
    """Characters of Latin text that one character of this unit stands for.

    CJK takes about 2.5 times as many tokens; several blanks in a row are one token.
    """
    sample = unit[:400]
    blanks = sum(len(row) - 1 for row in _BLANKS.findall(sample))
    return 1 + (1.5 * len(_WIDE.findall(sample)) - blanks) / max(len(sample), 1)


_ROW_MARK = re.compile(r"\n|<[/a-zA-Z]")


def is_row(unit: str) -> bool:
    """One or more lines, or elements of markup: good texts contain many identical ones."""
    return _ROW_MARK.search(unit + unit[:1]) is not None


def ends_a_row(last: str, due: str) -> bool:
    """Whether a run of rows stops where a row ends, given its last character and the one that was due next."""
    return "\n" in (last, due) or last + due == "><"


_BREAKS = re.compile(r"\n\s*")


def is_refrain(unit: str) -> bool:
    """One to four short lines, in columns."""
    lines = len(_BREAKS.findall(unit))
    return 0 < lines <= 4 and columns_of(unit) < 56 * lines


_LABEL = re.compile(
    r"\W{0,4}(?:(?P<named>[^\W\d_][^\n:：]{0,23})[:：]|(?P<eastern>[\u2e80-\ud7ff]{2})|(?P<words>[^\W\d_]+ [^\W\d_]+))"
)
_RECORDS = 3  # of the same labels, at least
_NAME = 40  # characters of a line that names a record, at most


def records_of(text: str) -> dict[str, list[str]]:
    """The lines of each label, where they begin with the same few labels; else {}.

    Without a colon, the first two words or ideographs of a line are its label. Short lines without a label that comes
    again are names, with the label "". One label must have a colon, or the names must differ: any lines may begin
    alike. The first and the last line may be cut off, so they do not count.
    """
    lines = [line.lstrip("#*- \t0123456789.)、") for line in text.split("\n")[1:-1] if line.strip()]
    labelled: dict[str, list[str]] = {}
    named: set[str] = set()
    for line in lines:
        match = _LABEL.match(line)
        labelled.setdefault(match[match.lastgroup or 0] if match else "", []).append(line)
        named |= {match["named"]} if match and match["named"] else set()
    again = {label: said for label, said in labelled.items() if label and len(said) >= _RECORDS}
    names = [line for label, said in labelled.items() if label not in again for line in said if len(line) <= _NAME]
    if len(names) >= _RECORDS:
        again[""] = names
    differ = len(names) >= _RECORDS and len(set(names)) >= 0.8 * len(names)
    records = differ or not named.isdisjoint(again)
    return again if records and sum(map(len, again.values())) >= 0.9 * len(lines) else {}


def has_different_records(text: str) -> bool:
    """Records that a list of different things has: nearly each with another name, and another label's values vary."""
    kinds = [(len(set(said)), len(said)) for said in records_of(text).values()]
    names = sum(different >= 0.8 * said for different, said in kinds)
    return names > 0 and sum(different >= 3 for different, _ in kinds) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """What a prompt asked for.

    Attributes:
        repeat: it asked to repeat something.
        count: it asked to count or enumerate.
        limit: the largest number in it (how often, or how far); None without a number.
        words: its letters and digits, in lower case.
    """

    repeat: bool = False
    count: bool = False
    limit: int | None = None
    words: str = ""

    def allows(self, copies: float, unit: str = "") -> bool:
        """Whether it asked for this many copies, a few more being forgiven: it said so, or it names the unit.

        What repeats stands in the prompt, beside a number: that is a request in any language.
        """
        if self.limit is None:
            return self.repeat
        return copies <= 1.2 * self.limit + 2 and (self.repeat or self._names(unit))

    def allows_words(self, copies: float, words: list[str]) -> bool:
        """Whether it named a number of at least these copies, and each of these words."""
        named = self.limit is not None and copies <= 1.2 * self.limit + 2
        return named and all(fold(word) in self.words for word in words)

    def allows_faces(self, faces: int) -> bool:
        """Whether it asked for this many emoji: it named as large a number, or emoji and no number."""
        if self.limit is None:
            return _EMOJI.search(self.words) is not None
        return faces <= 1.2 * self.limit + 2

    def _names(self, unit: str) -> bool:
        folded = fold(unit)
        if not 1 < len(folded) <= MAX_NAMED:
            return folded != "" and folded in self.words and folded > "\u0250"
        # The unit may begin anywhere in what the prompt names.
        return any(folded[at:] + folded[:at] in self.words for at in range(len(folded)))

    def lists(self, copies: float) -> bool:
        """Whether it asked for a list, a table or rows of at least this many."""
        return self.count and self.limit is not None and copies <= 1.2 * self.limit + 2


_EMOJI = re.compile(
    "emoji|émoji|emoticon|émoticône|smiley|faccin|эмодзи|эмоджи|смайл|이모지|이모티콘|絵文字|表情|颜文字"
)
_UNFOLDED = re.compile(r"[\W_]+")
_FOLDED = {code: chr(code).lower() if chr(code).isalnum() else None for code in range(128)}


def fold(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return text.translate(_FOLDED) if text.isascii() else _UNFOLDED.sub("", text).lower()


MAX_NAMED = 400  # characters of a unit that a prompt may name
_DENIED = re.compile(
    r"\b(?:don't|do not|never|without|avoid|no|not)\s+(?:\w+\s+)?repeat\w*|不要重复|不重复|勿重复", re.IGNORECASE
)
# Numbers as prompts spell them; other words are not read as numbers.
_WORDS = {
    "ten": 10, "twelve": 12, "dozen": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "thousand": 1000,
    "dix": 10, "vingt": 20, "trente": 30, "cinquante": 50, "cent": 100,
    "diez": 10, "veinte": 20, "treinta": 30, "cincuenta": 50, "cien": 100,
    "zehn": 10, "zwanzig": 20, "dreißig": 30, "fünfzig": 50, "hundert": 100,
}  # fmt: skip
_NUMERAL = rf"(?:\d+|{'|'.join(_WORDS)})"
_REPEAT = re.compile(
    rf"\brepeat|\bover and over|\b{_NUMERAL}\s*(?:times|x|copies|fois|veces|mal)\b|\b{_NUMERAL}\s+lines of\b|"
    r"\bforever\b|\btimes in a row\b|\bwrite out\b|\bsay .{0,40}\btimes|"
    r"重复|反复|[0-9一二两三四五六七八九十百千]+\s*[遍次]",
    re.IGNORECASE,
)
_VERSE = re.compile(
    r"\blyrics?\b|\bsongs?\b|\bsing\b|\bwords of\b|\brefrains?\b|\bprayers?\b|\bpoems?\b|\brhymes?\b|\blitany\b|"
    r"\bmantra\b|\bchant\b|\bpsalm|canción|chanson|\blied\b|песн|노래|うた|歌|诗|祷文",
    re.IGNORECASE,
)
_VARIANTS = re.compile(
    r"\b(?:versions|variations|variants|drafts|rewrites|alternatives|paraphrases|options)\b|版本|变体|方案",
    re.IGNORECASE,
)
_COUNTING_WORDS = (
    r"\bcount(?:s|ing|down)?\b|\bcuenta\b|\bcontar\b|\bzähle?n?\b|\bcompte[rz]?\b|\bconta\b|(?:по|со)?считай|세어|数えて|数数|"
    r"数羊|数一数"
)
_COUNTING = re.compile(
    rf"{_COUNTING_WORDS}"
    r"|\brandom (?:[\w-]{1,20} )?(?:word |code )?(?:words|names|letters|pairs|strings|numbers|phrases)\b",
    re.IGNORECASE,
)
_COUNT = re.compile(
    rf"{_COUNTING_WORDS}|"
    r"\bnumbers?\b|\bwords\b|\benumerate\b|\bsequence\b|\blist\b|\btable\b|\btimes table|\bfrom \d+ to\b|"
    r"\b\d+\s*(?:-|–|to|through|until|bis|à|a|al|hasta|до)\s*\d+\b|\d+\s*(?:부터|から|到|至)\s*\d+|"
    r"\bfirst \d+\b|\brows?\b|\blines?\b|\bitems?\b|"
    r"\barray\b|\bmatrix\b|\bgrid\b|\bzeros\b|\bcells?\b|"
    r"数到|从\s*\d+|列出|表格|数组|矩阵|计数|编号|乘法",
    re.IGNORECASE,
)
# What the prompt gives, rather than asks for: `the sum of the rows`, `remove None from a list`.
_GIVEN = re.compile(
    r"\b(?:from|of|over|through) (?:an?|the|each|every) (?:list|array|matrix|grid|row|line|item|cell)s?\b"
)
# What a program is to do is not a request: `write a function that counts the number of times`.
_PROGRAM = re.compile(
    r"\b(?:write|implement|create|develop|fix|complete)\b[^.\n]{0,60}?\b(?:functions?|subroutine|"
    r"(?:python|java|javascript|typescript|c|c\+\+|rust|go|bash|shell|perl|ruby|php) "
    r"(?:program|script|class|method|code))\b[^\n]{0,400}",
    re.IGNORECASE,
)
# A plan counts only if the prompt names a number of steps.
_PLAN = re.compile(r"\bplan\b|\bschedule\b|\bdays?\b|\bweeks?\b|\bmonths?\b|计划|日程|[天周步]", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d,_]*")
# Numbers that are neither a count nor an end: a factor, a length in words, a version, a year.
_OTHER_NUMBER = re.compile(
    r"\b\d{1,6} times[- ]tables?\b|\b\d[\d,]{0,8}[- ]?(?:words?|characters?|tokens?|pages?|percent)\b|\d{1,6}字"
    r"|\b\d{1,6}(?:\.\d{1,6})+\b|\b(?:19|20)\d\d\b(?! (?:times|lines|copies|rows))",
    re.IGNORECASE,
)
_SPELLED = re.compile(rf"\b(?:(two|three|four|five|six|seven|eight|nine)[\s-]+)?({'|'.join(_WORDS)})\b", re.IGNORECASE)
_TIMES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_CHINESE = re.compile(r"([一二两三四五六七八九])?([十百千])([一二三四五六七八九])?")
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000}
VERSE_COPIES, VARIANT_COPIES = 30, 12  # where the prompt names no number
COUNT_LIMIT = 500  # how far a count may go where the prompt names no end


def request_of(prompt: str | None) -> PromptRequest:
    """What a prompt asks for. Only its first and last 2,000 characters are read: instructions stand there."""
    if not prompt:
        return PromptRequest()
    text = prompt if len(prompt) <= 4000 else prompt[:2000] + "\n" + prompt[-2000:]
    text, words = _OTHER_NUMBER.sub(" ", _DENIED.sub(" ", text)), fold(text)
    numbers = [int(digits) for raw in _NUMBER.findall(text) if len(digits := re.sub(r"\D", "", raw)) <= 9]
    limit = max([*numbers, *_spelled(text)], default=None)
    if _VERSE.search(text):
        # Songs repeat themselves and count, but not forever.
        return PromptRequest(repeat=True, count=True, limit=max(limit or 0, VERSE_COPIES), words=words)
    if _VARIANTS.search(text):
        return PromptRequest(repeat=True, count=True, limit=max(limit or 0, VARIANT_COPIES), words=words)
    if limit is None:
        text = _PROGRAM.sub(" ", text)
    if limit is None and _COUNTING.search(text):
        return PromptRequest(count=True, limit=COUNT_LIMIT, words=words)
    count = bool(_COUNTING.search(text) or _COUNT.search(_GIVEN.sub("", text))) or (
        limit is not None and bool(_PLAN.search(text))
    )
    return PromptRequest(repeat=bool(_REPEAT.search(text)), count=count, limit=limit, words=words)


def _spelled(text: str) -> Iterator[int]:
    """Numbers in words: `fifty`, `two hundred`, `三十`."""
    for match in _SPELLED.finditer(text):
        yield _TIMES.get((match[1] or "").lower(), 1) * _WORDS[match[2].lower()]
    for match in _CHINESE.finditer(text):
        yield _DIGITS.get(match[1] or "一", 1) * _PLACES[match[2]] + _DIGITS.get(match[3] or "零", 0)
