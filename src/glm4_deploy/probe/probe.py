"""What checks work with: the probe of one server, questions with known answers, and long prompts."""

import asyncio
import json
import re
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from glm4_deploy.catalog.rows import load_catalog
from glm4_deploy.detect import scan
from glm4_deploy.fingerprint.model import Arithmetic, Fingerprint
from glm4_deploy.probe.answers import ChatAnswer, Refused, RequestFailure
from glm4_deploy.probe.client import Client, ProbeTarget
from glm4_deploy.probe.endpoints import Metrics, parse_metrics
from glm4_deploy.probe.limits import Slo
from glm4_deploy.report_model import AnswerSample, Suite
from glm4_deploy.text import bound, quote

if TYPE_CHECKING:
    from glm4_deploy.probe.questions import UserQuestion

# QuestionFile with known answers (catalog/canaries.yaml), and how an answer is judged.


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPrompt:
    """One question. At most one of contains, count_to and json_schema is set; none of them for a free text."""

    id: str
    family: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    contains: tuple[str, ...] = ()
    count_to: int | None = None
    json_schema: dict[str, Any] | None = None

    @property
    def prompt(self) -> str:
        """The chat as one text, for reports and for the detector."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    @property
    def expected(self) -> str:
        if self.contains:
            return " or ".join(self.contains)
        if self.count_to:
            return f"1 to {self.count_to} in order"
        return "JSON that obeys the schema" if self.json_schema else "a text without a loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A fixed text for perplexity."""

    id: str
    text: str


@cache
def canaries() -> tuple[CanaryPrompt, ...]:
    return tuple(_canary(row) for row in load_catalog("canaries")["canaries"])


@cache
def passages() -> tuple[Passage, ...]:
    return tuple(Passage(id=row["id"], text=row["text"]) for row in load_catalog("canaries")["passages"])


def family(name: str) -> tuple[CanaryPrompt, ...]:
    return tuple(canary for canary in canaries() if canary.family == name)


def named(name: str) -> CanaryPrompt:
    return next(canary for canary in canaries() if canary.id == name)


def _canary(row: dict[str, Any]) -> CanaryPrompt:
    expect = row["expect"]
    return CanaryPrompt(
        id=row["id"],
        family=row["family"],
        messages=tuple(row["messages"]),
        max_tokens=row["max_tokens"],
        contains=tuple(expect.get("contains", ())),
        count_to=expect.get("count_to"),
        json_schema=expect.get("json_schema"),
    )


def answer_fault(canary: CanaryPrompt, text: str) -> str | None:
    """What is wrong with an answer, as a short phrase with the value seen; None if it is right.

    Loops are not judged here: that is the detector's task.
    """
    if canary.contains:
        return _fault_contains(canary.contains, text)
    if canary.count_to is not None:
        return _fault_count(canary.count_to, text)
    if canary.json_schema is not None:
        return json_fault(canary.json_schema, text)
    return None if text.strip() else "an empty answer"


def _fault_contains(wanted: tuple[str, ...], text: str) -> str | None:
    folded = text.casefold()
    for want in wanted:
        # A number must stand alone: 1442 is wrong for 12 * 12, although it contains 144.
        pattern = rf"(?<![\d.,]){re.escape(want)}(?!\d|[.,]\d)" if want.isdigit() else re.escape(want.casefold())
        if re.search(pattern, folded):
            return None
    return f"{quote(text)} instead of {' or '.join(wanted)}"


def _fault_count(last: int, text: str) -> str | None:
    numbers = [int(word[:9]) for word in re.findall(r"\d+", text)]
    for position, number in enumerate(numbers, start=1):
        if number != position:
            before = f"after {position - 1}" if position > 1 else "at the start"
            return f"{number} {before}" if position <= last else f"went on past {last} with {number}"
    if len(numbers) < last:
        return f"stopped at {len(numbers)} of {last}"
    return None if len(numbers) == last else f"went on to {len(numbers)}, past {last}"


