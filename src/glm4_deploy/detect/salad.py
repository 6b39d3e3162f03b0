"""Salad and broken text that is visible without log probabilities. Judged once, at the end of the text.

Each rule names one thing that text in order does not do: words follow each other without a mark and none of them is
common; articles stand before commas; words are said twice; brackets close what was never opened. The rules about
characters are in `characters.py`, those about the order of words in `order.py`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from glm4_deploy.detect.characters import (
    broken_bytes,
    faces_of,
    few_faces,
    impossible_words,
    many_accents,
    marks_in_no_order,
    mixed_scripts,
    noise,
    rare_characters,
    reserved_share,
    reserved_tokens,
)
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, degenerate
from glm4_deploy.detect.garbage import parts_of
from glm4_deploy.detect.order import common_share, no_chinese_order, no_order
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, shape_of
from glm4_deploy.detect.tail import Tail
from glm4_deploy.detect.thresholds import CODES, NO_PATTERN, POOR_TOKENS, SALAD
from glm4_deploy.detect.tokens import tokens_of, value_of


def find_salad(tail: Tail, request: PromptRequest, *, ending: Ending) -> LoopFinding | None:
    """The first of the rules that the end of the text breaks. A list of words that was requested is in no order."""
    sample = tail.reversed[: SALAD.tail][::-1]
    for rule in _RULES:
        if rule in _ASKED_FOR and (ending not in _ASKED_FOR[rule] or request.count or _DRAWING.search(request.words)):
            continue  # passwords, mazes, keywords, ciphers
        if rule is reserved_tokens and _may_be_about_tokens(sample, request):
            continue
        if (rule in _LISTS and request.count) or (rule is few_faces and request.allows_faces(len(faces_of(sample)))):
            continue
        if (why := rule(sample)) is not None:
            start = max(tail.end - len(sample), 0)
            return degenerate(LoopVerdict.SALAD, why, confidence=0.85, start=start)
    return None


def _may_be_about_tokens(sample: str, request: PromptRequest) -> bool:
    """The prompt says so, or there is none and they are not most of the text."""
    if request.words:
        return _ABOUT_TOKENS.search(request.words) is not None
    return reserved_share(sample) < SALAD.reserved_alone


_WORD = re.compile(r"[^\W\d_]+")
_ABOUT_TOKENS = re.compile(
    "token|vocab|bert|masked|sentencepiece|bytefallback|hexdump|corrupt|infill|sentinel|wikitext|llama|unicode|utf8"
)
_DRAWING = re.compile("ascii|drawing|pixelart|maze|drill|pattern|emotic|punctuation|keyword|hashtag|adverb|adjective")


# Words

_TWICE = re.compile(r"(?<!\S)(\S{0,40}[^\W\d_]\S{1,40})(?: {1,2}\1(?!\S))+")
_PAIR = re.compile(r"([^\W\d_])\1")
_TWICE_EAST = re.compile(r"([\u4e00-\u9fff]{1,4})\1+")


def _said_twice(sample: str) -> str | None:
    """Word after word is said twice, and they are different words."""
    last = sample[-SALAD.twice_tail :]
    words = len(last.split())
    twice = [match[1] for match in _TWICE.finditer(last)]
    if sum(word[0].isupper() for word in twice) >= CODES * len(twice):
        twice = []  # tags of words, notes
    if len(set(twice)) >= SALAD.twice and len(twice) >= SALAD.twice_share * words:
        return f"{len(twice)} words are said twice or more in a row, among {words}"
    pairs = _PAIR.findall(last)
    letters = sum(map(str.isalpha, last))
    if len(set(pairs)) >= SALAD.letters and 2 * len(pairs) >= SALAD.letters_share * letters:
        return f"{2 * len(pairs)} of the last {letters} letters are written twice"
    east = [match[1] for match in _TWICE_EAST.finditer(last)]
    ideographs = sum("\u4e00" <= char <= "\u9fff" for char in last)
    if len(set(east)) >= SALAD.twice and sum(map(len, east)) >= SALAD.twice_share * ideographs:
        return f"{len(east)} words are said twice or more in a row, among {ideographs} ideographs"
    return None


_UNMARKED = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*(?: [^\W\d_]+(?:['\u2019-][^\W\d_]+)*)*")

_GLUED = re.compile(r"[a-z][A-Z]")


def _no_common_word(sample: str) -> str | None:
    """The text ends in many words without a mark among them, and none is common.

    Any language has a few words that make up a quarter of a text, or marks within it.
    """
    *_, run = ["", *(match[0] for match in _UNMARKED.finditer(sample) if match.end() >= len(sample) - 40)]
    words = run.split(" ")[-SALAD.unmarked_window :]
    glued = len(_GLUED.findall(run))
    if len(words) >= SALAD.glued_window and glued >= SALAD.glued_share * len(words):
        return f"{len(words)} words without a mark, with {glued} capitals in the middle of words"
    if len(words) < SALAD.unmarked or max(map(len, words)) < 2:
        return None
    if len({word[-3:] for word in words}) < len(words) / 3:
        return None  # number words
    common = sum(count for _, count in Counter(map(str.lower, words)).most_common(10))
    capitals = sum(word[:1].isupper() for word in words)
    if common > SALAD.common_share * len(words) and capitals < SALAD.capital_share * len(words):
        return None
    return f"{len(words)} words without a mark, of which the ten commonest make up {common / len(words):.0%}"


# What cannot follow an article, by language. Pronouns that look like articles (German die, French la) do precede some
# of these; a text in no order has them many times more often.
_ORDER = {
    "English": ("the an", "the a an of and or is are was were to in for on with by at that it as be this from but"),
    "German": ("der die das den dem ein eine einen", "der die das den dem ein eine und oder ist"),
    "French": ("le les une des du", "le la les un une des du et ou est dans pour que qui au"),
    "Spanish": ("el los las una del", "el la los las un una del y o en es por con para al"),
    "Italian": ("il gli una del della", "il lo la i gli le un una di e o in è per con del della che"),
}  # fmt: skip
_ARTICLES = {
    language: (frozenset(articles.split()), frozenset([*after.split(), *",.;!?"]))
    for language, (articles, after) in _ORDER.items()
}
_FIRST = re.compile(r"[^\W\d_]{3,}[.!?] ([^\W\d_])")
_INNER = re.compile(r"[^\W\d_]{2,} ([^\W\d_])")
_STEP = re.compile(r"(?<![\w'\"`*])[^\W\d_]+(?![\w'\"`*])|[,;!?]|\.(?!\S)|[^\s,.;!?]+")
_PARTICLE = re.compile(r"(?:^|(.))[的了们着吗]", re.DOTALL)


_DERIVED = re.compile(r"[a-z](?:ly|ing|[ts]ion|ed|ment|ness|ity|ive|al|[ae]nt|ous|[ai]ble|ance|ence)s?$")


def _no_function_words(sample: str) -> str | None:
    """A sentence that never ends and has lost its articles, prepositions and auxiliaries; the text before had them."""
    *_, match = [None, *_UNMARKED.finditer(sample)]
    if match is None or len(sample) - match.end() > 40:
        return None
    run, before = match[0].lower().split(" "), _WORD.findall(sample[: match.start()].lower())
    last = run[-SALAD.drift :]
    if not common_share(run[: SALAD.drift_grows]):
        return None  # a list of words: drift grows out of a sentence
    if len(last) < SALAD.drift or len(before) < SALAD.drift or common_share(before) < SALAD.drift_before:
        return None
    share, derived = common_share(last), sum(_DERIVED.search(word) is not None for word in last)
    if share > SALAD.drift_share or len(set(last)) < SALAD.drift_different * len(last):
        return None
    if derived < SALAD.drift_derived * len(last):
        return None
    return f"the last {len(last)} words have no mark among them, and {share:.0%} are common ones of any language"


def _misplaced_words(sample: str) -> str | None:
    """Sentences begin small, articles stand before marks or other articles, or Chinese particles after marks."""
    last = sample[-SALAD.order_tail :]
    if shape_of(last) is not Shape.PROSE:
        return None
    firsts, inner = _FIRST.findall(last), _INNER.findall(last)
    small = sum(map(str.islower, firsts))
    capitals = sum(map(str.isupper, inner))
    if small >= max(SALAD.small, SALAD.small_share * len(firsts)) and capitals >= SALAD.small:
        return (
            f"{small} of {len(firsts)} sentences begin with a small letter, and {capitals} capitals stand within them"
        )
    steps = [step.lower() for step in _STEP.findall(last)]
    for language, (articles, impossible) in _ARTICLES.items():
        after = [other for one, other in pairwise(steps) if one in articles and one != other]
        wrong = sum(step in impossible for step in after)
        if len(after) >= SALAD.articles and wrong >= SALAD.wrong_share * len(after):
            return f"{wrong} of {len(after)} {language} articles stand before a mark, a conjunction or an article"
    before = [match[1] or "，" for match in _PARTICLE.finditer(last)]
    wrong = sum(char in "，。、；：！？,.;:!?\n的了着" for char in before)
    if len(before) >= SALAD.articles and wrong >= SALAD.wrong_share * len(before):
        return f"{wrong} of {len(before)} Chinese particles stand after a mark or a particle"
    return None


_INNER_WORD = re.compile(r"(?<=[a-zà-ÿ] )[a-zà-ÿ]{1,24}(?![\w\-/'\u2019@(=\[]|\.\w)")  # in a row of words


def _fragments(sample: str) -> str | None:
    """Pieces of words: a language has few different words of up to three letters, and repeats them."""
    words = _INNER_WORD.findall(sample[-SALAD.fragment_tail :])[-SALAD.fragments_window :]
    kinds = set(words)
    short = sum(len(word) <= SALAD.short for word in kinds)
    if len(words) < SALAD.fragments or short < SALAD.short_share * len(words):
        return None
    if len(kinds) < SALAD.kinds_share * len(words) or shape_of(sample) is not Shape.PROSE:
        return None
    return f"{short} different words of at most {SALAD.short} letters among {len(words)}: pieces of words"


def _no_pattern(sample: str) -> str | None:
    """A few words and marks, each of which any other follows. Numerals are one kind: data may be random."""
    last = tokens_of(sample[-SALAD.order_tail :])[-POOR_TOKENS:]
    steps = ["" if value_of(token) is not None else token for token in last]
    kinds = set(steps)
    words = [step for step in steps if step.isalpha() and len(step) > 1]
    if len(last) < POOR_TOKENS or len(kinds) < SALAD.kinds or len(words) < SALAD.step_words * len(steps):
        return None  # a drawing, qualities of a sequence
    if sum(word[0].isupper() for word in words) >= CODES * len(words):
        return None
    if not _any_follows(steps):
        steps = parts_of(steps)  # identifiers written together from a few words
        if not _any_follows(steps):
            return None
        kinds = set(steps)
    return f"the last {len(last)} words and marks are {len(kinds)} different ones in no order"


def _any_follows(steps: Sequence[str]) -> bool:
    kinds, pairs = len(set(steps)), len(set(pairwise(steps)))
    return any(kinds <= most and pairs >= least * kinds for most, least in NO_PATTERN)


_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]|[^\w\s]|_|\d")
_NAMED_PIECE = re.compile(r"[A-Z][a-z]{2,}")


def _few_pieces(sample: str) -> str | None:
    """A few capitals and words written together in any order: `OOItemOt_ItemO`."""
    pieces = _PIECE.findall(sample[-SALAD.pieces_tail :])
    kinds = set(pieces)
    if len(pieces) < SALAD.pieces or not 1 < len(kinds) <= SALAD.pieces_kinds:
        return None
    lengths = Counter(len(piece) for piece in pieces if _NAMED_PIECE.fullmatch(piece))
    named = lengths.total()
    if max(lengths.values(), default=0) >= SALAD.pieces_code * len(pieces):
        return None  # a code with words of equal length: amino acids
    glued = len(_GLUED_PIECE.findall(sample[-SALAD.pieces_tail :]))
    if named < SALAD.pieces_named * len(pieces) or glued < SALAD.pieces_glued * len(pieces):
        return None
    if len(set(pairwise(pieces))) < 2 * len(kinds):
        return None
    return f"the last {len(pieces)} pieces of words are {len(kinds)} different ones, written together in any order"


_GLUED_PIECE = re.compile(r"[^\W\d_][A-Z]")

# Brackets

_BRACKET = re.compile(r"(?<!\\)[\[\]{}()](?<![:;=8\-]\))(?<!\s\w\))(?<!\s\d\d\))")
_PAIRS = {")": "(", "]": "[", "}": "{"}


def _no_brackets(sample: str) -> str | None:
    """Many brackets close what another kind of bracket opened."""
    last = sample[-SALAD.bracket_tail :]
    if last.count("\\[") > SALAD.escapes:
        return None  # troff names its glyphs so
    stack: list[str] = []
    wrong = closed = 0
    for bracket in _BRACKET.findall(last):
        if bracket not in _PAIRS:
            stack.append(bracket)
        elif stack:
            closed += 1
            if stack[-1] == _PAIRS[bracket]:
                stack.pop()
            else:
                wrong += 1
    if closed < SALAD.brackets or wrong < SALAD.bracket_share * closed or shape_of(last) is Shape.SYMBOLS:
        return None
    return f"{wrong} of {closed} brackets close what another kind of bracket opened"


_END = re.compile(r"(</[\w:-]{1,40}>|[)\]}]|\b(?:end|done|fi)\b)|[^\s,;]")
_OPENING = re.compile(r"[(\[{]|<[^\W\d_]")


def _only_closing(sample: str) -> str | None:
    """Closing tags and brackets and nothing else, more than were opened before. The last one may be cut off."""
    closed = begin = 0
    for match in _END.finditer(sample):
        if match[1]:
            begin = begin if closed else match.start()
            closed += 1
        elif match.start() < len(sample) - SALAD.cut_tag:
            closed = 0
        else:
            break
    if closed < SALAD.closing or len(_OPENING.findall(sample[:begin])) >= closed:
        return None
    return f"the text ends in {closed} closing tags and brackets, more than it opened"


_RULES = (
    broken_bytes,
    rare_characters,
    many_accents,
    reserved_tokens,
    noise,
    marks_in_no_order,
    impossible_words,
    mixed_scripts,
    _said_twice,
    _no_common_word,
    _no_function_words,
    _misplaced_words,
    _fragments,
    _no_pattern,
    _few_pieces,
    few_faces,
    _no_brackets,
    _only_closing,
    no_order,
    no_chinese_order,
)
# What may be asked for, and the endings of a text that say it was not.
_ASKED_FOR = {
    noise: (Ending.CUT, Ending.UNKNOWN),
    marks_in_no_order: (Ending.CUT,),
    _no_function_words: (Ending.CUT,),
}
_LISTS = (_no_common_word, _fragments, _no_pattern, few_faces, no_order, no_chinese_order)
