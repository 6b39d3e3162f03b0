"""The checkpoint's fingerprint: log probabilities of fixed tokens, compared with those of the reference arithmetic."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from glm4_deploy.fingerprint.distance import Answer, measure
from glm4_deploy.fingerprint.judge import Comparison, judge
from glm4_deploy.fingerprint.model import TOP, Fingerprint, PrintedText
from glm4_deploy.fingerprint.thresholds import FAIL
from glm4_deploy.probe.answers import FailureKind, Refused, RequestFailure
from glm4_deploy.probe.probe import CHAT, Probe, together
from glm4_deploy.probe.suite import GATE, CheckStage, check
from glm4_deploy.result import Result, Status, fail, ok, skipped, warn
from glm4_deploy.text import BRIEF, one_line

COMPLETIONS = "/v1/completions"
AT_ONCE = 4  # requests
EVERY = 16  # tokens between the points of a text whose prompt the engine gives no log probabilities for
MAKE = "make one: glm4-deploy checkpoint fingerprint DIR; `up` finds it beside the weights, smoke takes --fingerprint"
REMEDY = "verify the checkpoint (`checkpoint verify --full`), then compare image and settings with those that were good"


@check(
    "fingerprint",
    stage=CheckStage.SENSE,
    proves="log probabilities of fixed tokens are those of the checkpoint's own arithmetic, and so are the token ids",
    suites=GATE,
    needs=("numbers",),
    seconds=2,
)
async def fingerprint(probe: Probe) -> Result:
    found = probe.options.fingerprint
    if found is None:
        return skipped(f"no fingerprint; {MAKE}")
    if fault := await _wrong_ids(probe, found):
        return fail(fault, "the token ids of the checkpoint's tokenizer and chat template", remedy=TOKENS)
    answers: list[list[Answer | None]] = []
    try:
        for text in found.texts:
            answers.append(await _answers(probe, text))
    except Refused as refused:
        if refused.not_a_number or not refused.not_offered:
            raise
        return skipped(f"the server gives no log probabilities for token ids: {refused}")
    measured = measure(found, answers)
    if not measured[0].overall.points:
        return skipped("the server gives no log probabilities for token ids")
    return _result(judge(found, measured, probe.options.arithmetic))


TOKENS = (
    "the engine reads another tokenizer or chat template than the fingerprint's checkpoint has: compare tokenizer.json "
    "and chat_template.jinja; for a template that you gave on purpose, make the fingerprint with it"
)


async def _wrong_ids(probe: Probe, found: Fingerprint) -> str:
    """Which text becomes other token ids than in the checkpoint; '' for none, or if the server does not report them."""
    for text in found.texts:
        if text.bucket.long:
            continue
        ids = await _ids(probe, text)
        if ids is not None and (wrong := _difference(ids, text)):
            return f"{text.bucket}: {wrong}"
    return ""


async def _ids(probe: Probe, text: PrintedText) -> list[int] | None:
    """The token ids of a text or chat: vLLM's own field, else its /tokenize; None if it does not report them."""
    body: dict[str, Any] = {"model": probe.served.model}
    body |= {"messages": list(text.messages)} if text.messages else {"prompt": text.text, "add_special_tokens": False}
    extra = {"max_tokens": 1, "temperature": 0, "return_token_ids": True}
    said = (await probe.client.post(CHAT if text.messages else COMPLETIONS, body | extra)).json()
    choices = said.get("choices") if isinstance(said, dict) else None
    places = (said, *choices) if isinstance(choices, list) else ()
    for place in places:
        ids = place.get("prompt_token_ids") if isinstance(place, dict) else None
        if isinstance(ids, list) and ids:
            return ids
    said = (await probe.client.post("/tokenize", body)).json()
    ids = said.get("tokens") if isinstance(said, dict) else None
    return ids if isinstance(ids, list) and ids else None


