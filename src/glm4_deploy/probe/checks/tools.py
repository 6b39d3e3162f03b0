"""Tool calls: parsed, streamed, answered, left out and several at once. Skipped where the engine has none.

What a call looks like is judged strictly, because the engine makes it of what the model wrote. Whether the model calls
at all is its own choice: where it does not, that is a warning.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from glm4_deploy.probe.answers import ChatAnswer, Refused
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.suite import FULL, GATE, QUICK, CheckStage, check
from glm4_deploy.result import Result, Status, fail, ok, skipped, warn
from glm4_deploy.text import quote

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
BOTH = {"role": "user", "content": "What is the weather in Paris and in Berlin now? Call the tool once for each city."}
PLAIN = {"role": "user", "content": "Say hello in one short sentence. No tool is needed."}
DEGREES = "23"  # in the tool's result, and nowhere else
CALLED = {"id": "call-1", "type": "function", "function": {"name": NAME, "arguments": '{"city": "Paris"}'}}
ANSWERED: tuple[Mapping[str, Any], ...] = (
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALLED]},
    {"role": "tool", "content": f'{{"celsius": {DEGREES}, "sky": "hail"}}', "tool_call_id": "call-1"},
)
TOKENS = 128
USE_PARSER = (
    "give the engine the tool parser of this model: --tools for GLM-4-9B (vLLM's glm45, glm47 and hermes read other "
    "forms), or leave tools off"
)
USE_TEMPLATE = "use a chat template that shows tool results to the model: --tools brings GLM-4-9B's"
CALL = f"a call of {NAME} with a city"


async def _ask(probe: Probe, messages: Iterable[Mapping[str, Any]], **fields: Any) -> ChatAnswer | Result:
    """The answer, or the reason why the server has no tools."""
    fields = {"stream": False, "tool_choice": "auto", **fields}
    try:
        return await probe.ask(messages, TOKENS, tools=[TOOL], **fields)
    except Refused as refused:
        if "tool-call-parser" in refused.message or "tool choice" in refused.message:
            return skipped("not configured: the engine runs without --enable-auto-tool-choice and --tool-call-parser")
        if refused.not_offered:
            return skipped(f"the server refuses tools: {refused}")
        raise


@check(
    "tools-call",
    stage=CheckStage.PROTOCOL,
    proves="a tool call comes back parsed, with arguments that are JSON",
    suites=GATE,
    seconds=1,
)
async def call(probe: Probe) -> Result:
    answer = await _ask(probe, [QUESTION])
    return answer if isinstance(answer, Result) else _judge_calls(answer)


@check(
    "tools-stream",
    stage=CheckStage.PROTOCOL,
    proves="the pieces of a streamed tool call make the whole: one name, an id, arguments that are JSON",
    suites=QUICK,
    seconds=1,
)
async def stream(probe: Probe) -> Result:
    answer = await _ask(probe, [QUESTION], stream=True)
    return answer if isinstance(answer, Result) else _judge_calls(answer)


@check(
    "tools-parallel",
    stage=CheckStage.PROTOCOL,
    proves="two tool calls in one answer stay two, each with its own id and arguments",
    suites=FULL,
    seconds=1,
)
async def parallel(probe: Probe) -> Result:
    answer = await _ask(probe, [BOTH])
    if isinstance(answer, Result):
        return answer
    judged = _judge_calls(answer)
    ids = [str(one.get("id")) for one in answer.tool_calls]
    if len(set(ids)) < len(ids):
        return fail(f"two calls have the id {quote(ids[0])}", "an id for each call", remedy=USE_PARSER)
    if len(ids) == 1 and judged.status is Status.OK:
        return warn("one call for two cities: this model calls tools one after the other", "two calls")
    return judged


@check(
    "tools-roundtrip",
    stage=CheckStage.SENSE,
    proves="the answer after a tool call uses the tool's result",
    suites=QUICK,
    seconds=1,
)
async def roundtrip(probe: Probe) -> Result:
    answer = await _ask(probe, ANSWERED)
    if isinstance(answer, Result):
        return answer
    expected = f"an answer with {DEGREES}, which only the tool's result says"
    if DEGREES in answer.text:
        return ok(quote(answer.text), expected)
    seen = "another tool call" if answer.tool_calls else quote(answer.text)
    return fail(f"{seen} without {DEGREES}", expected, ("answer", answer.text), remedy=USE_TEMPLATE)


@check(
    "tools-none",
    stage=CheckStage.PROTOCOL,
    proves="no tool is called where none is needed, nor where tool_choice is none",
    suites=QUICK,
    seconds=1,
)
async def none(probe: Probe) -> Result:
    for question, choice in ((PLAIN, "auto"), (QUESTION, "none")):
        answer = await _ask(probe, [question], tool_choice=choice)
        if isinstance(answer, Result):
            return answer
        if answer.tool_calls:
            seen = (
                f"tool_choice {choice}: a call of {quote(_name(answer.tool_calls[0]))} for {quote(question['content'])}"
            )
            return fail(seen, "text", remedy=USE_PARSER)
        if choice == "auto" and not answer.text.strip():
            return fail("an empty answer", "text", remedy=USE_PARSER)
    return ok("text both times", "text")


def _judge_calls(answer: ChatAnswer) -> Result:
    """The calls of an answer to a question that asks for one."""
    evidence = ("answer", answer.text)
    if not answer.tool_calls:
        if NAME in answer.text:
            leaked = f"the call leaked into the text: {quote(answer.text)}"
            return fail(leaked, CALL, evidence, remedy=USE_PARSER)
        return warn(f"the model called no tool: {quote(answer.text)}", CALL, evidence)
    shown = quote(json.dumps(answer.tool_calls, ensure_ascii=False), 100)
    problems = [problem for one in answer.tool_calls if (problem := _call_fault(one))]
    if problems:
        return fail(f"{problems[0]}: {shown}", CALL, ("calls", shown), remedy=USE_PARSER)
    if answer.finish_reason not in ("tool_calls", "stop"):
        return fail(f"finish_reason {answer.finish_reason}: {shown}", "tool_calls", ("calls", shown), remedy=USE_PARSER)
    return ok(shown, CALL)


def _name(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    return str(function.get("name")) if isinstance(function, dict) else "nothing"


def _call_fault(call: Mapping[str, Any]) -> str | None:
    if _name(call) != NAME:
        return "a call of an unknown tool"
    if not call.get("id"):
        return "a call without an id"
    try:
        arguments = json.loads(call["function"].get("arguments") or "")
    except (ValueError, TypeError):
        return "arguments that are not JSON"
    return None if isinstance(arguments, dict) and "city" in arguments else "arguments without the city"
