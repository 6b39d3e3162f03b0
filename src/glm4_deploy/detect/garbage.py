"""A text that went on after its end: the stop was missed, and the model plays the next turns or never comes to one."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from unicodedata import name

from glm4_deploy.detect.counting import Words
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, Text, degenerate
from glm4_deploy.detect.prompt import Ending, Shape, is_verse, shape_of
from glm4_deploy.detect.thresholds import (
    END_IDS,
    NULL_LOGPROBS,
    POOR_TOKENS,
    POOR_WORDS,
    SALAD_MEAN,
    SALAD_WINDOW,
    SALAD_WORST,
    SCRIPTS,
    SCRIPTS_TAIL,
    SWITCH_SHARE,
    SWITCHES,
    ZERO_IDS,
)

# Babble that no logprob is needed for: hardly any different words, or words of mixed scripts.

_VALUES = frozenset(
    "true false null none nan yes no on off pass fail win loss head heads tail tails".split()  # noqa: SIM905
)


def find_poor(words: Words, text: Text) -> LoopFinding | None:
    """The last POOR_TOKENS tokens are a few words in random order, and no values."""
    tail = words.tokens[-POOR_TOKENS:]
    kinds = set(tail)
    if len(tail) < POOR_TOKENS or len(kinds) > 4 * POOR_WORDS:
        return None
    said = {token.lower() for token in kinds if token.isalpha()}
    if not said or len(said) > POOR_WORDS or said <= _VALUES or not _is_prose(tail):
        return None
    start = words.start(len(words.tokens) - POOR_TOKENS)
    sample = text.between(start, text.end)
    if shape_of(sample) is not Shape.PROSE or is_verse(sample):
        return None
    shown = ", ".join(sorted(said))
    why = f"nothing but {shown} in no order in the last {POOR_TOKENS} words and marks"
    return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.8, start=start, unit=sample[:60])


def _is_prose(tail: Sequence[str]) -> bool:
    """Not letters alone, as a sequence of results, grades or bases has them; `'s't's` is prose that broke."""
    letters = [word for word in tail if word.isalpha()]
    spoken = sum(len(word) > 1 or word >= "\u0900" for word in letters)
    return spoken >= len(tail) / 2 or tail.count("'") >= len(tail) / 3


_WORD = re.compile(r"[^\W\d_]+")
_EAST = {"CJK": "EAST", "HIRAGANA": "EAST", "KATAKANA": "EAST", "KATAKANA-HIRAGANA": "EAST", "HALFWIDTH": "EAST"}


def find_mixed_scripts(text: Text) -> LoopFinding | None:
    """Words that change their script in the middle, over and over, among many scripts."""
    tail = text.turned[:SCRIPTS_TAIL]
    if tail.isascii():
        return None
    scripts: set[str] = set()
    switches = letters = 0
    for word in _WORD.findall(tail):
        letters += len(word)
        if word.isascii():
            continue
        kinds = [_script(char) for char in word]
        scripts.update(kinds)
        # Chinese and Japanese write foreign words without a space before them.
        switches += sum(one != two and "EAST" not in (one, two) for one, two in pairwise(kinds))
    if len(scripts) < SCRIPTS or switches < SWITCHES or switches < SWITCH_SHARE * letters:
        return None
    why = f"the script changes {switches} times within words, among {len(scripts)} scripts: no language does that"
    return degenerate(LoopVerdict.SALAD, why, confidence=0.85, start=max(text.end - len(tail), 0))


def _script(char: str) -> str:
    first = name(char, "LATIN").split(" ", 1)[0]
    return _EAST.get(first, first)


# What the engine's own numbers show: NaN (token 0, null logprobs) and salad (logprobs far below any sane text).


class Numbers:
    """Follows token ids and logprobs as they come; constant memory."""

    def __init__(self) -> None:
        self._zeros = self._nulls = self._ids = self._probs = 0
        self._all_null = self._all_zero = True
        self._sum = 0.0
        self._counted = 0
        self._recent: list[float] = []
        self._worst = 0.0
        self._ended = False
        self.passed_end = False  # an end token came, and then another token

    def feed(self, token_ids: Iterable[int], logprobs: Iterable[float | None]) -> LoopFinding | None:
        for token in token_ids:
            self._ids += 1
            self.passed_end |= self._ended
            self._ended = token in END_IDS
            self._zeros = self._zeros + 1 if token == 0 else 0
            self._all_zero &= token == 0
            if self._zeros >= ZERO_IDS:
                return self._nan(f"token id 0 came {self._zeros} times in a row: the logits are NaN")
        for value in logprobs:
            self._probs += 1
            if value is None or math.isnan(value):
                self._nulls += 1
                if self._nulls >= NULL_LOGPROBS:
                    return self._nan(f"{self._nulls} logprobs in a row are null: the logits are NaN")
                continue
            self._nulls = 0
            self._all_null = False
            self._take(max(value, -100.0))
        return None

    def _take(self, value: float) -> None:
        self._sum += value
        self._counted += 1
        self._recent.append(value)
        if len(self._recent) == SALAD_WINDOW:
            self._worst = min(self._worst, sum(self._recent) / SALAD_WINDOW)
            self._recent = self._recent[SALAD_WINDOW // 2 :]

    def close(self) -> LoopFinding | None:
        if self._probs and self._all_null:
            return self._nan("every logprob is null: the logits are NaN")
        if self._ids >= 4 and self._all_zero:
            return self._nan("every token id is 0: the logits are NaN")
        return None

    def salad(self) -> LoopFinding | None:
        """Asked last: a random loop has low logprobs too, and is better named a loop."""
        if self._counted < 16:
            return None
        mean = self._sum / self._counted
        if mean > SALAD_MEAN and self._worst > SALAD_WORST:
            return None
        worst, limit = (mean, SALAD_MEAN) if mean <= SALAD_MEAN else (self._worst, SALAD_WORST)
        why = f"mean logprob {worst:.1f} nats a token (a sane text stays above {limit:.1f}): words without sense"
        return degenerate(LoopVerdict.SALAD, why, confidence=round(min(0.99, 0.7 + 0.1 * (limit - worst)), 2), start=0)

    @staticmethod
    def _nan(why: str) -> LoopFinding:
        return degenerate(LoopVerdict.NAN_COLLAPSE, why, confidence=0.99, start=0, unit="", period=1)


# Templates of the common families; GLM-4's are <|user|>, <|assistant|>, <|observation|>, <|endoftext|>, [gMASK], <sop>.
_MARK = re.compile(
    r"<\|(?:user|assistant|system|observation|endoftext|im_start|im_end|eot_id|start_header_id|end_of_text)\|>"
    r"|\[gMASK\]|<sop>|</s>|\[/?INST\]|<(?:start|end)_of_turn>"
)
_TURN = re.compile(
    r"^(?:###\s*)?(?:(User|Human|Assistant|Instruction|Response|用户|助手)\s*[:：]|(user|assistant|human|model)$)",
    re.MULTILINE,
)
# Questions and answers are a form of good texts too: only where the prompt asked for something else.
_ASKS = re.compile(r"^(Q|A|Question|Answer|问|答)\s*[:：]", re.MULTILINE)
_MAY_ASK = re.compile(r"question|faq|quiz|q\s?&\s?a|trivia|flash ?card|问|题", re.IGNORECASE)
_USER = re.compile(r"<\|(?:user|im_start\|>user)")
_DIALOGUE = re.compile(r"dialog|conversation|transcript|interview|script|chat|template|对话|剧本|访谈", re.IGNORECASE)
_BRIEF = re.compile(
    r"\b(?:one|single) word\b|\byes or no\b|\bthe (?:number|name|answer) only\b|\bonly the (?:number|name|answer)\b"
    r"|只回答|一个词|只需回答",
    re.IGNORECASE,
)
_BRIEF_ANSWER = 300  # characters


def find_runaway(text: Text, *, ending: Ending, prompt: str | None, passed_end: bool) -> LoopFinding | None:
    """What the text went past, if it did; passed_end: the engine went past an end token."""
    tail, end, asked = text.turned[::-1], text.end, prompt or ""
    base = end - len(tail)
    marks = [] if _DIALOGUE.search(asked) or "```" in tail else list(_MARK.finditer(tail))
    few = {Ending.CUT: 1, Ending.STOPPED: 4}.get(ending, 3)
    if ending is Ending.STOPPED and len(_USER.findall(tail)) < 2:
        marks = []  # it may speak of them
    if len(marks) >= few and tail[marks[0].end() :].strip():
        return _finding(
            f"it went past its end and on through {len(marks)} marks of the chat template", base + marks[0].start()
        )
    if ending is not Ending.CUT:
        return None
    if passed_end:
        return _finding("it generated an end token of GLM-4 and went on to the token limit", None)
    turns = _turns(tail, asked)
    if turns:
        return _finding(
            f"it plays both sides of a conversation for {len(turns)} turns, to the token limit", base + turns[0].start()
        )
    if _BRIEF.search(asked) and end > _BRIEF_ANSWER:
        return _finding(f"a word was asked for, and {end} characters came until the token limit", 0)
    return None


def _turns(tail: str, asked: str) -> list[re.Match[str]]:
    """Turns of two speakers that come after an answer; none where a conversation may have been asked for."""
    if _DIALOGUE.search(asked):
        return []
    ways = [_TURN] if not asked or _MAY_ASK.search(asked) else [_TURN, _ASKS]
    for way in ways:
        turns = list(way.finditer(tail))
        speakers = {turn[0].strip("#:： ") for turn in turns}
        if len(turns) >= 3 and len(speakers) == 2 and tail[: turns[0].start()].strip():
            return turns
    return []


def _finding(why: str, start: int | None) -> LoopFinding:
    return degenerate(LoopVerdict.RUNAWAY_NO_STOP, why, confidence=0.85, start=start)
