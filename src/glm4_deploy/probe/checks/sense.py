"""Questions with known answers, and structured output."""

import re

from glm4_deploy.probe.answers import Refused
from glm4_deploy.probe.probe import GREEDY, CanaryPrompt, Probe, answer_fault, family, json_fault
from glm4_deploy.probe.suite import GATE, QUICK, SOAK, CheckStage, check
from glm4_deploy.result import Result, fail, ok, skipped, warn
from glm4_deploy.text import quote

# Known answers: digits and operators first, because FP4 damage shows there first.

WRONG = (
    "the model gives wrong answers: verify the checkpoint (`glm4-deploy checkpoint verify`), the chat template and "
    "the NVFP4 kernel that the log names"
)


@check(
    "arithmetic",
    stage=CheckStage.SENSE,
    proves="four small sums come out right, one of them in Chinese",
    suites=GATE | SOAK,
    seconds=1,
)
async def arithmetic(probe: Probe) -> Result:
    return await _ask_family(probe, "arithmetic")


@check(
    "counting",
    stage=CheckStage.SENSE,
    proves="counts from 1 to 160 without a mistake: digits stay right over hundreds of tokens",
    suites=QUICK | SOAK,
    seconds=4,
    limit_s=600,
)
async def counting(probe: Probe) -> Result:
    return await _ask_family(probe, "counting")


@check(
    "recall",
    stage=CheckStage.SENSE,
    proves="repeats a name from the same turn and from an earlier one",
    suites=QUICK,
    seconds=0.5,
)
async def recall(probe: Probe) -> Result:
    return await _ask_family(probe, "recall")


@check(
    "language",
    stage=CheckStage.SENSE,
    proves="answers in English and in Chinese",
    suites=QUICK,
    seconds=0.5,
)
async def language(probe: Probe) -> Result:
    return await _ask_family(probe, "language")


async def _ask_family(probe: Probe, name: str) -> Result:
    canaries = family(name)
    wrong: list[str] = []
    evidence: list[tuple[str, str]] = []
    for canary in canaries:
        answer = await probe.ask_canary(canary, extras=True, **GREEDY)
        problem = answer_fault(canary, answer.text)
        if problem:
            wrong.append(f"{canary.id}: {problem}")
            evidence += [(f"{canary.id} prompt", canary.prompt), (f"{canary.id} answer", answer.text)]
    expected = "; ".join(canary.expected for canary in canaries)
    if wrong:
        return fail(f"{len(wrong)} of {len(canaries)} wrong: {'; '.join(wrong)}", expected, *evidence, remedy=WRONG)
    return ok(f"{len(canaries)} of {len(canaries)} right", expected)


# Structured output: the answer obeys the JSON schema and is not padded with endless white space.

BLANK = re.compile(r"\s{24,}")
REMEDY = "check the structured-output backend in the engine's log; see vllm#40080 for white space loops"


@check(
    "structured",
    stage=CheckStage.PROTOCOL,
    proves="an answer under a JSON schema obeys it and contains no run of white space",
    suites=QUICK,
    seconds=1,
)
async def structured(probe: Probe) -> Result:
    for canary in family("structured"):
        try:
            result = await _ask_structured(probe, canary)
        except Refused as refused:
            if refused.not_offered:
                return skipped(f"the server refuses response_format: {refused}")
            raise
    return result


async def _ask_structured(probe: Probe, canary: CanaryPrompt) -> Result:
    schema = canary.json_schema or {}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await probe.ask_canary(canary, response_format=form)
    evidence = ("answer", answer.text)
    blank = BLANK.search(answer.text)
    if blank:
        seen = f"{len(blank[0])} characters of white space at {blank.start()}, finish_reason {answer.finish_reason}"
        judge = fail if answer.finish_reason != "stop" else warn
        return judge(seen, "JSON without padding", evidence, remedy=REMEDY)
    problem = json_fault(schema, answer.text)
    if problem is None:
        return ok(quote(answer.text), "JSON that obeys the schema")
    if probe.served.is_vllm:
        return fail(problem, "JSON that obeys the schema", evidence, remedy=REMEDY)
    return warn(f"{problem}; this server may not support response_format", "JSON that obeys the schema", evidence)
