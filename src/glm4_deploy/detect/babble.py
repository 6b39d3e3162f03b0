"""Babble that no logprob is needed for: hardly any different words, or words of mixed scripts."""

import re
from collections.abc import Sequence
from itertools import pairwise
from unicodedata import name

from glm4_deploy.detect.context import Shape, is_verse, shape_of
from glm4_deploy.detect.limits import POOR_TOKENS, POOR_WORDS, SCRIPTS, SCRIPTS_TAIL, SWITCH_SHARE, SWITCHES
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.text import Text
from glm4_deploy.detect.words import Words

_VALUES = frozenset(
    "true false null none nan yes no on off pass fail win loss head heads tail tails".split()  # noqa: SIM905
)


def find_poor(words: Words, text: Text) -> Finding | None:
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
    return degenerate(Verdict.NEAR_DUPLICATE, why, confidence=0.8, start=start, unit=sample[:60])


def _is_prose(tail: Sequence[str]) -> bool:
    """Not letters alone, as a sequence of results, grades or bases has them; `'s't's` is prose that broke."""
    letters = [word for word in tail if word.isalpha()]
    spoken = sum(len(word) > 1 or word >= "\u0900" for word in letters)
    return spoken >= len(tail) / 2 or tail.count("'") >= len(tail) / 3


_WORD = re.compile(r"[^\W\d_]+")
_EAST = {"CJK": "EAST", "HIRAGANA": "EAST", "KATAKANA": "EAST", "KATAKANA-HIRAGANA": "EAST", "HALFWIDTH": "EAST"}


def find_mixed_scripts(text: Text) -> Finding | None:
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
    return degenerate(Verdict.SALAD, why, confidence=0.85, start=max(text.end - len(tail), 0))


def _script(char: str) -> str:
    first = name(char, "LATIN").split(" ", 1)[0]
    return _EAST.get(first, first)
