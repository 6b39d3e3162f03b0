"""What comes back from an OpenAI endpoint: an answer, from a body or from the events of a stream, or a failure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from glm4_deploy.report_model import Timing

# What can go wrong between a request and its answer, each with its own advice.


class FailureKind(StrEnum):
    UNREACHABLE = "unreachable"
    RESET = "reset"
    TLS = "tls"
    HANG = "hang"
    SLOW = "slow"
    TRUNCATED = "truncated"
    REDIRECT = "redirect"
    NOT_OPENAI = "not-openai"
    ENCODING = "encoding"
    TOO_BIG = "too-big"
    SERVER_ERROR = "server-error"


REMEDY = {
    FailureKind.UNREACHABLE: "start the engine, or give its --base-url; `glm4-deploy status` shows what is running",
    FailureKind.TLS: "use http:// if the server has no TLS; set SSL_CERT_FILE for a private certificate authority",
    FailureKind.RESET: "read the engine's log: it died or a proxy cut the connection",
    FailureKind.HANG: "read the engine's log; restart it if its token counter does not move",
    FailureKind.SLOW: "look for other load on the engine; raise --timeout if this machine is slow",
    FailureKind.TRUNCATED: "look for a proxy with a short read timeout; read the engine's log at this moment",
    FailureKind.REDIRECT: "give the final address with --base-url: redirects are not followed, so the key stays here",
    FailureKind.NOT_OPENAI: "another program answers at this address: give the engine's own with --base-url",
    FailureKind.ENCODING: "turn compression off in the proxy in front of the engine",
    FailureKind.TOO_BIG: "another program may answer at this address, or the server ignores max_tokens",
    FailureKind.SERVER_ERROR: "read the engine's log: the cause is above this error",
}


class RequestFailure(Exception):
    """No usable answer arrived. `partial`: the text received so far (untrusted)."""

    def __init__(self, kind: FailureKind, detail: str, *, partial: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.partial = partial

    @property
    def remedy(self) -> str:
        return REMEDY[self.kind]


class Refused(Exception):
    """The server answered with an error status. `message`: its own, shortened."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.param = param

    @property
    def not_offered(self) -> bool:
        """Whether the status means that the server lacks a feature (a 500 is a failure instead)."""
        return self.status in {400, 404, 405, 422, 501}

    @property
    def not_a_number(self) -> bool:
        """Whether it is vLLM's message for a logprob that is NaN or infinite, which JSON cannot express."""
        return "out of range float values" in self.message.lower()


# What vLLM answers once its engine core has died; no request succeeds after that (v1/engine/exceptions.py; the last two
# are those of the V0 engine, vllm/engine/multiprocessing and async_llm_engine.py of 0.9 and 0.10).
_ENGINE_DEATH = re.compile(
    r"EngineCore encountered an issue|EngineDeadError|Engine loop is not running"
    r"|Background loop (?:has errored|is not running)"
)


def reports_death(error: str) -> bool:
    """Whether a server's error message says that its engine has died."""
    return _ENGINE_DEATH.search(error) is not None


# Server-sent events, from raw chunks that may be cut anywhere.

DONE = b"[DONE]"


def sse_events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(seconds, data) of each event, stamped with the arrival of the chunk that completed it.

    Comments and other fields are skipped; several data lines of one event are joined by newlines. An event without its
    closing blank line is not yielded: a truncated stream is recognised by the missing `[DONE]`.
    """
    buffer, searched, carry = bytearray(), 0, b""
    for at, chunk in chunks:
        # A chunk may end between \r and \n: keep the \r for the next one.
        block = carry + chunk
        carry = b"\r" if block.endswith(b"\r") else b""
        buffer += (block[:-1] if carry else block).replace(b"\r\n", b"\n")
        begin = 0
        # Each byte is searched once: an event of megabytes in small chunks takes no longer than its length.
        while (end := buffer.find(b"\n\n", max(searched - 1, begin))) >= 0:
            data = _data(bytes(buffer[begin:end])) if end > begin else None
            begin = searched = end + 2
            if data is not None:
                yield at, data
        del buffer[:begin]
        searched = len(buffer)


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:  # the fast path: nearly every event of every server
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


# One answer, from a JSON body or from the events of a stream, with every irregularity noted.


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as reported by the server; None for one that it leaves out."""

    prompt: int | None
    completion: int | None
    total: int | None
    cached: int | None = None

    @classmethod
    def parse(cls, raw: Any) -> "Usage | None":
        if not isinstance(raw, dict):
            return None
        details = raw.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return cls(
            prompt=_count(raw.get("prompt_tokens")),
            completion=_count(raw.get("completion_tokens")),
            total=_count(raw.get("total_tokens")),
            cached=_count(cached),
        )

    @property
    def adds_up(self) -> bool:
        counts = (self.prompt, self.completion, self.total)
        return None not in counts and self.prompt + self.completion == self.total  # type: ignore[operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One chat completion.

    Attributes:
        logprobs: one per token, None for a null of the server; None as a whole if it sent none.
        oddities: departures from the protocol, each a short phrase; empty for a correct server.
    """

    text: str
    finish_reason: str | None
    timing: Timing
    usage: Usage | None = None
    model: str | None = None
    role: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    tool_calls: tuple[Any, ...] = ()
    oddities: tuple[str, ...] = field(default=())

    @property
    def finite_logprobs(self) -> tuple[float, ...] | None:
        if self.logprobs is None or any(value is None for value in self.logprobs):
            return None
        return tuple(value for value in self.logprobs if value is not None)


MAX_COUNT = 1 << 40  # tokens: a server's number is used as a size only below this


MAX_LOGPROB = 1e6  # vLLM cuts at -9999; a larger one is damage


class Malformed(ValueError):
    """JSON, but not of the types that OpenAI's API has: a server of another kind, or a damaged one."""


