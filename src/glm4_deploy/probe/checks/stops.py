"""An answer ends where the model ends it, and no token of the template leaks into it."""

import re

from glm4_deploy.probe.canaries import Canary, family, named
from glm4_deploy.probe.outcome import fail, ok, skipped
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, SOAK, Stage, check
from glm4_deploy.probe.trouble import Refused
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result

# GLM-4's template tokens first; then those of the other families, for any other server.
SPECIAL = re.compile(
    r"<\|(?:endoftext|user|assistant|system|observation|im_start|im_end|eot_id|end|begin_of_text)\|>"
    r"|\[gMASK\]|\[sMASK\]|<sop>|<eop>|</s>"
)
ROOM = 256  # far more than a one-word answer needs
EOS = (
    "the engine does not know the model's end tokens: eos_token_id in generation_config.json must be "
    "[151329, 151336, 151338] for GLM-4; `glm4-deploy checkpoint` checks and mends it"
)

SENSELESS = "the answer is wrong too: see `numbers` and `arithmetic` first, then the end tokens (eos_token_id)"


@check(
    "stops",
    stage=Stage.PROTOCOL,
    proves="short answers end by themselves; no `<|user|>` and the like leaks, or is run past",
    suites=QUICK | SOAK,
    seconds=1,
)
async def stops(probe: Probe) -> Result:
    for canary in (named("add"), *family("language")):
        answer = await probe.ask(canary.messages, ROOM, extras=True)
        probe.keep(canary.prompt, answer)
        leak = SPECIAL.search(answer.text)
        if leak:
            seen = f"{leak[0]} in the answer to {canary.id}: {quote(answer.text)}"
            return fail(seen, "no template token in any answer", ("answer", answer.text), remedy=EOS)
        if answer.finish_reason != "stop":
            seen = f"{canary.id}: {answer.timing.tokens} tokens, then {answer.finish_reason}: {quote(answer.text)}"
            # A right answer that goes on is what missing end tokens look like ("42", then "6 乘以 …").
            remedy = EOS if _begins_right(canary, answer.text) else SENSELESS
            return fail(seen, "a short answer that ends by itself", ("answer", answer.text), remedy=remedy)
    return await _run_past(probe)


def _begins_right(canary: Canary, text: str) -> bool:
    head = text[:40].casefold()
    return any(want.casefold() in head for want in canary.contains)


async def _run_past(probe: Probe) -> Result:
    """With special tokens shown, an end token amid the answer proves that the engine ran past it."""
    done = ok("3 short answers ended by themselves, no template token in them", "finish_reason stop")
    if not probe.served.is_vllm:
        return done
    canary = named("add")
    try:
        raw = await probe.ask(canary.messages, ROOM, skip_special_tokens=False)
    except Refused:
        return done
    leak = SPECIAL.search(raw.text)
    if leak is None:
        return done
    return fail(
        f"the engine ran past {leak[0]}: {quote(raw.text)}",
        "the answer ends at the first end token",
        ("answer", raw.text),
        remedy=EOS,
    )


@check(
    "stop-strings",
    stage=Stage.PROTOCOL,
    proves="the `stop` field ends an answer before the given string",
    suites=QUICK,
    seconds=0.5,
)
async def stop_strings(probe: Probe) -> Result:
    canary = named("count-160")
    plain = await probe.ask(canary.messages, 32)
    if "," not in plain.text:
        return skipped(f"the answer to the counting question has no comma to stop at: {quote(plain.text)}")
    answer = await probe.ask(canary.messages, 32, stop=[","])
    expected = f"{quote(plain.text.split(',')[0])}, finish_reason stop"
    seen = f"{quote(answer.text)}, finish_reason {answer.finish_reason}"
    if answer.text == plain.text.split(",")[0] and answer.finish_reason == "stop":
        return ok(seen, expected)
    return fail(seen, expected, remedy="look for a proxy that drops the field `stop`")
