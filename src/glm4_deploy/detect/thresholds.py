"""The detector's thresholds: fixed on the development half of the evaluation, then frozen.

`benchmarks/detector` measures them; run it again after a change.
"""

import math
from dataclasses import dataclass

from glm4_deploy.detect.prompt import Ending, Shape

# What a stream keeps of its text, and how often it searches it. Exact loops are found up to a period of REACH.
HOP = 64  # characters between two searches
WINDOW = 1280 * HOP  # characters kept: four periods of 4,096 tokens of five characters
REACH = WINDOW // 4

TOKEN_HOPS = 4  # hops between two searches of the tokens
HOT_HOPS, HOT_TOKENS = 2, 400  # and while hardly a token of the last HOT_TOKENS is new
COUNT_HOPS = 8  # and at every hop while prose may be counting: eight times as many are searched
POOR_HOPS = 8  # hops between two looks for a poor vocabulary
TOKENS = 16384  # tokens kept
TOKEN_REACH = TOKENS // 4


@dataclass(frozen=True, slots=True)
class LoopLimit:
    """When a periodic run is a loop.

    Attributes:
        span: length it must reach, in characters of Latin text (about four per token).
        short_copies: copies needed of a short unit.
        long_copies: copies needed of a unit of LONG_UNIT characters or more.
    """

    span: float
    short_copies: float
    long_copies: float


LONG_UNIT = 200
LOOP_LIMITS = {
    (Shape.PROSE, Ending.RUNNING): LoopLimit(176, 4, 3.1),
    (Shape.PROSE, Ending.STOPPED): LoopLimit(176, 4, 3.1),
    (Shape.PROSE, Ending.UNKNOWN): LoopLimit(160, 4, 3),
    (Shape.PROSE, Ending.CUT): LoopLimit(96, 3, 2.5),
    (Shape.STRUCTURE, Ending.RUNNING): LoopLimit(240, 4, 3.1),
    (Shape.STRUCTURE, Ending.STOPPED): LoopLimit(480, 12, 3.9),
    (Shape.STRUCTURE, Ending.UNKNOWN): LoopLimit(400, 8, 3.2),
    (Shape.STRUCTURE, Ending.CUT): LoopLimit(200, 10, 4),
    (Shape.SYMBOLS, Ending.RUNNING): LoopLimit(480, 24, 6),
    (Shape.SYMBOLS, Ending.STOPPED): LoopLimit(960, 24, 10),
    (Shape.SYMBOLS, Ending.UNKNOWN): LoopLimit(400, 16, 6),
    (Shape.SYMBOLS, Ending.CUT): LoopLimit(160, 10, 6),
    (Shape.ZEROS, Ending.RUNNING): LoopLimit(4096, 24, 24),
    (Shape.ZEROS, Ending.STOPPED): LoopLimit(4096, 24, 24),
    (Shape.ZEROS, Ending.UNKNOWN): LoopLimit(400, 24, 24),
    (Shape.ZEROS, Ending.CUT): LoopLimit(224, 6, 6),
}
# Rows (lines of code or markup, records, cells): people do ask for an empty table of thirty rows, and a component is
# pasted nine times; but a long unit is never a row: of 1,654 good texts not one has three copies of 256 characters.
# While a text is RUNNING, an alarm at rows is provisional: it ends with the rows, and the ending decides.
SHORT_ROW, LONG_ROW = 32, 256  # characters; in between, the logarithm of the copies falls with that of the size
ROW_LIMITS = {
    Ending.RUNNING: LoopLimit(240, 3.9, 3.1),
    Ending.STOPPED: LoopLimit(480, 52, 3.1),
    Ending.UNKNOWN: LoopLimit(320, 12, 3.1),
    Ending.CUT: LoopLimit(240, 10, 3),
}
TOKEN_WORTH = 10  # characters that each different token of structure is worth: few tokens are a short unit
ONE_LETTER = 48  # of the same letter, with or without blanks between them, at the end of a text
RULE = 128  # backticks in a row, where the text ended on its own
OPENING = 64  # opening brackets in a row
DIGITS = LoopLimit(160, 32, 6)  # symbols with letters or digits, at an unknown ending: `0 0 0`, `%20%20`
# A text that is nothing but copies needs fewer copies and characters (a laugh has fewer still).
ENTIRE_TEXT = {
    Ending.RUNNING: LoopLimit(math.inf, 16, 16),  # it may yet continue differently
    Ending.STOPPED: LoopLimit(96, 8, 8),
    Ending.UNKNOWN: LoopLimit(96, 8, 8),
    Ending.CUT: LoopLimit(24, 8, 8),
}
WRAPPED = (65, 77)  # characters of a wrapped line of base64, its newline included
# A refrain of a few short lines needs more copies: songs end on it. A stream reports it sooner, provisionally: of 2,892
# good texts no more raise an alarm at 4 copies than at 10.
REFRAIN = {Ending.RUNNING: 4, Ending.STOPPED: 10, Ending.UNKNOWN: 10, Ending.CUT: 5}