def _difference(ids: list[int], text: PrintedText) -> str:
    """Texts are cut to a size, so only a chat that was not cut must end where the answer of the server ends."""
    expected = list(text.ids)
    if ids[: len(expected)] == expected and (len(ids) == len(expected) or len(expected) >= CUT):
        return ""
    pairs = zip(ids, expected, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(expected)))
    return f"{len(ids)} token ids, other ones from position {place + 1} on"


CUT = 128  # tokens: a text of at least so many may have been cut when the fingerprint was made


async def _answers(probe: Probe, text: PrintedText) -> list[Answer | None]:
    """The engine's most likely tokens at each point of a text; None where the text does not fit its context."""
    room = probe.room
    if room is not None and len(text.ids) + 1 > room:
        return [None] * len(text.points)
    if not text.bucket.long:
        rows = await _prompt_logprobs(probe, text)
        if rows is not None:
            return rows
    asked = [point if text.bucket.long or n % EVERY == EVERY - 1 else None for n, point in enumerate(text.points)]
    gate = asyncio.Semaphore(AT_ONCE)

    async def at(point: int | None) -> Answer | None:
        async with gate:
            return None if point is None else await _next_token(probe, text.ids[:point])

    return await together(at(point) for point in asked)


async def _prompt_logprobs(probe: Probe, text: PrintedText) -> list[Answer | None] | None:
    """Of every token but the first, in one request; None if the server does not offer it."""
    try:
        choice = await _complete(probe, text.ids, prompt_logprobs=TOP)
    except Refused as refused:
        if refused.not_a_number or not refused.not_offered:
            raise
        return None
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(text.ids):
        return None
    try:
        return [_top({int(token): row["logprob"] for token, row in rows[point].items()}) for point in text.points]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        why = f"prompt_logprobs in an unknown form: {type(error).__name__}"
        raise RequestFailure(FailureKind.NOT_OPENAI, why) from error


async def _next_token(probe: Probe, ids: tuple[int, ...]) -> Answer | None:
    """After a prompt, from the log probabilities of a completion of one token; None if the server sends none."""
    choice = await _complete(probe, ids, logprobs=TOP, return_tokens_as_token_ids=True)
    try:
        first = choice["logprobs"]["top_logprobs"][0]
        return _top({int(str(token).removeprefix("token_id:")): value for token, value in first.items()})
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return None


async def _complete(probe: Probe, ids: tuple[int, ...], **extra: Any) -> Mapping[str, Any]:
    body = {"model": probe.served.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, **extra}
    reply = await probe.client.post(COMPLETIONS, body)
    said = reply.json()
    if reply.status != 200:
        error = said.get("error") if isinstance(said, dict) else None
        message = error.get("message") if isinstance(error, dict) else reply.text
        raise Refused(reply.status, one_line(str(message), BRIEF))
    choices = said.get("choices") if isinstance(said, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _top(row: Mapping[int, Any]) -> Answer:
    """The most likely tokens. The prompt's own token, which vLLM adds, is dropped: the reference does not have it."""
    if any(not isinstance(value, int | float) or not math.isfinite(value) for value in row.values()):
        raise ValueError("a log probability is not a number")
    best = sorted(row, key=lambda token: -row[token])[:TOP]
    return {token: float(row[token]) for token in best}


def _result(judged: Comparison) -> Result:
    distance = judged.distance
    seen = (
        f"KL {distance.kl:.4f} from {judged.arithmetic} over {distance.points} tokens, {distance.agreement:.1%} top-1"
    )
    seen += f", worst token {distance.worst:.2f}"
    if judged.loss is not None:
        seen += f"; {judged.loss:.4f} from bf16"
    if judged.off:
        seen += f"; off: {', '.join(f'{bucket} × {ratio:.1f}' for bucket, ratio in judged.off)}"
    expected = f"about {judged.expected:.4f}, and less than {FAIL:g} times the expected KL in every bucket"
    if judged.status is Status.OK:
        return ok(seen, expected)
    make = fail if judged.status is Status.FAIL else warn
    return make(seen, expected, remedy=f"{judged.points_to}. {REMEDY}")
