"""Reads an answer as it passes: what is found in it, where it is cut, and how it is counted."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from aiohttp.web import StreamResponse

from glm4_deploy.guard.answer import Answer, SickText, UnreadableAnswer
from glm4_deploy.guard.events import Events, EventTooLong
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Question, read_json
from glm4_deploy.host.memory import read_memory
from glm4_deploy.host.system import GIB

MAX_BODY = 2 << 20  # bytes of a whole answer that is judged; a longer one passes unjudged
BATCH = 4096  # bytes of one answer that are judged together: some 16 events of vLLM
BACKLOG = 64  # batches that may wait; with more, reading waits for judging
EVENT_STREAM = "text/event-stream"
END_MARK = b"data: [DONE]\n\n"
JSON = "application/json"


class Mode(StrEnum):
    """What happens to an answer that loops."""

    OFF = "off"
    OBSERVE = "observe"
    CUT = "cut"
    RETRY = "retry"


class Room:
    """What is left of a number of characters that all answers share."""

    def __init__(self, left: int) -> None:
        self._left = left

    @contextmanager
    def taken(self) -> Iterator[Callable[[int], None]]:
        """A function that takes a number of characters, to be given back at the end of the block.

        It raises NoRoom if fewer are left.
        """
        total = 0

        def take(number: int) -> None:
            nonlocal total
            if number > self._left:
                raise NoRoom
            total += number
            self._left -= number

        try:
            yield take
        finally:
            self._left += total


class NoRoom(Exception):
    """The answers that are judged have too many characters."""


LOOK_S = 1.0  # between two looks at the host's memory
ENOUGH = 1.1  # of what is to stay available: from there on new questions are taken again at once
QUIET_S = 30.0  # above the level, and they are taken again too: a host may never have a tenth more


class Reserve:
    """Whether the host is short of memory, so that new questions are to wait. What cannot be read is not a shortage.

    Attributes:
        short: as of the last look.
        left: bytes that were available then; None if that is not known.
    """

    def __init__(self, gib: float) -> None:
        """gib: what is to stay available; 0: it is never short."""
        self._floor = gib * GIB
        self._at = self._below_at = float("-inf")
        self.short = False
        self.left: int | None = None

    def look(self, at: float) -> bool:
        """Whether it is short, after another look if the last one is LOOK_S ago. at: monotonic seconds."""
        if self._floor and at - self._at >= LOOK_S:
            self._at, self.left = at, read_memory().available
            below = self.left is not None and self.left < self._floor
            self._below_at = at if below else self._below_at
            recent = self.left is not None and self.left < self._floor * ENOUGH and at - self._below_at < QUIET_S
            self.short = below or (self.short and recent)
        return self.short


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where in the chunk an answer ends, and what follows: `closing`, or `again` and another answer."""

    end: int
    closing: bytes
    again: bytes


