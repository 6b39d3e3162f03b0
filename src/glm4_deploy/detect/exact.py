"""Exact loops: which periodic runs are loops, given what repeats, how the text ended and what the prompt asked for."""

import math
import re

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, count_of, degenerate
from glm4_deploy.detect.prompt import (
    Ending,
    PromptRequest,
    Shape,
    ends_a_row,
    is_refrain,
    is_row,
    is_verse,
    shape_of,
    weight_of,
)
from glm4_deploy.detect.quoting import is_quoted
from glm4_deploy.detect.tail import Run, Tail, across_gaps, runs_before_end, tail_runs
from glm4_deploy.detect.thresholds import (
    ALL_BANGS,
    BANGS,
    DIGITS,
    ENTIRE_TEXT,
    GAPPED_FACTOR,
    LONG_ROW,
    LONG_UNIT,
    LOOP_LIMITS,
    NEWLINES,
    ONE_LETTER,
    OPENING,
    REACH,
    REFRAIN,
    ROW_LIMITS,
    RULE,
    SHORT_ROW,
    SPACES,
    STRAY,
    STRAY_LENGTHS,
    TOKEN_WORTH,
    VERSE_FACTOR,
    VERSE_LINE,
    WRAPPED,
    LoopLimit,
)
from glm4_deploy.detect.tokens import tokens_of


def find_loop(tail: Tail, *, ending: Ending, request: PromptRequest, unfinished: bool = False) -> LoopFinding | None:
    """The loop that the text ends in; once the text has ended, something short may follow the loop.

    Args:
        unfinished: more had to follow, so that a loop at the very end was cut off.
    """
    at_end = Ending.CUT if unfinished and ending is Ending.UNKNOWN else ending
    finding = find_or_due(tail, ending=at_end, request=request)[0]
    if finding is None and ending is not Ending.RUNNING:
        finding = _one_letter(tail, request, at_end)
    return finding if finding is not None or ending is Ending.RUNNING else _find_before_end(tail, ending, request)


def find_or_due(tail: Tail, *, ending: Ending, request: PromptRequest) -> tuple[LoopFinding | None, float]:
    """The loop that the text ends in.

    Returns:
        The loop, or None with the offset at which the first of its runs becomes one if the text continues that run
        (infinity without a run).
    """
    due = math.inf
    if blank := _whitespace(tail, ending):
        return blank, due
    for run in tail_runs(tail.reversed, reach=REACH):
        unit = run.unit(tail.reversed)
        if is_blank(unit):
            continue
        finding, needed = _judge(run, unit, tail, ending, request)
        if finding is not None:
            return finding, due
        if run.length < needed:
            due = min(due, tail.end - run.length + math.ceil(needed))
    return None, due


_LETTERS = re.compile(r"\s*([^\W\d_A]|`)(?:\1|\s)*")  # A: base64 of zero bytes
_REVERSED_DIGITS = re.compile(r"([1-9])\1+(?=[^\W\d_])")  # within a word, so no number


def _one_letter(tail: Tail, request: PromptRequest, ending: Ending) -> LoopFinding | None:
    """One letter over and over, with blanks anywhere, or a backtick; or one digit, until the token limit."""
    match = _LETTERS.match(tail.reversed)
    if match is None and ending is Ending.CUT and tail.reversed[:1] not in request.words:
        match = _REVERSED_DIGITS.match(tail.reversed)
    if match is None:
        return None
    letter, times = match[1], match[0].count(match[1])
    ruled = letter == "`" and ending is Ending.STOPPED  # a heading may be underlined with it
    if times < (RULE if ruled else ONE_LETTER) or request.allows(times, letter):
        return None
    return degenerate(
        LoopVerdict.EXACT_LOOP,
        f"one letter repeats {times} times in a row",
        confidence=0.9,
        start=tail.end - len(match[0].rstrip()),
        unit=letter,
        period=1,
        repeats=times,
    )


_REVERSED_END_MARKS = re.compile(r"(?:>\|\w{1,20}\|<\s*|>s/<|>soe<)+")  # `<|endoftext|>`, `</s>`, `<eos>`


