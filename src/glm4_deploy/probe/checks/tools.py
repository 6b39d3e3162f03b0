"""Tool calls: well formed where they are configured, and said to be not configured where they are not."""

import json
from typing import Any

from glm4_deploy.probe.outcome import fail, ok, skipped, warn
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, Stage, check
from glm4_deploy.probe.trouble import Refused
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result

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
PARSER = "set --tool-call-parser to the parser of this model (glm4_moe and hermes differ), or leave tools off"


@check(
    "tools",
    stage=Stage.PROTOCOL,
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
        fault = _fault(answer.tool_calls[0])
        seen = quote(json.dumps(answer.tool_calls[0], ensure_ascii=False), 100)
        return fail(f"{fault}: {seen}", expected, remedy=PARSER) if fault else ok(seen, expected)
    evidence = ("answer", answer.text)
    if NAME in answer.text:
        return fail(f"the call leaked into the text: {quote(answer.text)}", expected, evidence, remedy=PARSER)
    return warn(f"the model called no tool: {quote(answer.text)}", expected, evidence)


def _fault(call: Any) -> str | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or function.get("name") != NAME:
        return "a call of no known tool"
    try:
        arguments = json.loads(function.get("arguments") or "")
    except (ValueError, TypeError):
        return "arguments that are no JSON"
    return None if isinstance(arguments, dict) and "city" in arguments else "arguments without the city"