def json_fault(schema: dict[str, Any], text: str) -> str | None:
    """As `answer_fault`, for an answer that must be one JSON value obeying a schema (JSON Schema 2020-12)."""
    from jsonschema import Draft202012Validator

    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON ({str(error)[:60]}): {quote(text)}"
    errors = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda error: list(error.absolute_path))
    return f"JSON that breaks the schema: {errors[0].message[:80]}" if errors else None


# The probe: the client, what is known of the server so far, and one way to ask a question.

CHAT = "/v1/chat/completions"
# Fields that only some servers support. vLLM returns token ids and raw logprobs; others ignore or refuse the fields.
EXTRAS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
SLOWEST = 240  # tokens per timeout_s: by default an answer may be as slow as two tokens per second
SAMPLED: Mapping[str, Any] = {"temperature": 0.7, "top_p": 0.95}
GREEDY: Mapping[str, Any] = {"temperature": 0}


@dataclass(slots=True, kw_only=True)
class Served:
    """What the server has reported about itself; None: not asked yet, or not reported.

    Attributes:
        path: of the model, as the engine sees it.
        started: start of the engine's process, in epoch seconds.
        extras: False once the server has refused EXTRAS.
    """

    model: str | None = None
    max_model_len: int | None = None
    version: str | None = None
    owned_by: str | None = None
    path: str | None = None
    started: float | None = None
    extras: bool = True

    @property
    def is_vllm(self) -> bool:
        return self.version is not None or self.owned_by == "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of a run for individual checks.

    Attributes:
        baseline: perplexity by passage id.
        questions: the user's own.
        fingerprint: the right log probabilities of the checkpoint that should be served.
        arithmetic: what the engine computes in, as its log says.
    """

    slo: Slo | None = None
    baseline: Mapping[str, float] | None = None
    questions: "tuple[UserQuestion, ...]" = ()
    fingerprint: Fingerprint | None = None
    arithmetic: Arithmetic | None = None


@dataclass(slots=True, kw_only=True)
class Probe:
    """Passed to each check in turn.

    Attributes:
        samples: every answer so far, with the detector's finding.
        perplexity: measured so far, by passage id: the content of a new baseline.
        check: name of the running check.
    """

    target: ProbeTarget
    client: Client
    suite: Suite
    options: Options = field(default_factory=Options)
    served: Served = field(default_factory=Served)
    samples: list[AnswerSample] = field(default_factory=list)
    perplexity: dict[str, float] = field(default_factory=dict)
    check: str = ""

    async def ask(
        self,
        messages: Iterable[Mapping[str, Any]],
        max_tokens: int,
        *,
        stream: bool = True,
        extras: bool = False,
        limit_s: float | None = None,
        prompt_tokens: int | None = None,
        **fields: Any,
    ) -> ChatAnswer:
        """One chat completion, at temperature 0 unless `fields` says otherwise.

        Args:
            max_tokens: reduced so that prompt and answer fit the model's context.
            extras: also request logprobs and token ids, until the server refuses them once.
            prompt_tokens: size of the prompt, if known; else its bytes are the bound (a token is at least a byte).
        """
        messages = list(messages)
        body = {"model": self.served.model, "messages": messages, **GREEDY, **fields}
        body["max_tokens"] = self.fit(messages, max_tokens, prompt_tokens)
        send = self.client.ask_stream if stream else self.client.ask_whole
        limit_s = limit_s or self.target.timeout_s * (1 + max_tokens / SLOWEST)
        if not (extras and self.served.extras):
            return await send(CHAT, body, limit_s=limit_s)
        try:
            return await send(CHAT, {**body, **EXTRAS}, limit_s=limit_s)
        except Refused as refused:
            if refused.not_a_number or not refused.not_offered:
                raise
        answer = await send(CHAT, body, limit_s=limit_s)
        self.served.extras = False  # only now: the request itself is fine, so the refusal was about the extras
        return answer

    async def ask_canary(self, canary: CanaryPrompt, **fields: Any) -> ChatAnswer:
        """Ask a canary and keep the sample, with the detector's finding."""
        answer = await self.ask(canary.messages, canary.max_tokens, **fields)
        self.keep(canary.prompt, answer)
        return answer

    def fit(self, messages: Iterable[Mapping[str, Any]], max_tokens: int, prompt_tokens: int | None = None) -> int:
        if self.served.max_model_len is None:
            return max_tokens
        template = 8  # tokens per message for role markers and the like
        prompt = prompt_tokens or sum(len(message["content"].encode()) + template for message in messages) + template
        return max(1, min(max_tokens, self.served.max_model_len - prompt))

    def keep(self, prompt: str, answer: ChatAnswer) -> AnswerSample:
        """Judge an answer for loops and keep it for the report."""
        finding = scan(
            answer.text,
            prompt=prompt,
            finish_reason=answer.finish_reason,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
        )
        sample = AnswerSample(
            check=self.check,
            prompt=bound(prompt),
            answer=bound(answer.text),
            finish_reason=answer.finish_reason,
            finding=finding,
            timing=answer.timing,
        )
        self.samples.append(sample)
        return sample

    async def metrics(self) -> Metrics | None:
        """GET /metrics; None if the server has none."""
        try:
            reply = await self.client.get("/metrics")
        except RequestFailure:
            return None
        return parse_metrics(reply.text) if reply.status == 200 and "# TYPE" in reply.text else None

    @property
    def room(self) -> int | None:
        """Context length in tokens, as reported or as configured."""
        return self.served.max_model_len

    @property
    def nonce(self) -> str:
        """A word that no earlier prompt contained, so that no prefix cache has it."""
        return f"{time.time_ns():x}"