def _find_before_end(tail: Tail, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """A loop followed by something short: end marks after any loop, a stray token or a few words after prose.

    Rows and symbols that something else follows were closed by it.
    """
    if marks := _length(_REVERSED_END_MARKS.match(tail.reversed)):
        finding, _ = find_or_due(tail.before(marks), ending=ending, request=request)
        if finding is not None:
            return finding
    for run, distance in runs_before_end(tail.reversed, reach=REACH, distances=STRAY_LENGTHS):
        earlier = tail.before(distance)
        unit = run.unit(earlier.reversed)
        shape = Shape.PROSE if unit == "!" else shape_of(unit)
        cut_there = shape is not Shape.ZEROS and ending is Ending.CUT and distance <= STRAY
        if is_blank(unit) or not (shape is Shape.PROSE or cut_there):
            continue
        if ending is not Ending.CUT and distance > 1 and is_quoted(tail, earlier.end - run.length):
            continue  # a text about loops goes on
        # A text that went on after its loop was not cut off within it.
        loop_ending = Ending.UNKNOWN if ending is Ending.CUT and distance > STRAY else ending
        finding, _ = _judge(run, unit, earlier, loop_ending, request)
        if finding is not None:
            return finding
    return None


def _judge(run: Run, unit: str, tail: Tail, ending: Ending, request: PromptRequest) -> tuple[LoopFinding | None, float]:
    """Judge a run that `tail` ends in.

    Returns:
        The finding if it is a loop, and the number of characters that make it one.
    """
    if unit == "!" and run.length >= (ALL_BANGS if run.length == tail.end else BANGS[ending]):
        return _nan_collapse(run, tail.end), 0
    needed = BANGS[ending] if unit == "!" else _needed(run, unit, tail.reversed, ending)
    if run.length >= needed or (run.length >= tail.end - STRAY and _fills_text(run, unit, ending)):
        if request.allows(run.repeats, unit) or (request.lists(run.repeats) and shape_of(unit) is not Shape.PROSE):
            return None, needed
        return _loop(run, run.length, unit, tail.end, ending), needed
    if shape_of(unit) is Shape.PROSE:
        gapped, length = across_gaps(tail.reversed, run)
        factor = VERSE_FACTOR if is_verse(tail.reversed[:length], width=VERSE_LINE) else 1
        if gapped.length >= factor * GAPPED_FACTOR * needed and not request.allows(gapped.repeats, unit):
            return _loop(gapped, length, unit, tail.end, ending), needed
    return None, needed


def _needed(run: Run, unit: str, reversed_text: str, ending: Ending) -> float:
    """How many characters a run of this unit must have to be a loop."""
    shape = shape_of(unit)
    if shape is Shape.ZEROS and run.period in WRAPPED:
        ending = Ending.STOPPED  # lines of base64, however the text ended
    row = shape in (Shape.STRUCTURE, Shape.SYMBOLS) and is_row(unit)
    if not unit.strip("([{<"):
        return OPENING
    if row and ending is Ending.UNKNOWN and ends_a_row(reversed_text[0], reversed_text[run.period - 1]):
        ending = Ending.STOPPED
    limit = ROW_LIMITS[ending] if row else LOOP_LIMITS[shape, ending]
    if not row and (shape, ending) == (Shape.SYMBOLS, Ending.UNKNOWN) and _is_spoken(unit):
        limit = DIGITS
    weight = weight_of(unit)
    continuous = shape is Shape.PROSE and "\n" not in unit
    size = run.period * weight
    if row or shape is Shape.STRUCTURE:
        size = min(size, TOKEN_WORTH * len(set(tokens_of(unit))))
    copies = _row_copies(limit, size) if row else copies_needed(limit, size, continuous=continuous)
    if row and ending is Ending.RUNNING:
        weight = max(weight, 1)  # blanks do not delay a provisional alarm
    elif is_refrain(unit):
        copies = max(copies, REFRAIN[ending])
    return max(limit.span / weight, copies * run.period)


def copies_needed(limit: LoopLimit, size: float, *, continuous: bool) -> float:
    """Copies of a unit of `size` Latin characters that make a loop.

    In continuous text the number falls steadily, from the size at which the short limit's copies just fill the span
    to that of a long unit; elsewhere it drops at the long unit.
    """
    if size >= LONG_UNIT or not continuous:
        return limit.long_copies if size >= LONG_UNIT else limit.short_copies
    smallest = limit.span / limit.short_copies
    share = max(size - smallest, 0) / (LONG_UNIT - smallest)
    return limit.short_copies + share * (limit.long_copies - limit.short_copies)


def _is_spoken(unit: str) -> bool:
    """Digits or emoji, which do not rule lines."""
    return any(char.isalnum() or char >= "\U0001f000" for char in unit)


def _row_copies(limit: LoopLimit, size: float) -> float:
    """Copies of a row of `size` Latin characters that make a loop."""
    share = min(max(math.log(size / SHORT_ROW) / math.log(LONG_ROW / SHORT_ROW), 0), 1)
    return limit.short_copies * math.pow(limit.long_copies / limit.short_copies, share)


def _fills_text(run: Run, unit: str, ending: Ending) -> bool:
    """Whether a run that is (nearly) the entire text is a loop."""
    limit = ENTIRE_TEXT[ending]
    enough = run.repeats >= limit.short_copies and run.length * weight_of(unit) >= limit.span
    return enough and shape_of(unit) is Shape.PROSE


_BLANK = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")


def is_blank(text: str) -> bool:
    """Nothing visible: whitespace and zero-width characters."""
    return text.isspace() or _BLANK.fullmatch(text) is not None


def _whitespace(tail: Tail, ending: Ending) -> LoopFinding | None:
    blank = _length(_BLANK.match(tail.reversed))
    if not blank or (blank < SPACES[ending] and tail.reversed[:blank].count("\n") < NEWLINES):
        return None
    return degenerate(
        LoopVerdict.WHITESPACE,
        f"nothing but whitespace for {blank} characters",
        confidence=0.97,
        start=tail.end - blank,
        unit=tail.reversed[0],
        period=1,
        repeats=float(blank),
    )


def _length(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


def _loop(run: Run, length: int, unit: str, end: int, ending: Ending) -> LoopFinding:
    """The finding for a run; `length` includes its gaps."""
    unit_name = "one character" if run.period == 1 else f"a {run.period}-character unit"
    gaps = " in a row" if length == run.length else ", with short gaps between the copies"
    cut = ", until the token limit" if ending is Ending.CUT else ""
    return degenerate(
        LoopVerdict.EXACT_LOOP,
        f"{unit_name} repeats {count_of(run.repeats)} times{gaps}{cut}",
        confidence=round(min(0.99, 0.75 + 0.02 * run.repeats + (0.1 if ending is Ending.CUT else 0)), 2),
        start=end - length,
        unit=unit,
        period=run.period,
        repeats=run.repeats,
    )


def _nan_collapse(run: Run, end: int) -> LoopFinding:
    return degenerate(
        LoopVerdict.NAN_COLLAPSE,
        f"'!' repeats {run.length} times in a row: token 0 of GLM-4's vocabulary, which NaN logits produce",
        confidence=0.9,
        start=end - run.length,
        unit="!",
        period=1,
        repeats=run.repeats,
    )