def _field(holder: dict[str, Any], key: str, *kinds: type) -> Any:
    """A field of one of these JSON types; None if it is absent or null. Raises Malformed."""
    value = holder.get(key)
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool)):
        return value
    raise Malformed(f"{key} is {_NAMES.get(type(value), 'of another type')}, not {_NAMES[kinds[0]]}")


_NAMES = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


def _items(holder: dict[str, Any], key: str, *kinds: type) -> list[Any] | None:
    """A list whose items are of one of these types; None if it is absent or null. Raises Malformed."""
    items = _field(holder, key, list)
    for item in items or ():
        if not isinstance(item, kinds) or isinstance(item, bool):
            raise Malformed(f"an item of {key} is {_NAMES.get(type(item), 'null')}, not {_NAMES[kinds[0]]}")
    return items  # type: ignore[no-any-return]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT else None


def _logprobs(choice: dict[str, Any]) -> list[float | None] | None:
    """None for a logprob that is null, not finite, or no number."""
    content = _items(_field(choice, "logprobs", dict) or {}, "content", dict)
    return None if content is None else [_finite(entry.get("logprob")) for entry in content]


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_LOGPROB:
        return None
    return float(value)


def from_body(body: dict[str, Any], seconds: float) -> ChatAnswer:
    """The answer in a body that was not streamed.

    Raises:
        Malformed: not a chat completion: no choices, no message, or another type.
    """
    choices = _items(body, "choices", dict)
    if not choices:
        raise Malformed("no choices")
    choice = choices[0]
    message = _field(choice, "message", dict)
    if message is None:
        raise Malformed("no choices[0].message")
    usage = Usage.parse(body.get("usage"))
    ids = _items(choice, "token_ids", int)
    logprobs = _logprobs(choice)
    return ChatAnswer(
        text=_field(message, "content", str) or "",
        finish_reason=_field(choice, "finish_reason", str),
        timing=Timing(total=seconds, tokens=usage.completion if usage else None),
        usage=usage,
        model=_field(body, "model", str),
        role=_field(message, "role", str),
        token_ids=tuple(ids) if ids is not None else None,
        logprobs=tuple(logprobs) if logprobs is not None else None,
        tool_calls=tuple(_items(message, "tool_calls", dict) or ()),
    )


def _join_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a stream: pieces with one index are one call, whose texts are joined (OpenAI's API).

    Raises:
        Malformed: a part of another type.
    """
    empty: dict[str, Any] = {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(_field(piece, "index", int) or 0, empty)
    call["id"] = call["id"] or _field(piece, "id", str)
    function = _field(piece, "function", dict) or {}
    for name in ("name", "arguments"):
        call["function"][name] += _field(function, name, str) or ""


class Assembly:
    """Builds a streamed answer: feed the events in order, then close."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.arrivals: list[float] = []
        self.chars: list[int] = []
        self.length = 0
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.oddities: list[str] = []
        self.finish: str | None = None
        self.role: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.events = 0

    def feed(self, event: dict[str, Any], at: float) -> None:
        """One parsed event that arrived `at` seconds after the request was sent. Raises Malformed."""
        self.events += 1
        if self.usage is not None and event.get("choices"):
            self._odd("content after the usage chunk")
        self.model = _field(event, "model", str) or self.model
        if event.get("usage"):
            self.usage = Usage.parse(event["usage"])
        choices = event.get("choices")
        if not isinstance(choices, list):
            self._odd("an event without a list of choices")
            return
        if choices and isinstance(choices[0], dict):
            self._choice(choices[0], at)

    def _choice(self, choice: dict[str, Any], at: float) -> None:
        delta = _field(choice, "delta", dict) or {}
        role, content = _field(delta, "role", str), _field(delta, "content", str) or ""
        if role and self.role is None:
            self.role = role
            if self.text:
                self._odd("the role came after content")
        ids, logprobs = _items(choice, "token_ids", int), _logprobs(choice)
        calls = _items(delta, "tool_calls", dict)
        if self.finish is not None and (content or ids):
            self._odd("content after finish_reason")
        if content or ids or logprobs or delta.get("reasoning_content") or calls:
            self.arrivals.append(at)
            self.chars.append(self.length + len(content))
        self.text.append(content)
        self.length += len(content)
        self.ids.extend(ids or ())
        self.logprobs.extend(logprobs or ())
        for piece in calls or ():
            _join_call(self.tool_calls, piece)
        finish = _field(choice, "finish_reason", str)
        if finish:
            if self.finish is not None:
                self._odd("finish_reason was sent twice")
            self.finish = finish

    def _odd(self, what: str) -> None:
        if what not in self.oddities:
            self.oddities.append(what)

    def close(self, total: float) -> ChatAnswer:
        """The complete answer; `total` seconds after the request was sent."""
        tokens = self.usage.completion if self.usage else None
        return ChatAnswer(
            text="".join(self.text),
            finish_reason=self.finish,
            timing=Timing(total=total, arrivals=tuple(self.arrivals), chars=tuple(self.chars), tokens=tokens),
            usage=self.usage,
            model=self.model,
            role=self.role,
            token_ids=tuple(self.ids) if self.ids else None,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            tool_calls=tuple(self.tool_calls[index] for index in sorted(self.tool_calls)),
            oddities=tuple(self.oddities),
        )
