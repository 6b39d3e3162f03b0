"""The detector on a stream: searches every HOP characters, keeps at most WINDOW of them, reports at once."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from glm4_deploy.detect.counting import CountingRun, counting_runs, find_counter, may_be_early
from glm4_deploy.detect.exact import find_loop, find_or_due, is_blank
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, clean, count_of, degenerate
from glm4_deploy.detect.garbage import EngineNumbers, find_poor_vocabulary, find_runaway, is_shell
from glm4_deploy.detect.lines import Lines, find_keyless_rows, find_numbered_copies, find_one_slot, find_repeated_lines
from glm4_deploy.detect.prompt import Ending, Shape, fold, is_row, is_wide, records_of, request_of, shape_of
from glm4_deploy.detect.quoting import Fences, is_quoted, is_unfinished
from glm4_deploy.detect.salad import find_salad
from glm4_deploy.detect.similar import Shingles, find_folded, find_near_duplicate, find_stalled
from glm4_deploy.detect.tail import Tail, may_repeat
from glm4_deploy.detect.thresholds import COUNT_HOPS, HOP, HOT_HOPS, POOR_HOPS, TOKEN_HOPS, TOKENS, VERSE_LINE, WINDOW
from glm4_deploy.detect.tokens import TokenWindow

_BLOCKS = WINDOW // HOP


class Stream:
    """Feed it chunks as they arrive; the verdict does not depend on where the chunks were cut.

    Memory: the last WINDOW (81,920) characters, at most 1.25 × TOKENS (20,480) tokens of them, as many hashes, and 400
    lines.
    """

    def __init__(self, *, prompt: str | None = None) -> None:
        self._prompt = prompt
        self._request = request_of(prompt)
        self._numbers = EngineNumbers()
        self._pending = ""  # the end of the text, shorter than a block
        self._room: float = HOP  # from this many characters on, there is something to search
        self._end = 0  # offset just after the last block
        self._hops = 0  # blocks taken
        # Blocks of HOP characters, newest first, each from its last character; and the letters and digits alone of
        # every TOKEN_HOPS blocks.
        self._reversed_blocks: deque[str] = deque(maxlen=_BLOCKS)
        self._reversed_folded: deque[str] = deque(maxlen=_BLOCKS // TOKEN_HOPS)
        self._untaken = self._entries = 0  # blocks whose tokens were not taken; entries for less than TOKEN_HOPS blocks
        self._counts: list[CountingRun] = []  # those of the last look
        self._counting = False  # one of them is prose
        self._blank = True
        self._tokens = TokenWindow(TOKENS, _BLOCKS // TOKEN_HOPS + 1)
        self._shingles = Shingles()
        self._lines = Lines()
        self._due = math.inf  # offset at which a run becomes a loop if the text continues it
        self._due_blocks = 0  # blocks to search there
        self._fences = Fences()
        self._finding: LoopFinding | None = None  # final: the text cannot recover
        self._alarm: LoopFinding | None = None  # provisional: it ends when what was found does
        self._growth: _LoopGrowth | None = None

    def feed(
        self, chunk: str, *, token_ids: Sequence[int] = (), logprobs: Sequence[float | None] = ()
    ) -> LoopFinding | None:
        """A degenerate finding as soon as there is one, while it holds; until then None.

        A finding in rows, structure or symbols, in a quotation or in a fence of Markdown is provisional, and so is an
        early one at a count: it holds until the text goes on differently. Every other finding holds for good.
        """
        if self._finding is None and (token_ids or logprobs):
            self._finding = self._numbers.feed(token_ids, logprobs)
            self._room = self._room if self._finding is None else 0
        if len(chunk) < self._room:
            self._room -= len(chunk)
            self._pending += chunk  # nothing to search yet
            return self._alarm
        self._take(chunk)
        return self._finding or self._alarm

    @property
    def final(self) -> LoopFinding | None:
        """The finding that holds for good, if there is one: whatever the text says next cannot clear it."""
        return self._finding

    def close(self, finish_reason: str | None = None) -> LoopFinding:
        """The verdict on the complete text, given how it ended."""
        if self._finding is None:
            self._finding = self._conclude(Ending.of(finish_reason)) or clean("no loop and no garbage found")
        elif self._growth is not None:
            self._finding, self._growth = self._growth.finding(), None
        return self._finding

    def _conclude(self, ending: Ending) -> LoopFinding | None:
        finding = self._numbers.close()
        if finding is not None:
            return finding
        end = self._end + len(self._pending)
        if self._blank and is_blank(self._pending):
            return _blank_answer(end)
        if end <= len(self._pending) + HOP and is_shell(self._reversed_tail(1)[::-1] + self._pending):
            return degenerate(LoopVerdict.EMPTY, "the answer is only marks of a template", confidence=0.95, start=0)
        self._take_tokens(self._untaken, self._pending)
        tail = Tail(self._pending[::-1] + self._reversed_tail(_BLOCKS), end)
        unfinished = self._fences.open or is_unfinished(tail) or self._lines.cut_short
        cut = Ending.CUT if unfinished and ending is Ending.UNKNOWN else ending
        return (
            find_loop(tail, ending=ending, request=self._request, unfinished=unfinished)
            or self._search_tokens(_BLOCKS, tail, cut)
            or self._find_lines(ending)
            or find_numbered_copies(tail, request=self._request)
            or (find_keyless_rows(tail, request=self._request) if cut is Ending.CUT else None)
            or (find_one_slot(tail, request=self._request) if ending is Ending.CUT else None)
            or (find_stalled(self._tokens, tail, request=self._request) if ending is Ending.CUT else None)
            or find_runaway(tail, ending=ending, prompt=self._prompt, passed_end=self._numbers.passed_end)
            or self._numbers.salad()
            or find_salad(tail, self._request, ending=ending)
        )

    def _take(self, chunk: str) -> None:
        text, at = self._pending + chunk, 0
        while self._finding is None:
            block = text[at : at + HOP]
            while self._finding is None and self._due <= self._end + len(block):
                self._take_due(block)
            if self._finding is not None or len(block) < HOP:
                break
            self._take_block(block)
            at += HOP
        if self._finding is None:
            self._pending = text[at:]
            self._room = min(HOP, self._due - self._end) - len(self._pending)
            return
        self._pending, self._room = "", 0
        if self._growth is not None:
            self._growth.take(text[at:], self._end)
            self._end += len(text) - at

    def _take_due(self, block: str) -> None:
        """Search at the point within a block where a run was due to become a loop."""
        length, self._due = int(self._due) - self._end, math.inf
        tail = Tail(block[:length][::-1] + self._reversed_tail(self._due_blocks), self._end + length)
        due = self._find_running_loop(tail)
        self._due = due if self._growth is None else math.inf

    def _take_block(self, block: str) -> None:
        self._reversed_blocks.appendleft(block[::-1])
        self._fences.feed(block)
        if self._growth is not None and not self._growth.take(block, self._end):
            self._alarm = self._growth = None
        self._end += HOP
        self._hops += 1
        self._untaken += 1
        self._blank = self._blank and is_blank(block)
        # Search 8 times the largest power of two that divides the count: every scale once per eighth of its length.
        hops = self._hops & -self._hops
        tail = Tail(self._reversed_tail(8 * hops), self._end)
        wide = is_wide(block)
        if self._growth is None:
            due = self._find_running_loop(tail)
            if due < min(self._due, self._end + hops * HOP):
                self._due, self._due_blocks = due, 9 * hops
            elif wide and self._due == math.inf:
                self._due, self._due_blocks = self._end + HOP // 2, 9  # 64 ideographs are many tokens
        whole = self._hops % TOKEN_HOPS == 0
        hot = self._counting or (self._hops % HOT_HOPS == 0 and (self._shingles.hot or wide))
        if self._finding is None and (whole or hot):
            self._take_tokens(self._untaken)
            if whole:
                self._merge()
            elif self._counting and hops < COUNT_HOPS:
                hops, tail = COUNT_HOPS, Tail(self._reversed_tail(8 * COUNT_HOPS), self._end)
            if self._growth is None:
                self._report(self._search_tokens(8 * hops, tail, Ending.RUNNING), tail)
                if self._finding is None and self._alarm is None and self._counts:
                    early = find_counter(self._counts, ending=Ending.RUNNING, request=self._request, early=True)
                    self._report(early, tail, provisional=True)
            if self._finding is None and self._alarm is None:
                self._report(self._find_lines(Ending.RUNNING), tail, provisional=True)

    def _merge(self) -> None:
        """Keep one entry for every TOKEN_HOPS blocks, however many there were."""
        if self._entries > 1:
            self._tokens.merge(self._entries)
            merged = "".join(self._reversed_folded.popleft() for _ in range(self._entries))
            self._reversed_folded.appendleft(merged)
        self._entries = 0

    def _take_tokens(self, blocks: int, last: str | None = None) -> None:
        """Pass on the last `blocks` blocks; `last` is what follows them where the text has ended."""
        text, offset = self._reversed_tail(blocks)[::-1], self._end - blocks * HOP
        if last is None:
            self._tokens.feed(text, offset)
        else:
            text += last
            self._tokens.finish(text, offset)
        self._lines.feed(text, offset + len(text), last=last is not None)
        self._reversed_folded.appendleft(fold(text)[::-1])
        self._shingles.feed(self._tokens)
        self._untaken = 0
        self._entries += 1

    def _find_running_loop(self, tail: Tail) -> float:
        """Search for an exact loop. Returns the offset at which one is due if the text goes on as it does."""
        last = tail.reversed[0]
        if last.isprintable() and last != " " and not may_repeat(tail.reversed):
            return math.inf  # nearly always, and it costs one search in C
        finding, due = find_or_due(tail, ending=Ending.RUNNING, request=self._request)
        if finding is not None and finding.start == tail.begin:
            # It fills what was searched: search all that is kept for where it begins.
            tail = Tail(tail.reversed[: tail.end - self._end] + self._reversed_tail(_BLOCKS), tail.end)
            finding = self._find_loop(tail, Ending.RUNNING) or finding
        if finding is not None:  # what the tokens showed is not for this search to take back
            self._report(finding, tail)
        return due

    def _report(self, finding: LoopFinding | None, tail: Tail, *, provisional: bool = False) -> None:
        """Keep a finding, for good or for as long as what it found goes on."""
        if finding is None:
            counted = self._alarm is not None and self._alarm.verdict is LoopVerdict.COUNTER_LOOP
            if self._growth is None and not self._fences.open and (counted or not self._lines.stalled):
                self._alarm = None
            return
        exact = finding.verdict in (LoopVerdict.EXACT_LOOP, LoopVerdict.NAN_COLLAPSE)
        kept = Tail(self._reversed_tail(_BLOCKS), self._end)
        quoted = self._fences.open or (finding.start is not None and is_quoted(kept, finding.start))
        if exact:
            rows = is_row(finding.unit) or shape_of(finding.unit) is not Shape.PROSE
        else:
            short = (finding.period or 0) < VERSE_LINE
            near = finding.verdict is LoopVerdict.NEAR_DUPLICATE and "\n" in finding.unit
            rows = near and (short or bool(records_of(kept.between(finding.start or 0, kept.end))))
        if provisional or quoted or rows:
            self._alarm = finding
        else:
            self._finding = finding
        if exact:
            self._growth = _LoopGrowth(finding, tail)

    def _reversed_tail(self, blocks: int) -> str:
        return "".join(islice(self._reversed_blocks, blocks))

    def _find_loop(self, tail: Tail, ending: Ending) -> LoopFinding | None:
        return find_loop(tail, ending=ending, request=self._request)

    def _find_lines(self, ending: Ending) -> LoopFinding | None:
        return find_repeated_lines(self._lines, self._end, ending=ending, request=self._request)

    def _search_tokens(self, blocks: int, tail: Tail, ending: Ending) -> LoopFinding | None:
        """Search for counters, a poor vocabulary and near duplicates."""
        ended, request = ending is not Ending.RUNNING, self._request
        token_blocks = blocks // TOKEN_HOPS + 1
        masks = self._tokens.reversed_masks(token_blocks)
        self._counts = list(counting_runs(self._tokens, masks, tail, ended=ended))
        self._counting = any(map(may_be_early, self._counts))
        finding = find_counter(self._counts, ending=ending, request=request)
        if finding is not None:
            return finding
        folded = "".join(islice(self._reversed_folded, token_blocks))
        finding = find_folded(folded, tail, ending=ending, request=request)
        due = ended or self._hops % POOR_HOPS == 0
        if finding is None and due and not request.repeat:
            finding = find_poor_vocabulary(self._tokens, tail, ending=ending, request=request)
        if finding is None and (repetitions := self._shingles.repetitions(self._tokens, ended=ended)):
            kept = tail if ended else Tail(self._reversed_tail(_BLOCKS), tail.end)
            finding = find_near_duplicate(repetitions, kept, ending=ending, request=request)
            tail = kept
        # An exact loop of a long unit may be near, and not due yet: name it by what it is.
        return finding and (self._find_loop(tail, ending) or finding)


class _LoopGrowth:
    """Counts how far an exact loop continues after it was found; keeps one copy of its unit and nothing else."""

    def __init__(self, finding: LoopFinding, tail: Tail) -> None:
        self._finding = finding
        self._unit = tail.reversed[: finding.period][::-1]
        self._known_to = tail.end
        self._more = 0
        self._over = not self._unit or finding.repeats is None

    def take(self, chunk: str, offset: int) -> bool:
        """Take the text that begins at `offset`; what is known of it is skipped. Returns whether the loop goes on."""
        chunk = chunk[max(self._known_to - offset, 0) :]
        if self._over or not chunk:
            return not self._over
        period, size = len(self._unit), len(chunk)
        phase = self._more % period
        expected = (self._unit * ((phase + size) // period + 1))[phase : phase + size]
        if chunk == expected:
            self._more += size
            return True
        self._over = True
        self._more += next(at for at, (got, want) in enumerate(zip(chunk, expected, strict=True)) if got != want)
        return False

    def finding(self) -> LoopFinding:
        """The finding with all copies counted."""
        finding = self._finding
        if finding.repeats is None or not self._more:
            return finding
        repeats = finding.repeats + self._more / len(self._unit)
        why = f"{finding.why}; {count_of(repeats)} in all"
        return replace(finding, repeats=round(repeats, 2), why=why)


def _blank_answer(length: int) -> LoopFinding:
    if not length:
        return degenerate(LoopVerdict.EMPTY, "the answer is empty", confidence=1.0, start=0)
    return degenerate(
        LoopVerdict.WHITESPACE,
        f"the answer is only whitespace ({length} characters)",
        confidence=1.0,
        start=0,
        period=1,
    )