# Odd tokens within a loop. A gap is no longer than one copy and MAX_GAP characters, and all gaps together no more than
# MAX_GAP_SHARE of the rest. The loop must be GAPPED_FACTOR times as long as one without gaps, in verse (lines shorter
# than VERSE_LINE) VERSE_FACTOR times longer again.
MAX_GAP, MAX_GAP_SHARE, GAPPED_FACTOR, VERSE_FACTOR, VERSE_LINE = 16, 0.25, 1.25, 3, 100
# After a loop: STRAY characters change nothing; after more, the text went on, and the token limit did not cut the loop.
STRAY = 16
STRAY_LENGTHS = (1, 4, 16, 64, 256)  # characters after a loop that the search skips
STRAY_TOKENS = 6  # after a count: a whole sentence would have closed it


@dataclass(frozen=True, slots=True)
class CounterLimit:
    """When a run that counts is a loop.

    Attributes:
        copies: copies needed.
        span: length it must reach, in characters of Latin text.
    """

    copies: float
    span: float


NEVER = CounterLimit(math.inf, 0)
COUNTER_LIMITS = {
    (Shape.PROSE, Ending.RUNNING): CounterLimit(20, 1000),
    (Shape.PROSE, Ending.STOPPED): CounterLimit(20, 1000),
    (Shape.PROSE, Ending.UNKNOWN): CounterLimit(14, 700),
    (Shape.PROSE, Ending.CUT): CounterLimit(10, 400),
    (Shape.STRUCTURE, Ending.RUNNING): CounterLimit(1500, 0),
    (Shape.STRUCTURE, Ending.STOPPED): NEVER,
    (Shape.STRUCTURE, Ending.UNKNOWN): CounterLimit(200, 0),
    (Shape.STRUCTURE, Ending.CUT): CounterLimit(48, 3600),
    (Shape.SYMBOLS, Ending.RUNNING): CounterLimit(1500, 0),
    (Shape.SYMBOLS, Ending.STOPPED): NEVER,
    (Shape.SYMBOLS, Ending.UNKNOWN): CounterLimit(300, 0),
    (Shape.SYMBOLS, Ending.CUT): CounterLimit(120, 300),
}
# From here on, a stream provisionally reports a count in prose that the prompt did not ask for.
EARLY_COUNT = CounterLimit(7, 300)
# Records of several words that only count, in a text that was cut off.
RECORD_WORDS, RECORD_LIMIT = 8, CounterLimit(16, 800)
# A column of numerals is constant if this share of its differences is 0; it steps if this share is one other number.
CONSTANT_SHARE, STEP_SHARE = 0.9, 0.6
SENTENCE = 36  # characters of Latin text: a unit of this length that counts, and is not a row, is reported early

SHINGLE = 5  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class NearLimits:
    """When a stretch of text nearly repeats itself. Lengths in tokens.

    A new token is one that earlier text does not cover. Above `few` new tokens, the changes must fall in different
    places (`spread`), or, up to `slots`, in very many copies (a template that never ends).

    Attributes:
        costs: what a new token costs where a covered one earns 1; a region is followed for each.
        ceiling: the most that covered tokens can earn.
        tokens: shortest stretch that is considered.
        copies: copies needed.
        varied_copies: copies needed above `few` new tokens.
        words: different words needed.
        trailing: new tokens in a row after which the text has gone on.
        numeral_copies: copies needed where only numbers change.
        text_unit: a unit of this length where only numbers change is text rather than a record,
        text_copies: and this many copies of it suffice.
        short_unit: above `few` new tokens, shorter units are ignored.
        long_unit: where only numbers change, shorter units are ignored.
        few: share of new tokens.
        slots: share of new tokens.
        slot_copies: copies needed up to `slots`.
        some: share of new tokens, the largest that is considered.
        spread: share of changes that come after different tokens.
    """

    costs: tuple[float, ...]
    ceiling: float
    tokens: int
    copies: dict[Ending, float]
    varied_copies: float
    words: int
    trailing: int
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