# Long prompts that contain no loop: a harbour log in which every line is different.

_WIND = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_SKY = ("fog until noon", "clear sky", "low cloud", "hail at dusk", "thin rain", "a red dawn", "stars all night")
_SHIP = (
    "Aurora",
    "Marlin",
    "Petrel",
    "Saturn",
    "Juniper",
    "Kestrel",
    "Cormorant",
    "Harvest",
    "Mistral",
    "Osprey",
    "Vega",
)
_LOAD = (
    "timber",
    "salt",
    "wheat",
    "iron",
    "wool",
    "letters",
    "lamp oil",
    "cider",
    "slate",
    "rope",
    "apples",
    "tin",
    "tea",
)


def _filler_line(day: int) -> str:
    """Days 0 to 8007 are all different (8, 7, 11 and 13 share no factor)."""
    return (
        f"Day {day}: wind from the {_WIND[day % 8]}, {_SKY[day % 7]}. "
        f"The {_SHIP[day % 11]} passed with {_LOAD[day % 13]}."
    )


def filler_lines(first: int, count: int) -> list[str]:
    return [_filler_line(first + number) for number in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCost:
    """Tokens of filler lines on this server, from two measurements: prompt tokens = fixed + per_line * lines."""

    fixed: float
    per_line: float

    def lines(self, tokens: int) -> int:
        """The number of lines in a prompt of about this many tokens."""
        return max(0, int((tokens - self.fixed) / self.per_line))


async def measure_line_cost(probe: Probe) -> LineCost | None:
    """Ask for the prompt tokens of a short and a longer prompt; None if the server does not count them."""
    counts = []
    for lines in (2, 12):
        messages = [{"role": "user", "content": "\n".join(filler_lines(100, lines))}]
        answer = await probe.ask(messages, 1, stream=False, prompt_tokens=1)
        counts.append(answer.usage.prompt if answer.usage else None)
    short, long = counts
    if short is None or long is None or long <= short:
        return None
    per_line = (long - short) / 10
    return LineCost(fixed=max(0.0, short - 2 * per_line), per_line=per_line)


# Helpers of checks.

T = TypeVar("T")


async def together(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run jobs concurrently; their results in order. If one raises, the others are cancelled first."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def milliseconds(seconds: float | None) -> str:
    """For people: `12.3 ms`, `2270 ms`, or `-` for None."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
