"""Every threshold of the detector, in one place: fixed on the development half of the evaluation, then frozen.

`benchmarks/detector` measures them; change one and run it again.
"""

import math
from dataclasses import dataclass

from glm4_deploy.detect.prompt import Ending, Shape

# A stream keeps this much text, and finds exact loops whose unit is at most a quarter of it.
HOP = 64  # characters between two looks
WINDOW = 1024 * HOP
REACH = WINDOW // 4


@dataclass(frozen=True, slots=True)
class Loop:
    """When an exact run is a loop.

    span: its length must reach this, in characters of Latin text (about four to a token).
    short, long: copies needed of a short unit and of one of 200 characters or more.
    """

    span: float
    short: float
    long: float


LOOPS = {
    (Shape.PROSE, Ending.RUNNING): Loop(176, 4, 3.1),
    (Shape.PROSE, Ending.STOPPED): Loop(176, 4, 3.1),
    (Shape.PROSE, Ending.UNKNOWN): Loop(160, 4, 3),
    (Shape.PROSE, Ending.CUT): Loop(96, 3, 3),
    (Shape.STRUCTURE, Ending.RUNNING): Loop(480, 12, 3.9),
    (Shape.STRUCTURE, Ending.STOPPED): Loop(480, 12, 3.9),
    (Shape.STRUCTURE, Ending.UNKNOWN): Loop(400, 8, 3.2),
    (Shape.STRUCTURE, Ending.CUT): Loop(200, 10, 4),
    (Shape.SYMBOLS, Ending.RUNNING): Loop(960, 24, 10),
    (Shape.SYMBOLS, Ending.STOPPED): Loop(960, 24, 10),
    (Shape.SYMBOLS, Ending.UNKNOWN): Loop(400, 16, 6),
    (Shape.SYMBOLS, Ending.CUT): Loop(200, 10, 6),
    (Shape.ZEROS, Ending.RUNNING): Loop(4096, 24, 24),
    (Shape.ZEROS, Ending.STOPPED): Loop(4096, 24, 24),
    (Shape.ZEROS, Ending.UNKNOWN): Loop(400, 24, 24),
    (Shape.ZEROS, Ending.CUT): Loop(224, 6, 6),
}
# Rows (lines of code or markup, records, cells): an empty table of thirty is what somebody asked for. A text that ends
# in the middle of a row was cut, whatever is known of its end; one that ends with a row may have come to its end.
ROWS = {
    Ending.RUNNING: Loop(900, 52, 12.5),
    Ending.STOPPED: Loop(900, 52, 12.5),
    Ending.UNKNOWN: Loop(480, 12, 4),
    Ending.CUT: Loop(320, 12, 4),
}
LONG_UNIT = 200
WRAPPED = (65, 77)  # a line of base64 with its end
# A text that is nothing but copies needs less: so many, and so many characters (a laugh has fewer).
WHOLE = {
    Ending.RUNNING: Loop(math.inf, 16, 16),  # it may go on otherwise
    Ending.STOPPED: Loop(96, 8, 8),
    Ending.UNKNOWN: Loop(96, 8, 8),
    Ending.CUT: Loop(24, 8, 8),
}
# Odd tokens in a loop: its breaks are no longer than a copy and GAP characters, all of them no more than the share GAPS
# of what is whole, and that is GAPPED times as long as an unbroken loop must be; in verse VERSES times.
GAP, GAPS, GAPPED, VERSES, WIDE_VERSE = 16, 0.25, 1.25, 3, 100
# After a loop: STRAY characters change nothing; where more follow, the text went on, and no limit cut the loop.
STRAY = 16
TAILS = (1, 4, 16, 64, 256)
STRAY_TOKENS = 6  # after a count: a sentence after it closed it
# A refrain of one short line needs more: songs end on it.
REFRAIN = {Ending.RUNNING: 10, Ending.STOPPED: 10, Ending.UNKNOWN: 10, Ending.CUT: 6}

WORD_HOPS = 4  # hops between two looks at the words
WORDS = 16384  # tokens kept
WORD_REACH = WORDS // 4