NEAR = NearLimits(
    costs=(4, 16),
    ceiling=150,
    tokens=60,
    copies={Ending.RUNNING: 4, Ending.STOPPED: 4, Ending.UNKNOWN: 4, Ending.CUT: 3.5},
    varied_copies=5.3,
    words=3,
    trailing=16,
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


# Structure in which one thing changes, in a text that was cut off: methods that differ by a name, records by an id. In
# good structure of so many copies one change in seven or more comes after a different token.
@dataclass(frozen=True, slots=True, kw_only=True)
class OneSlotLimits:
    """When structure with one slot is a loop: tokens of a unit, copies, share of new tokens and of different places."""

    unit: int = 28
    copies: float = 20
    novelty: float = 0.12
    spread: float = 0.06


ONE_SLOT = OneSlotLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftLimits:
    """When a near duplicate of long paragraphs is reported early.

    Attributes:
        unit: tokens of one copy, at least.
        copies: copies needed.
        changes: rows of new tokens, at least.
        spread: share of changes that come after different tokens, at least.
    """

    unit: int
    copies: float
    changes: int
    spread: float


DRIFT = DriftLimits(unit=64, copies=3.1, changes=3, spread=0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class StallLimits:
    """When a text that the token limit cut off had come to say nothing new.

    Of 468 good texts of this length that were cut off, none says as little; shorter lines may.

    Attributes:
        tokens: last tokens that are judged.
        novelty: share of new ones among them, at most.
        words: share of words among them, at least.
        width: columns of a line on average, at least.
    """

    tokens: int = 300
    novelty: float = 0.04
    words: float = 0.25
    width: int = 56


STALL = StallLimits()

# Copies that are written differently, compared by letters and digits alone; long units need fewer. A unit must have
# FOLDED_LETTERS different ones: `la la la` has too few.
FOLDED, FOLDED_LETTERS = LoopLimit(320, 8, 4), 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LineLimits:
    """When lines and sentences that recur are a loop.

    Attributes:
        shortest: characters, words and ideographs: a line with fewer proves nothing.
        long: characters: a longer line needs one word.
        sentence: words of a line in which numerals do not count.
        longest: characters of an unfinished line that are kept.
        kept: characters of a line that are kept, with a hash of the rest.
        memory: a line counts as known for this many lines.
        cost: what a new line costs where a known one earns 1,
        word_cost: and what a new line of one word costs.
        ceiling: the most that known lines can earn.
        lines: lines of the shortest stretch that is judged.
        deeper: how often the indentation may grow without falling.
        repeats: lines of the stretch divided by different ones among them.
        slots: lines, sentences or items that are equal but for one word, which are too many in a text that was cut
            off, and short_slots: if they have two words; slot_words: different ones of that word, divided by the rows,
            at most: a list names a thing once; slot_tail: characters that must be prose.
        numbered: equal items of a numbered list that are too many,
        item: if each has this many words,
        before: after this many items, nearly all of them different.
    """

    shortest: int
    words: int
    ideographs: int
    long: int
    sentence: int
    longest: int
    kept: int
    memory: int
    cost: float
    word_cost: float
    ceiling: float
    lines: dict[Ending, int]
    deeper: int
    repeats: dict[Ending, float]
    slots: int
    short_slots: int
    slot_words: float
    slot_tail: int
    numbered: int
    item: int
    before: int


LINES = LineLimits(
    shortest=8,
    words=2,
    ideographs=4,
    long=48,
    sentence=7,
    longest=2000,
    kept=200,
    memory=400,
    cost=6,
    word_cost=1.5,
    ceiling=24,
    lines={Ending.RUNNING: 6, Ending.STOPPED: 12, Ending.CUT: 8},
    deeper=32,
    repeats={Ending.RUNNING: 6, Ending.STOPPED: 9, Ending.CUT: 6},
    slots=64,
    short_slots=160,
    slot_words=0.9,
    slot_tail=1000,
    numbered=9,
    item=3,
    before=5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """When rows without a key are a loop, in a text that was cut off.

    Attributes:
        tail: characters examined.
        rows: at least.
        kinds: different rows divided by all, at most.
        values: different values of a column divided by rows, at most; the key of a good table has 0.59 or more.
        said: characters of a row in its cells, on average.
    """

    tail: int = 8000
    rows: int = 40
    kinds: float = 0.8
    values: float = 0.2
    said: float = 24


ROWS = RowLimits()

# '!' in a row: token 0 of GLM-4's vocabulary. A text of nothing else needs fewer.
BANGS = {Ending.RUNNING: 48, Ending.STOPPED: 48, Ending.UNKNOWN: 32, Ending.CUT: 16}
ALL_BANGS = 8
ZERO_IDS = 16
NULL_LOGPROBS = 8
SPACES = {Ending.RUNNING: 400, Ending.STOPPED: 200, Ending.UNKNOWN: 160, Ending.CUT: 96}
NEWLINES = 64

POOR_TOKENS = 192  # last tokens examined for a poor vocabulary
GLUED_LENGTH = 9  # characters of a token on average: of good text it is 4
LETTERS = 12  # different ones in words, at least: bases and digits of a dump are fewer
FEW_TOKENS = 256  # and where there are hardly any words
POOR_WORDS = 4  # different words that are too few among them, in any order
POOR_KINDS = 80  # different words and marks that are enough, whatever their order
ENDED_KINDS = 150  # and once the text has ended, when words written together are taken apart
POOR_SYMBOLS = 3
POOR_PROSE = 0.45  # share of words from which on it is prose
LISTED = 0.4  # share of one separator from which on words are a list, where the text ended on its own
CODES = 0.9  # share of words that begin with a capital from which on they are codes: tags of words, notes, amino acids
# Different words at most, and different pairs of them for each word at least: in good text that is neither verse nor
# structure a word is followed by 1.1 to 2.1 different ones, the rarer the fewer words there are.
DISORDER = ((12, 2), (32, 2.6), (60, 3.3))
# The same for words and marks of any text: of structure and drawings that are in order it is 4.4, 3.7 and 3.1 at most.
NO_PATTERN = ((30, 5), (45, 4.2), (60, 3.6))
GLUED_GRAMS = 0.4  # share of different rows of four letters, where words are written together: of prose it is 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SaladLimits:
    """When text is salad without log probabilities. Tails are the last characters examined.

    Attributes:
        broken: U+FFFD, at least, and their share.
        eastern: ideographs and syllables of Hangul, at least, and rare_share: that in no national standard, which is
            0.06 of classics at most, and 0.4 or more at random.
        accents: different letters with accents and signs of Latin scripts, at least, and accents_share: theirs of all
            characters (quoted in a text about encodings: 48 and 0.19); rising: share of pairs in order, at most.
        reserved: tokens that no text needs in the last reserved_tail characters, or unknown: `<unk>`, at least, and
            their share of the characters, or reserved_alone if there is no prompt.
        noise: characters without a blank, at least, of noise_kinds different ones; noise_most: share of the commonest,
            and noise_letters: of letters and digits, at most. Base85 and uuencode break their lines.
        marks: characters without the blanks, of which marks_letters are letters or digits, at most; marks_bits: of a
            mark, given the one before, at least. Drawings, tables and boards have 0.9 bits at most.
        impossible: neighbours within a word, of scripts that no language writes together. Of 7,300 good texts none has
            one.
        scripts: different ones, with `switches` within words, or `switch_share` per letter.
        neighbours: scripts with at least `script_share` of the words, between which words change.
        twice: different words said twice in a row, and their share of all.
        letters: different letters said twice in a row, and the share of such pairs.
        unmarked: words in a row without a mark, of which the last `unmarked_window` are examined;
        common_share: and of which the ten commonest have at most this share,
        capital_share: or of which at least this share begins with a capital.
        glued_window: or words in a row without a mark, and the share with a capital in the middle.
        drift: words without a mark, at the end and before them; drift_before: share of common words before, at least;
            drift_share: at the end, at most; drift_different: different words there, at least, and drift_derived: words
            derived from others, which lists of things have fewer of.
        drift_grows: first words of the sentence, one of which is a common one.
        closing: closing tags and brackets in a row, at least; cut_tag: characters of one that was cut off, at most.
        small: sentences that begin with a small letter, at least, and their share; and capitals within sentences.
        articles: at least, of which wrong_share cannot stand where they do.
        fragments: words at least, of which the last fragments_window are examined; short: letters of a short one, and
        short_share: the different short ones divided by all words, of good prose 0.28 at most;
        kinds_share: different words divided by all. (Languages of short syllables repeat them.)
        kinds: different words and marks in no order, at least; step_words: share of words of two letters or more.
        pieces: of words, at least, of pieces_kinds kinds at most; pieces_named: share of capitalised ones of three
            letters or more; pieces_glued: share of capitals that follow a letter; pieces_code: share of capitalised
            ones of one length from which on they are a code in good order (amino acids).
        faces: emoji in a row, at least, of faces_kinds kinds at most (in a story of emoji: 25).
        escapes: `\\[`, at most, where brackets are judged.
        brackets: closed ones at least, of which bracket_share were opened by another kind.
    """

    tail: int = 4096
    bytes_tail: int = 512
    broken: int = 16
    broken_share: float = 0.06
    eastern: int = 100
    rare_share: float = 0.2
    accents_tail: int = 1024
    accents: int = 60
    accents_share: float = 0.35
    rising: float = 0.7
    reserved_tail: int = 1024
    reserved: int = 12
    unknown: int = 6
    reserved_share: float = 0.2
    reserved_alone: float = 0.6
    noise: int = 360
    noise_kinds: int = 36
    noise_most: float = 0.06
    noise_letters: float = 0.6
    marks: int = 320
    marks_letters: float = 0.05
    marks_bits: float = 2.4
    impossible: int = 2
    scripts: int = 5
    switches: int = 12
    switch_share: float = 0.04
    neighbours: int = 3
    script_share: float = 0.05
    between: int = 24
    between_share: float = 0.25
    twice_tail: int = 1024
    twice: int = 6
    twice_share: float = 0.1
    letters: int = 10
    letters_share: float = 0.6
    unmarked: int = 80
    unmarked_window: int = 160
    glued_window: int = 40
    glued_share: float = 0.12
    common_share: float = 0.25
    capital_share: float = 0.08
    drift: int = 30
    drift_before: float = 0.1
    drift_share: float = 0.07
    drift_different: float = 0.7
    drift_derived: float = 0.3
    drift_grows: int = 10
    closing: int = 48
    cut_tag: int = 40
    order_tail: int = 2048
    small: int = 8
    small_share: float = 0.6
    articles: int = 7
    wrong_share: float = 0.4
    fragment_tail: int = 2400
    fragments: int = 120
    fragments_window: int = 250
    short: int = 3
    short_share: float = 0.32
    kinds_share: float = 0.65
    kinds: int = 12
    step_words: float = 0.1
    pieces_tail: int = 1024
    pieces: int = 160
    pieces_kinds: int = 16
    pieces_named: float = 0.12
    pieces_glued: float = 0.14
    pieces_code: float = 0.95
    faces: int = 256
    faces_kinds: int = 20
    escapes: int = 8
    bracket_tail: int = 1024
    brackets: int = 16
    bracket_share: float = 0.5


SALAD = SaladLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLimits:
    """When words are in no order. Neighbours in good prose of a known language are bound by 0.20 nats or more.

    Attributes:
        steps: last words, ideographs and marks examined.
        least: of them, at least.
        words: share of words and ideographs among them, at least.
        known: share of a language's commonest words among the words, at least; else foreign_bond holds,
        rows, listed, eastern: unless this share of the steps are new lines or commas, or of the words ideographs.
        han: ideographs among the last han_tail characters, and pairs of them, at least; modern: share of the particles
            of modern Chinese, at least; han_words: share of neighbours that make a word, at most, and han_factor: times
            the share of those farther apart, at most. Good texts have 0.08 and 2.6 times
            or more. han_different: different pairs divided by all; han_kinds: different ideographs divided by all, at
            most: a list of characters names each once.
        different: different pairs of neighbours divided by all, at least: what repeats itself has other rules.
        bond: nats by which neighbours belong together more than words far apart do, at most.
    """

    steps: int = 300
    least: int = 120
    words: float = 0.5
    known: float = 0.15
    han_tail: int = 800
    han: int = 100
    modern: float = 0.04
    han_words: float = 0.14
    han_factor: float = 2
    han_different: float = 0.5
    han_kinds: float = 0.9
    different: float = 0.91
    bond: float = 0.2
    foreign_bond: float = 0.15
    rows: float = 0.03
    listed: float = 0.12
    eastern: float = 0.3


ORDER = OrderLimits()

SALAD_WINDOW = 64  # tokens
SALAD_MEAN = -2.0  # nats per token, over the whole text
SALAD_WORST = -2.75  # over one window

END_IDS = frozenset({151329, 151336, 151338})  # GLM-4: <|endoftext|>, <|user|>, <|observation|>

# What the rules find of answers that no rule was made for (docs/lab/detector.md, "Drawn at random").
MEASURED = {
    "corpus": "recorded answers of real models, drawn at random, the half kept unread",
    "date": "2026-11-29",
    "found": 25,
    "sick": 94,
    "false_alarms": 0,
    "sound": 186,
}
