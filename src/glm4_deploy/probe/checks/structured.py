"""Guided decoding: an answer that must obey a JSON schema does, and is not padded with white space without end."""

import re

from glm4_deploy.probe.canaries import Canary, family, fault_json
from glm4_deploy.probe.outcome import fail, ok, skipped, warn
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, Stage, check
from glm4_deploy.probe.trouble import Refused
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result

BLANK = re.compile(r"\s{24,}")
REMEDY = "look at the structured-output backend in the engine's log; vllm#40080 for white space loops"


@check(
    "structured",
    stage=Stage.PROTOCOL,
    proves="an answer under a JSON schema obeys it and holds no run of white space",
    suites=QUICK,
    seconds=1,
)
async def structured(probe: Probe) -> Result:
    for canary in family("structured"):
        try:
            result = await _one(probe, canary)
        except Refused as refused:
            if refused.not_offered:
                return skipped(f"the server refuses response_format: {refused}")
            raise
    return result


async def _one(probe: Probe, canary: Canary) -> Result:
    schema = canary.json_schema or {}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await probe.ask_canary(canary, response_format=form)
    evidence = ("answer", answer.text)
    blank = BLANK.search(answer.text)
    if blank:
        seen = f"{len(blank[0])} characters of white space at {blank.start()}, finish_reason {answer.finish_reason}"
        judge = fail if answer.finish_reason != "stop" else warn
        return judge(seen, "JSON without padding", evidence, remedy=REMEDY)
    fault = fault_json(schema, answer.text)
    if fault is None:
        return ok(quote(answer.text), "JSON that obeys the schema")
    if probe.served.is_vllm:
        return fail(fault, "JSON that obeys the schema", evidence, remedy=REMEDY)
    return warn(f"{fault}; this server may not offer response_format", "JSON that obeys the schema", evidence)
