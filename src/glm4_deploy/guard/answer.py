"""One answer while it passes: its texts, each followed by a detector, and how it ends if it is cut."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm4_deploy.detect import LoopFinding, Stream
from glm4_deploy.guard.question import MAX_CHOICES, Api, Question

MAX_TEXTS = 256  # in one answer: choices, each with its content, reasoning and tool calls
# Characters for which a provisional finding (rows, code, symbols, a quotation) must hold to count as final. In good
# answers of the detector's corpora the longest held for 2,432 (docs/lab/guard.md).
HELD = 8192
HEAD = 65536  # bytes: what a cut repeats of a Responses API answer's own description
STEP = 1024  # characters of a whole answer that are read at once: a finding holds in it as long as in a stream
EXTENSION = "glm4_guard"  # the field that a cut, retried or marked answer has


class UnreadableAnswer(Exception):
    """Not what the endpoint is documented to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SickText:
    """A finding in one text of an answer.

    Attributes:
        final: it was found while the text was still coming, and nothing that could follow would have cleared it, or it
            held for HELD characters.
        characters: length of the text when it was found.
    """

    choice: int
    part: str
    finding: LoopFinding
    final: bool
    characters: int

    def wire(self, action: str) -> dict[str, Any]:
        """As the extension field shows it to the client."""
        found = self.finding
        return {
            "action": action,
            "verdict": found.verdict.value,
            "choice": self.choice,
            "part": self.part,
            "characters": self.characters,
            "start": found.start,
            "period": found.period,
            "repeats": found.repeats,
            "why": found.why,
        }


class _Text:
    def __init__(self, prompt: str) -> None:
        self.stream = Stream(prompt=prompt)
        self.length = 0
        self.alarmed_at: int | None = None  # the length at which the finding of now began
        self.sick: SickText | None = None


