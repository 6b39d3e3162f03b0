"""Questions with known answers, structured output and tool calls."""

import json
import re
from typing import Any

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


# Tool calls: well formed where they are configured, skipped where they are not.

NAME = "get_weather"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris now? Use the tool."}
USE_PARSER = "set --tool-call-parser to the parser of this model (glm4_moe and hermes differ), or leave tools off"


@check(
    "tools",
    stage=CheckStage.PROTOCOL,
    proves="a tool call comes back parsed, with arguments that are JSON",
    suites=QUICK,
    seconds=1,
)
async def tools(probe: Probe) -> Result:
    try:
        answer = await probe.ask([QUESTION], 128, stream=False, tools=[TOOL], tool_choice="auto")
    except Refused as refused:
        if "tool-call-parser" in refused.message or "tool choice" in refused.message:
            return skipped("not configured: the engine runs without --enable-auto-tool-choice and --tool-call-parser")
        if refused.not_offered:
            return skipped(f"the server refuses tools: {refused}")
        raise
    expected = f"a call of {NAME} with a city"
    if answer.tool_calls:
        problem = _call_fault(answer.tool_calls[0])
        seen = quote(json.dumps(answer.tool_calls[0], ensure_ascii=False), 100)
        return fail(f"{problem}: {seen}", expected, remedy=USE_PARSER) if problem else ok(seen, expected)
    evidence = ("answer", answer.text)
    if NAME in answer.text:
        return fail(f"the call leaked into the text: {quote(answer.text)}", expected, evidence, remedy=USE_PARSER)
    return warn(f"the model called no tool: {quote(answer.text)}", expected, evidence)


def _call_fault(call: Any) -> str | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or function.get("name") != NAME:
        return "a call of an unknown tool"
    try:
        arguments = json.loads(function.get("arguments") or "")
    except (ValueError, TypeError):
        return "arguments that are not JSON"
    return None if isinstance(arguments, dict) and "city" in arguments else "arguments without the city"
