"""The public Python API: `plan`, `render`, `smoke`, `detect`. May import every room below it.

    from glm4_deploy.api import detect, plan, render, smoke

    spec = plan("gb10", settings={"model_dir": "/models/glm-4-9b-chat-hf-nvfp4"})
    text = render(spec)["compose.yaml"]
    report = smoke("http://localhost:8080", suite="gate")
    finding = detect("The same again. " * 40)

These names, their arguments and the fields of what they return change only with a new major version. Every error is a
`DeployError`; nothing prints, exits, or changes the host.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from glm4_deploy.detect import LoopFinding, LoopVerdict, scan
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.plan.resolved import ResolvedPlan
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.questions import read_questions
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.render.targets import render_target
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import load_settings
from glm4_deploy.text import did_you_mean

__all__ = [
    "DeployError",
    "DeploymentSpec",
    "LoopFinding",
    "LoopVerdict",
    "ResolvedPlan",
    "Result",
    "Status",
    "SuiteReport",
    "detect",
    "plan",
    "render",
    "smoke",
]


def plan(profile: str, *, settings: Mapping[str, object] | None = None, config: Path | None = None) -> ResolvedPlan:
    """Decide what to deploy on the kind of host that a profile is for. Reads no GPU.

    Args:
        profile: as `glm4-deploy profiles` lists them.
        settings: by name, as in docs/reference/settings.md.
        config: a settings file; without one, only `settings` and the profile count, and GLM4_* is ignored.

    Raises:
        UsageError: an unknown profile or setting, a wrong value, an unreadable file.
        PlanRefused: the settings do not fit the profile's GPU.
    """
    flags = {**(settings or {}), "profile": profile}
    merged, row = load_settings(flags, file=config or Path("/dev/null"), environ={})
    return ResolvedPlan.of(merged, row)


def render(planned: ResolvedPlan, target: str = "compose") -> Mapping[str, str]:
    """The files of a plan: name → text, the main file first. The same plan gives the same bytes.

    Args:
        target: `compose`, `kubernetes` or `quadlet`.

    Raises:
        UsageError: an unknown target, or a setting that it cannot express.
    """
    return render_target(target, planned.deployment, planned.settings, planned.profile)


def smoke(
    base_url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    suite: str = "quick",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    questions: Path | None = None,
    timeout_s: float = 120.0,
) -> SuiteReport:
    """Ask an OpenAI endpoint and judge its answers. Inside an event loop, call it in a thread.

    Args:
        base_url: without /v1.
        model: the served name that must answer; None: the only one.
        suite: `gate`, `quick` or `full`.
        only, skip: names of checks, as for the command.
        questions: a file of your own questions, asked too (docs/how-to/questions.md).
        timeout_s: seconds until the first token of an answer.

    Returns:
        A report, whatever the engine does: `verdict` is OK or WARN for a pass, and an endpoint that does not answer is
        a failed check.

    Raises:
        UsageError: the address, a suite, a check's name or the file of questions is wrong.
    """
    known = (Suite.GATE, Suite.QUICK, Suite.FULL)
    if suite not in known:
        raise UsageError(f"no suite is named {suite[:40]!r}", hint=did_you_mean(suite, known) or ", ".join(known))
    key = SecretStr(api_key) if api_key is not None else None
    target = ProbeTarget(base_url=base_url, model=model, api_key=key, timeout_s=timeout_s)
    options = Options(questions=read_questions(questions) if questions is not None else ())
    return asyncio.run(run_suite(target, suite=Suite(suite), only=only, skip=skip, options=options))


def detect(
    text: str,
    *,
    prompt: str | None = None,
    finish_reason: str | None = None,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float | None] | None = None,
) -> LoopFinding:
    """Find a loop or garbage in a generated text.

    Args:
        prompt: the prompt; a repetition that it asks for is not a loop.
        logprobs: natural logarithms, one per generated token; None where the engine returned null.

    Returns:
        `degenerate` says whether it is bad, `verdict` how, `start` from which character on.
    """
    return scan(text, prompt=prompt, finish_reason=finish_reason, token_ids=token_ids, logprobs=logprobs)
