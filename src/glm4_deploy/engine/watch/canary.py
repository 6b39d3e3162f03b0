"""A small generation on a schedule: sums with known answers, and free texts for the detector; within a budget."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from glm4_deploy.detect import scan
from glm4_deploy.engine.watch.judge import Canary, Said
from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import Canary as Question
from glm4_deploy.probe.canaries import family, fault, named
from glm4_deploy.probe.client import Client
from glm4_deploy.probe.probe import CHAT, EXTRAS, GREEDY, SAMPLED
from glm4_deploy.probe.trouble import Kind, Refused, Trouble

CONFIRM_S = 15.0  # after a sick answer the next one comes sooner, and each further one half as soon
SLACK = 2  # the budget allows twice the schedule: what is over is for confirming


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked next, how, and the most tokens it may take."""

    question: Question
    sampled: bool
    max_tokens: int

    @property
    def name(self) -> str:
        return f"{self.question.id} ({'sampled' if self.sampled else 'greedy'})"


class Schedule:
    """Which question when. Free texts take turns in language and sampling; between them come sums, greedy.

    A sum is asked greedily only: at temperature 0.7 a sound model may miss one.
    """

    def __init__(self, *, every_s: float, max_tokens: int) -> None:
        self.every_s = every_s
        self.max_tokens = max_tokens
        self.budget = int(SLACK * 3600 / every_s * max_tokens)  # tokens an hour
        self._asks = self._turns()
        self._spent: deque[tuple[float, int]] = deque()
        self._hurry_s = CONFIRM_S
        self.due = 0.0

    def _turns(self) -> Iterator[Ask]:
        sums = cycle(family("arithmetic"))
        for name, sampled in cycle((("long-en", False), ("long-zh", True), ("long-en", True), ("long-zh", False))):
            yield Ask(question=named(name), sampled=sampled, max_tokens=self.max_tokens)
            total = next(sums)
            yield Ask(question=total, sampled=False, max_tokens=min(total.max_tokens, self.max_tokens))

    def spent(self, at: float) -> int:
        """Tokens asked for in the last hour: the most that each question could take."""
        while self._spent and at - self._spent[0][0] > 3600:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent)

    def take(self, at: float) -> Ask | None:
        """The next question where one is due and the budget allows it."""
        if at < self.due or self.spent(at) + self.max_tokens > self.budget:
            return None
        self.due = at + self.every_s
        ask = next(self._asks)
        self._spent.append((at, ask.max_tokens))
        return ask

    def hurry(self, at: float) -> None:
        """Ask again soon: the last answer was sick, or broken, or none."""
        self.due = min(self.due, at + self._hurry_s)
        self._hurry_s = min(2 * self._hurry_s, self.every_s)

    def calm(self) -> None:
        """All is well again: the next doubt is looked into as quickly as the first."""
        self._hurry_s = CONFIRM_S

    def anew(self, at: float) -> None:
        """The engine was started anew: ask at once."""
        self.due = at
        self.calm()


async def put(client: Client, model: str, ask: Ask, *, asked: float, limit_s: float, extras: bool = True) -> Canary:
    """Ask one question. asked: monotonic seconds; limit_s: for the whole answer."""
    how: Mapping[str, Any] = SAMPLED if ask.sampled else GREEDY
    body = {"model": model, "messages": list(ask.question.messages), "max_tokens": ask.max_tokens, **how}

    def back(said: Said, why: str, seconds: float = limit_s, tokens: int | None = None) -> Canary:
        return Canary(name=ask.name, asked=asked, at=asked + seconds, said=said, why=why, tokens=tokens)

    try:
        answer = await client.ask_stream(CHAT, {**body, **(EXTRAS if extras else {})}, limit_s=limit_s)
    except Refused as refused:
        if refused.not_a_number:
            return back(Said.SICK, f"NaN: {refused.message}", 0)
        if refused.not_offered and extras:
            return await put(client, model, ask, asked=asked, limit_s=limit_s, extras=False)
        return back(Said.BROKEN if refused.status >= 500 else Said.UNJUDGED, str(refused), 0)
    except Trouble as trouble:
        # Who is not there or is someone else is seen by the samples; here it is no answer to judge.
        elsewhere = trouble.kind in (Kind.UNREACHABLE, Kind.REDIRECT, Kind.RESET)
        said = Said.SILENT if trouble.kind is Kind.HANG else Said.UNJUDGED if elsewhere else Said.BROKEN
        return back(Said.UNJUDGED if trouble.kind is Kind.SLOW else said, str(trouble))
    sick = fault_of(ask, answer)
    tokens = answer.timing.tokens or len(answer.timing.arrivals)
    return back(Said.SICK if sick else Said.SOUND, sick or "sound", answer.timing.total, tokens)


def fault_of(ask: Ask, answer: Answer) -> str | None:
    """What is wrong with an answer; None where nothing was found. Pure."""
    finding = scan(
        answer.text,
        prompt=ask.question.prompt,
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
    )
    if finding.degenerate:
        return f"{finding.verdict}: {finding.why}"
    return fault(ask.question, answer.text)