class Answer:
    """Feed it the parsed events of a stream, or one whole body; then close.

    Memory: that of one `Stream` per text, and the first event.
    """

    def __init__(self, question: Question) -> None:
        self._question = question
        self._texts: dict[tuple[int, str], _Text] = {}
        self._finish: dict[int, str] = {}
        self._head: dict[str, Any] = {}
        self._sequence = 0
        self._found: list[SickText] = []  # by the event that is being read
        self.engine_ended = False  # by vLLM's own check for repetition
        self.pieces = 0  # events: about one per token
        self.characters = 0  # of all texts

    def feed(self, event: dict[str, Any]) -> list[SickText]:
        """The texts that this event has made sick for good.

        Raises:
            UnreadableAnswer: a field of another type, or too many texts.
        """
        try:
            if not self._head:
                self._head = _head(self._question.api, event)
            self._found = []
            if self._question.api is Api.RESPONSES:
                self._read_response(event)
            else:
                for choice in _few(event.get("choices")):
                    self._read_choice(choice)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise UnreadableAnswer(type(error).__name__) from error
        self.pieces += 1
        return self._found

    def close(self) -> list[SickText]:
        """The texts that are sick by the detector's verdict on the whole, and were not reported before."""
        found = []
        for (choice, part), text in self._texts.items():
            if text.sick is None:
                verdict = text.stream.close(self._finish.get(choice))
                if verdict.degenerate:
                    found.append(
                        SickText(choice=choice, part=part, finding=verdict, final=False, characters=text.length)
                    )
        return found

    def hopeless(self) -> bool:
        """Whether every choice that has not ended is sick for good, and there is one."""
        sick = {choice for (choice, _), text in self._texts.items() if text.sick}
        running = [choice for choice in range(self._question.choices) if choice not in self._finish]
        return bool(running) and all(choice in sick for choice in running)

    def _take(self, choice: int, part: str, more: str) -> None:
        """More of one text. part: content, reasoning, or tool 0, 1, …"""
        text = self._texts.get((choice, part))
        if text is None:
            if len(self._texts) >= MAX_TEXTS or not 0 <= choice < MAX_CHOICES:
                raise UnreadableAnswer("too many texts")
            text = self._texts[choice, part] = _Text(self._question.prompt_of(choice))
        for at in range(0, len(more), STEP):
            self._read(text, choice, part, more[at : at + STEP])

    def _read(self, text: _Text, choice: int, part: str, more: str) -> None:
        length = len(more)
        text.length += length
        self.characters += length
        finding = text.stream.feed(more)
        if finding is None:
            text.alarmed_at = None
            return
        if text.alarmed_at is None:
            text.alarmed_at = text.length
        if text.sick is not None or (text.stream.final is None and text.length - text.alarmed_at < HELD):
            return
        text.sick = SickText(choice=choice, part=part, finding=finding, final=True, characters=text.length)
        self._found.append(text.sick)

    # What the three APIs send, streamed or whole.

    def _read_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        body = _message(choice)
        if text := choice.get("text") or body.get("content"):
            self._take(index, "content", text)
        if text := body.get("reasoning_content") or body.get("reasoning"):
            self._take(index, "reasoning", text)
        for part, call in _calls(choice):
            if text := (call.get("function") or {}).get("arguments"):
                self._take(index, part, text)
        if finish := choice.get("finish_reason"):
            self.engine_ended |= finish == "repetition"
            self._finish[index] = "length" if finish == "repetition" else str(finish)

    def _read_response(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if isinstance(event.get("sequence_number"), int):
            self._sequence = event["sequence_number"]
        if isinstance(kind, str):
            if kind.endswith(".delta") and isinstance(event.get("delta"), str) and (part := _part(kind)):
                self._take(0, f"{part} {event.get('output_index', 0):d}", event["delta"])
            elif kind in ("response.completed", "response.incomplete", "response.failed"):
                self._finish[0] = _reason(event.get("response") or {})
            return
        self._finish[0] = _reason(event)
        for at, item in enumerate(event.get("output") or ()):
            for field in ("content", "summary"):
                for part in item.get(field) or ():
                    if part.get("text"):
                        name = "content" if item.get("type") == "message" else "reasoning"
                        self._take(0, f"{name} {at}", part["text"])
            if item.get("arguments"):
                self._take(0, f"tool {at}", item["arguments"])

    # The end of an answer that is cut.

    def closing(self, sick: SickText) -> bytes:
        """The events that end the stream here: a valid final chunk, and the end mark."""
        extension = {EXTENSION: sick.wire("cut")}
        if self._question.api is Api.RESPONSES:
            ended = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
            body = {
                "type": "response.incomplete",
                "sequence_number": self._sequence + 1,
                "response": self._head | ended | extension,
            }
            return f"event: response.incomplete\ndata: {_dumps(body)}\n\n".encode()
        running = [choice for choice in range(self._question.choices) if choice not in self._finish]
        empty: Mapping[str, Any] = {"delta": {}} if self._question.api is Api.CHAT else {"text": ""}
        choices = [{"index": choice, **empty, "logprobs": None, "finish_reason": "stop"} for choice in running]
        return f"data: {_dumps(self._head | {'choices': choices} | extension)}\n\ndata: [DONE]\n\n".encode()

    def again(self, sick: SickText) -> bytes:
        """The event after which another answer begins, in place of all that the stream has sent."""
        return f"data: {_dumps(self._head | {'choices': [], EXTENSION: sick.wire('retried')})}\n\n".encode()


def shortened(api: Api, body: dict[str, Any], sick: Iterable[SickText]) -> bytes:
    """A whole answer without the loops: each text ends after the first copy of what repeats.

    Texts without a known first copy stay as they are. `body` is changed.
    """
    found = list(sick)
    for one in found:
        start, period = one.finding.start, one.finding.period
        if start is not None and period is not None:
            _shorten(api, body, one, start + period)
    body[EXTENSION] = found[0].wire("cut")
    return _dumps(body).encode()


def marked(body: dict[str, Any], sick: SickText) -> bytes:
    """The whole answer to a second try, with what was wrong with the first."""
    return _dumps(body | {EXTENSION: sick.wire("retried")}).encode()


def _shorten(api: Api, body: dict[str, Any], sick: SickText, length: int) -> None:
    part, _, number = sick.part.partition(" ")
    if api is Api.RESPONSES:
        body |= {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
        item = body["output"][int(number)]
        texts = [(text, "text") for field in ("content", "summary") for text in item.get(field) or ()]
        _cut_in([(item, "arguments")] if part == "tool" else texts, length)
        return
    places: list[tuple[dict[str, Any], str]] = []
    for choice in body["choices"]:
        if choice.get("index", 0) == sick.choice:
            choice["finish_reason"] = "stop"
            if part == "tool":
                called = (call.get("function") for name, call in _calls(choice) if name == sick.part)
                places += [(function, "arguments") for function in called if function]
            else:
                said = _message(choice)
                read = [(choice, "text"), (said, "content")]
                if part == "reasoning":
                    read = [(said, "reasoning_content"), (said, "reasoning")]
                places += [(holder, name) for holder, name in read if holder.get(name)][:1]
    _cut_in(places, length)


def _cut_in(places: Iterable[tuple[dict[str, Any], str]], length: int) -> None:
    """Keep the first `length` characters of several texts that were judged as one."""
    for holder, name in places:
        text = holder.get(name)
        if isinstance(text, str):
            holder[name], length = text[:length], max(length - len(text), 0)


def _few(items: Any) -> list[Any]:
    """A list of a length that is soon read: meanwhile no other answer passes."""
    if items and len(items) > MAX_TEXTS:
        raise UnreadableAnswer("too many texts")
    return items or []


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    """What a choice says: streamed or whole."""
    return choice.get("delta") or choice.get("message") or {}


def _calls(choice: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Its tool calls, each with the name of its part."""
    for at, call in enumerate(_few(_message(choice).get("tool_calls"))):
        number = at if "message" in choice else call.get("index", at)
        yield f"tool {number:d}", call


def _part(kind: str) -> str | None:
    if "function_call_arguments" in kind or "mcp_call_arguments" in kind:
        return "tool"
    if "reasoning" in kind:
        return "reasoning"
    return "content" if "output_text" in kind else None


def _reason(response: dict[str, Any]) -> str:
    return "length" if response.get("status") == "incomplete" else "stop"


def _head(api: Api, event: dict[str, Any]) -> dict[str, Any]:
    """What every event of the answer repeats."""
    if api is Api.RESPONSES:
        response = event.get("response")
        if not isinstance(response, dict):
            return {}
        if len(_dumps(response)) <= HEAD:
            return response
        event = response
    names = ("id", "object", "created", "created_at", "model", "system_fingerprint")
    return {name: event[name] for name in names if isinstance(event.get(name), str | int | float)}


_HALF = re.compile(r"[\ud800-\udfff]")


def _dumps(value: Any) -> str:
    """JSON that has an encoding: half a surrogate pair, which is none, is escaped as the engine did."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
