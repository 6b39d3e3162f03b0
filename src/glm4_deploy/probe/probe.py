"""What a check works with: the client, what is known of the server so far, and one way to ask a question."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4_deploy.detect import scan
from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import Canary
from glm4_deploy.probe.client import Client
from glm4_deploy.probe.metrics import Metrics, parse
from glm4_deploy.probe.slo import Slo
from glm4_deploy.probe.target import Target
from glm4_deploy.probe.trouble import Refused, Trouble
from glm4_deploy.probe.words import bound
from glm4_deploy.samples import Sample, Suite

CHAT = "/v1/chat/completions"
# Fields that only some servers know. vLLM answers token ids and raw logprobs; others ignore or refuse them.
EXTRAS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
SLOWEST = 240  # tokens in one timeout_s: two a second by default is as slow as an answer may come
SAMPLED: Mapping[str, Any] = {"temperature": 0.7, "top_p": 0.95}
GREEDY: Mapping[str, Any] = {"temperature": 0}


@dataclass(slots=True, kw_only=True)
class Served:
    """What the server has told of itself. None: not asked yet, or it does not say. started: epoch seconds."""

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
    """Settings of a run that single checks read. baseline: perplexity by passage id."""

    slo: Slo | None = None
    baseline: Mapping[str, float] | None = None


@dataclass(slots=True, kw_only=True)
class Probe:
    """Handed to each check in turn. `check` is the running check's name; `perplexity` is what a baseline would hold."""

    target: Target
    client: Client
    suite: Suite
    options: Options = field(default_factory=Options)
    served: Served = field(default_factory=Served)
    samples: list[Sample] = field(default_factory=list)
    perplexity: dict[str, float] = field(default_factory=dict)
    check: str = ""

    async def ask(
        self,
        messages: Iterable[Mapping[str, str]],
        max_tokens: int,
        *,
        stream: bool = True,
        extras: bool = False,
        limit_s: float | None = None,
        prompt_tokens: int | None = None,
        **fields: Any,
    ) -> Answer:
        """One chat completion, at temperature 0 unless `fields` says otherwise.

        extras: also ask for logprobs and token ids; dropped for good once a server refuses them.
        max_tokens is cut so that prompt and answer fit the model's context; prompt_tokens: the prompt's size where it
        is known, else its bytes bound it (a token is at least a byte).
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
        self.served.extras = False  # only now: the refusal was about the extras, the question itself is fine
        return answer

    async def ask_canary(self, canary: Canary, **fields: Any) -> Answer:
        """Ask a canary and keep the sample, with the detector's finding."""
        answer = await self.ask(canary.messages, canary.max_tokens, **fields)
        self.keep(canary.prompt, answer)
        return answer

    def fit(self, messages: Iterable[Mapping[str, str]], max_tokens: int, prompt_tokens: int | None = None) -> int:
        if self.served.max_model_len is None:
            return max_tokens
        template = 8  # role markers and the like, a message
        prompt = prompt_tokens or sum(len(message["content"].encode()) + template for message in messages) + template
        return max(1, min(max_tokens, self.served.max_model_len - prompt))

    def keep(self, prompt: str, answer: Answer) -> Sample:
        """Judge an answer for loops and keep it for the report."""
        finding = scan(
            answer.text,
            prompt=prompt,
            finish_reason=answer.finish_reason,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
        )
        sample = Sample(
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
        """GET /metrics; None where the server has none."""
        try:
            reply = await self.client.get("/metrics")
        except Trouble:
            return None
        return parse(reply.text) if reply.status == 200 and "# TYPE" in reply.text else None

    @property
    def room(self) -> int | None:
        """Context length in tokens, as served or as told."""
        return self.served.max_model_len

    @property
    def nonce(self) -> str:
        """A word that no earlier prompt held, so that no prefix cache knows it."""
        return f"{time.time_ns():x}"
