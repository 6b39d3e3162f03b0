"""One answer, assembled from a JSON body or from the events of a stream, with every irregularity noted."""

from dataclasses import dataclass, field
from typing import Any

from glm4_deploy.samples import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as the server states them; None where it leaves one out."""

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
class Answer:
    """What the model said. `logprobs` holds None where the server sent null; it is None when none were sent at all.

    oddities: departures from the protocol, each a short phrase; empty for a faithful server.
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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _logprobs(choice: dict[str, Any]) -> list[float | None] | None:
    block = choice.get("logprobs")
    content = block.get("content") if isinstance(block, dict) else None
    if not isinstance(content, list):
        return None
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    return [value if isinstance(value, int | float) and abs(value) < float("inf") else None for value in values]


def from_body(body: dict[str, Any], seconds: float) -> Answer:
    """The answer in a body that was not streamed.

    Raises:
        KeyError: it is no chat completion (no choices, no message).
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise KeyError("choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise KeyError("choices[0].message")
    usage = Usage.parse(body.get("usage"))
    ids = choice.get("token_ids")
    logprobs = _logprobs(choice)
    return Answer(
        text=_text(message.get("content")),
        finish_reason=choice.get("finish_reason"),
        timing=Timing(total=seconds, tokens=usage.completion if usage else None),
        usage=usage,
        model=body.get("model"),
        role=message.get("role"),
        token_ids=tuple(ids) if isinstance(ids, list) else None,
        logprobs=tuple(logprobs) if logprobs is not None else None,
        tool_calls=tuple(message.get("tool_calls") or ()),
    )


class Assembly:
    """A streamed answer as it comes together: feed the events in order, then close."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.arrivals: list[float] = []
        self.tool_calls: list[Any] = []
        self.oddities: list[str] = []
        self.finish: str | None = None
        self.role: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.events = 0

    def feed(self, event: dict[str, Any], at: float) -> None:
        """One parsed event that arrived `at` seconds after the request was sent."""
        self.events += 1
        if self.usage is not None and event.get("choices"):
            self._odd("content after the usage chunk")
        self.model = event.get("model") or self.model
        if event.get("usage"):
            self.usage = Usage.parse(event["usage"])
        choices = event.get("choices")
        if not isinstance(choices, list):
            self._odd("an event without a list of choices")
            return
        if choices and isinstance(choices[0], dict):
            self._choice(choices[0], at)

    def _choice(self, choice: dict[str, Any], at: float) -> None:
        delta = choice.get("delta") or {}
        role, content = delta.get("role"), _text(delta.get("content"))
        if role and self.role is None:
            self.role = role
            if self.text:
                self._odd("the role came after content")
        ids, logprobs = choice.get("token_ids"), _logprobs(choice)
        if self.finish is not None and (content or ids):
            self._odd("content after finish_reason")
        if content or ids or logprobs or delta.get("reasoning_content") or delta.get("tool_calls"):
            self.arrivals.append(at)
        self.text.append(content)
        self.ids.extend(ids or ())
        self.logprobs.extend(logprobs or ())
        self.tool_calls.extend(delta.get("tool_calls") or ())
        finish = choice.get("finish_reason")
        if finish:
            if self.finish is not None:
                self._odd("finish_reason was sent twice")
            self.finish = finish

    def _odd(self, what: str) -> None:
        if what not in self.oddities:
            self.oddities.append(what)

    def close(self, total: float) -> Answer:
        """The whole answer; `total` seconds after the request was sent."""
        tokens = self.usage.completion if self.usage else None
        return Answer(
            text="".join(self.text),
            finish_reason=self.finish,
            timing=Timing(total=total, arrivals=tuple(self.arrivals), tokens=tokens),
            usage=self.usage,
            model=self.model,
            role=self.role,
            token_ids=tuple(self.ids) if self.ids else None,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            tool_calls=tuple(self.tool_calls),
            oddities=tuple(self.oddities),
        )
