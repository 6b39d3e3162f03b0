"""Which near duplicates are loops, given what repeats, how the text ended and what was asked for."""

from collections.abc import Iterable

from glm4_deploy.detect.context import Ending, Request, Shape, is_verse, shape_of
from glm4_deploy.detect.limits import DRIFT, NEAR
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.neardup import Likeness
from glm4_deploy.detect.text import Text


def find_near_duplicate(found: Iterable[Likeness], text: Text, *, ending: Ending, request: Request) -> Finding | None:
    """The first of these that nothing excuses."""
    loops = (item for item in found if _is_loop(item, text, ending) and not request.allows(item.copies))
    return next((_finding(item, text) for item in loops), None)


def _is_loop(item: Likeness, text: Text, ending: Ending) -> bool:
    # A long paragraph whose changes fall anywhere is no template being filled in: it needs fewer copies.
    drifts = item.lag >= DRIFT.unit and item.changes >= DRIFT.changes and item.spread >= DRIFT.spread
    if item.tokens < NEAR.tokens or item.copies < (DRIFT.copies if drifts else NEAR.copies[ending]):
        return False
    sample = text.between(item.start, item.end)
    if shape_of(sample) is not Shape.PROSE or (is_verse(sample) and item.copies < NEAR.verse_copies):
        return False
    if item.novelty and item.numerals >= 0.8:
        # Only numbers change: rows and records do that, and counters have a rule of their own.
        few = item.lag >= NEAR.long_unit and item.novelty <= NEAR.few
        enough = NEAR.text_copies if item.lag >= NEAR.text_unit else NEAR.numeral_copies
        return few and (ending is Ending.CUT or item.copies >= enough)
    if item.novelty <= NEAR.few:
        return True
    if item.lag < NEAR.short_unit or item.copies < (DRIFT.copies if drifts else NEAR.varied_copies):
        return False
    # More changes than that are a template being filled in (a litany, a form letter), unless they come anywhere, or
    # it never ends.
    anywhere = item.novelty <= NEAR.some and item.spread >= NEAR.spread
    return anywhere or (item.novelty <= NEAR.slots and item.copies >= NEAR.slot_copies)


def _finding(item: Likeness, text: Text) -> Finding:
    unit = text.between(item.start, item.end)
    period = max(round((item.end - item.start) / item.copies), 1)
    return degenerate(
        Verdict.NEAR_DUPLICATE,
        f"about the same {period} characters come {item.copies:.1f} times; {item.novelty:.1%} of the words are new",
        confidence=round(min(0.95, 0.6 + 0.03 * item.copies + (NEAR.some - item.novelty)), 2),
        start=item.start,
        unit=unit[:period],
        period=period,
        repeats=item.copies,
    )