@dataclass(frozen=True, slots=True)
class Count:
    """When a run that counts is a loop: copies, and its length in characters of Latin text."""

    copies: float
    span: float


NEVER = Count(float("inf"), 0)
COUNTERS = {
    (Shape.PROSE, Ending.RUNNING): Count(20, 1000),
    (Shape.PROSE, Ending.STOPPED): Count(20, 1000),
    (Shape.PROSE, Ending.UNKNOWN): Count(14, 700),
    (Shape.PROSE, Ending.CUT): Count(10, 400),
    (Shape.STRUCTURE, Ending.RUNNING): Count(1500, 0),
    (Shape.STRUCTURE, Ending.STOPPED): NEVER,
    (Shape.STRUCTURE, Ending.UNKNOWN): Count(200, 0),
    (Shape.STRUCTURE, Ending.CUT): Count(48, 3600),
    (Shape.SYMBOLS, Ending.RUNNING): Count(1500, 0),
    (Shape.SYMBOLS, Ending.STOPPED): NEVER,
    (Shape.SYMBOLS, Ending.UNKNOWN): Count(300, 0),
    (Shape.SYMBOLS, Ending.CUT): Count(120, 300),
}
# A column of numerals is the same, or steps, if this share of its differences are 0, or one other number.
STEADY, STEPPING = 0.9, 0.6
SENTENCE = 36  # characters of Latin text: a unit as long that counts, and is no row, is told early

SHINGLE = 5  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """When a stretch of text is a near duplicate of itself. Lengths in tokens.

    costs: what a new token costs where a covered one earns 1, one region for each; ceiling: the most it earns.
    few, some: shares of new tokens; above `few` the changes must come at different places (spread), or, up to
    `slots`, in very many copies (a template that never ends).
    """

    costs: tuple[float, ...]
    ceiling: float
    tokens: int
    copies: dict[Ending, float]
    varied_copies: float
    verse_copies: float
    numeral_copies: float
    text_unit: int
    text_copies: float
    short_unit: int
    long_unit: int
    few: float
    slots: float
    slot_copies: float
    some: float
    spread: float


NEAR = Near(
    costs=(4, 16),
    ceiling=150,
    tokens=60,
    copies={Ending.RUNNING: 4, Ending.STOPPED: 4, Ending.UNKNOWN: 4, Ending.CUT: 3.5},
    varied_copies=5.3,
    verse_copies=24,
    numeral_copies=12,
    text_unit=48,
    text_copies=5,
    short_unit=14,
    long_unit=24,
    few=0.05,
    slots=0.1,
    slot_copies=10,
    some=0.2,
    spread=0.5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """When a near duplicate of long paragraphs is told early. unit: tokens of one copy; changes: at least so many."""

    unit: int
    copies: float
    changes: int
    spread: float


DRIFT = Drift(unit=64, copies=3.1, changes=3, spread=0.8)

# '!' in a row: token 0 of GLM-4's vocabulary. A text of nothing else needs fewer.
BANGS = {Ending.RUNNING: 48, Ending.STOPPED: 48, Ending.UNKNOWN: 32, Ending.CUT: 16}
ALL_BANGS = 8
ZERO_IDS = 16
NULL_LOGPROBS = 8
SPACES = {Ending.RUNNING: 400, Ending.STOPPED: 200, Ending.UNKNOWN: 160, Ending.CUT: 96}
NEWLINES = 64

# Letters and digits of a loop whose copies are written differently; `la la la` has too few different ones.
# A long unit needs fewer copies.
FOLDED, FOLDED_LETTERS = Loop(320, 8, 4), 6

POOR_TOKENS = 256  # tokens looked at for how few different ones there are
POOR_WORDS = 4
SCRIPTS_TAIL = 4096  # characters looked at for scripts that change within words
SCRIPTS, SWITCHES, SWITCH_SHARE = 5, 12, 0.04

SALAD_WINDOW = 64  # tokens
SALAD_MEAN = -2.0  # nats a token, over the whole text
SALAD_WORST = -2.75  # over one window

END_IDS = frozenset({151329, 151336, 151338})  # GLM-4: <|endoftext|>, <|user|>, <|observation|>