class Reader(Protocol):
    """Reads an answer as it passes. complete: its end mark was there, so nobody has broken it off."""

    complete: bool

    def feed(self, chunk: bytes) -> Cut | None: ...
    def close(self) -> None: ...
    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What it takes to judge one answer.

    Attributes:
        taken: what is given back once it is judged.
        again_in_stream: a second answer may follow what the client has of the first.
    """

    ledger: Ledger
    question: Question
    mode: Mode
    room: Callable[[int], None]
    taken: ExitStack = field(default_factory=ExitStack)
    again_in_stream: bool = False

    def cannot_judge(self, status: int, answer: StreamResponse) -> str | None:
        """Why not; None if it can be judged."""
        if status != 200:
            return "status"
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            return "encoding"
        return None if answer.content_type in (EVENT_STREAM, JSON) else "type"

    def events(self, *, second: bool = False) -> "EventReader":
        return EventReader(self, second=second)

    def body(self) -> "BodyReader":
        return BodyReader(self)


class EventReader:
    """Reads an answer that is a stream of events. second: it follows one that looped."""

    def __init__(self, judging: Judging, *, second: bool = False) -> None:
        self._ledger, self._question = judging.ledger, judging.question
        self._cuts = judging.mode in (Mode.CUT, Mode.RETRY)
        self._retries = judging.mode is Mode.RETRY and not second  # `was_cut` counts a cut
        self._second = second
        self._events = Events()
        self._answer = Answer(judging.question)
        self._room, self._taken = judging.room, 0
        self._reading = True
        self._finals: list[SickText] = []
        self.complete = False

    def feed(self, chunk: bytes) -> Cut | None:
        self.complete = chunk.endswith(END_MARK)
        if not self._reading:
            return None
        try:
            for end, data in self._events.feed(chunk):
                if data == b"[DONE]":
                    continue
                event = read_json(data)
                if isinstance(event, dict) and event.get("error"):
                    self._give_up("error")
                    return None
                found = self._answer.feed(event)
                self._room(self._answer.characters - self._taken)
                self._taken = self._answer.characters
                self._finals += found
                if self._finals and (cut := self._found(found, end)):
                    return cut
        except (ValueError, TypeError, RecursionError, UnreadableAnswer, EventTooLong):
            self._give_up("unreadable")
        except NoRoom:
            self._give_up("too many")
        except Exception as error:  # noqa: BLE001 (a fault in judging must not end an answer)
            self._ledger.fault(error)
            self._give_up("fault")
        return None

    def _found(self, found: list[SickText], end: int) -> Cut | None:
        cut = self._cuts and self._answer.hopeless()
        for sick in found:
            self._ledger.finding(self._question, sick, "cut" if cut else "seen")
        if not cut:
            return None
        self._reading = False
        if not self._retries:
            self.was_cut()
        sick = self._finals[-1]
        return Cut(end=end, closing=self._answer.closing(sick), again=self._answer.again(sick))

    def was_cut(self) -> None:
        """The answer ends where `feed` said, and no other follows."""
        self._ledger.answer(self._question, "cut")
        if self._question.max_tokens:
            self._ledger.tokens_saved.inc(max(self._question.max_tokens - self._answer.pieces, 0))

    def close(self) -> None:
        """The answer has ended."""
        if self._reading:
            try:
                late = self._answer.close()
            except Exception as error:  # noqa: BLE001 (as above)
                self._ledger.fault(error)
                self._give_up("fault")
                return
            self._reading = False
            for sick in late:
                self._ledger.finding(self._question, sick, "seen")
            sound = "retried" if self._second else "sound"
            outcome = "sick" if late or self._finals else sound
            self._ledger.answer(self._question, outcome, engine_ended=self._answer.engine_ended)

    def leave(self) -> None:
        """It was broken off, by the engine or by the client."""
        self._give_up("broken off")

    def _give_up(self, why: str) -> None:
        if self._reading:
            self._reading = False
            self._answer = Answer(self._question)  # frees what it held
            if self._finals or self._second:
                self._ledger.answer(self._question, "sick")
            else:
                self._ledger.unjudged(why)


class Backlog:
    """What remains to be judged while tokens pass: batches, one after each round of the event loop, and verdicts."""

    def __init__(self) -> None:
        self._batches: deque[Callable[[], None]] = deque()
        self._verdicts: set[asyncio.Task[None]] = set()
        # A verdict on a long text takes some milliseconds. One thread, so that of many answers that end together one
        # at a time takes turns with the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verdict")

    def put(self, judge: Callable[[], None]) -> None:
        self._batches.append(judge)
        if len(self._batches) == 1:
            asyncio.get_running_loop().call_soon(self._next)
        elif len(self._batches) > BACKLOG:
            self._batches.popleft()()

    def _next(self) -> None:
        try:
            self._batches.popleft()()
        finally:
            if self._batches:
                asyncio.get_running_loop().call_soon(self._next)

    def conclude(self, reader: Reader, taken: ExitStack) -> None:
        """Judge a complete answer as a whole, then give back what it has taken."""
        task = asyncio.get_running_loop().create_task(self._conclude(reader, taken))
        self._verdicts.add(task)
        task.add_done_callback(self._verdicts.discard)

    async def _conclude(self, reader: Reader, taken: ExitStack) -> None:
        with taken:
            if isinstance(reader, DeferredReader):
                await reader.judge_rest()
            await asyncio.get_running_loop().run_in_executor(self._thread, reader.close)

    async def ended(self) -> None:
        """Until the last verdict is there."""
        await asyncio.gather(*self._verdicts, return_exceptions=True)
        self._thread.shutdown()


class DeferredReader:
    """Judges a stream that is not cut: in batches, after they were passed on."""

    def __init__(self, reader: EventReader, backlog: Backlog) -> None:
        self._reader, self._backlog = reader, backlog
        self._held = bytearray()
        self._left = False
        self.complete = False

    def feed(self, chunk: bytes) -> None:
        self.complete = chunk.endswith(END_MARK)
        self._held += chunk
        if len(self._held) >= BATCH:
            self._put()

    async def judge_rest(self) -> None:
        """Judge what waits, before `close`."""
        judged = asyncio.Event()
        self._put()
        self._backlog.put(judged.set)
        await judged.wait()

    def close(self) -> None:
        self._reader.close()

    def leave(self) -> None:
        """It was broken off; what waits is not judged."""
        self._left = True
        self._reader.leave()

    def _put(self) -> None:
        batch, self._held = bytes(self._held), bytearray()
        self._backlog.put(lambda: self._judge(batch))

    def _judge(self, batch: bytes) -> None:
        if not self._left:
            self._reader.feed(batch)


class BodyReader:
    """Reads an answer that is one JSON object. parsed: {} until `finals` or `close` has read it."""

    def __init__(self, judging: Judging) -> None:
        self._ledger, self._question = judging.ledger, judging.question
        self._raw = bytearray()
        self._room = judging.room
        self._answer = Answer(judging.question)
        self._finals: list[SickText] | None = None
        self._why = ""
        self.complete = False
        self.parsed: dict[str, Any] = {}

    def feed(self, chunk: bytes) -> None:
        if self._why or len(self._raw) > MAX_BODY:
            return
        self._raw += chunk
        try:
            self._room(len(chunk))
        except NoRoom:
            self._why = "too many"
            self._raw.clear()

    def finals(self) -> list[SickText]:
        """What is sick for good."""
        if self._finals is None:
            self._finals = []
            try:
                if len(self._raw) > MAX_BODY or self._why:
                    raise UnreadableAnswer
                parsed = json.loads(self._raw)
                self._finals = self._answer.feed(parsed)
                self.parsed = parsed
            except (ValueError, TypeError, RecursionError, UnreadableAnswer):
                self._why = self._why or "unreadable"
            except Exception as error:  # noqa: BLE001 (a fault in judging must not end an answer)
                self._ledger.fault(error)
                self._why = "fault"
            self._raw.clear()
        return self._finals

    def close(self, action: str = "seen") -> None:
        """The answer is complete."""
        finals = self.finals()
        late: list[SickText] = []
        if not self._why:
            try:
                late = self._answer.close()
            except Exception as error:  # noqa: BLE001 (as above)
                self._ledger.fault(error)
                self._why = "" if finals else "fault"
        if self._why:
            self._ledger.unjudged(self._why)
            return
        for sick in finals:
            self._ledger.finding(self._question, sick, action)
        for sick in late:
            self._ledger.finding(self._question, sick, "seen")
        sound = "sick" if finals or late else "sound"
        outcome = action if action != "seen" else sound
        self._ledger.answer(self._question, outcome, engine_ended=self._answer.engine_ended)

    def leave(self) -> None:
        self._ledger.unjudged("broken off")
