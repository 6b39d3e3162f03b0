"""Questions with known answers: digits and operators first, because FP4 damage falls on them first."""

from glm4_deploy.probe.canaries import family, fault
from glm4_deploy.probe.outcome import fail, ok
from glm4_deploy.probe.probe import GREEDY, Probe
from glm4_deploy.probe.registry import GATE, QUICK, SOAK, Stage, check
from glm4_deploy.result import Result

WRONG = (
    "the model does not think straight: verify the checkpoint (`glm4-deploy checkpoint verify`), the chat template and "
    "the NVFP4 kernel that the log names"
)


@check(
    "arithmetic",
    stage=Stage.SENSE,
    proves="four small sums come out right, one of them in Chinese",
    suites=GATE | SOAK,
    seconds=1,
)
async def arithmetic(probe: Probe) -> Result:
    return await _ask_family(probe, "arithmetic")


@check(
    "counting",
    stage=Stage.SENSE,
    proves="counts from 1 to 160 without a slip: the digits hold over hundreds of tokens",
    suites=QUICK | SOAK,
    seconds=4,
    limit_s=600,
)
async def counting(probe: Probe) -> Result:
    return await _ask_family(probe, "counting")


@check(
    "recall",
    stage=Stage.SENSE,
    proves="repeats a name that it was told, in the same turn and an earlier one",
    suites=QUICK,
    seconds=0.5,
)
async def recall(probe: Probe) -> Result:
    return await _ask_family(probe, "recall")


@check(
    "language",
    stage=Stage.SENSE,
    proves="answers in English and in Chinese",
    suites=QUICK,
    seconds=0.5,
)
async def language(probe: Probe) -> Result:
    return await _ask_family(probe, "language")


async def _ask_family(probe: Probe, name: str) -> Result:
    asked = family(name)
    wrong: list[str] = []
    evidence: list[tuple[str, str]] = []
    for canary in asked:
        answer = await probe.ask_canary(canary, extras=True, **GREEDY)
        what = fault(canary, answer.text)
        if what:
            wrong.append(f"{canary.id}: {what}")
            evidence += [(f"{canary.id} prompt", canary.prompt), (f"{canary.id} answer", answer.text)]
    expected = "; ".join(canary.expected for canary in asked)
    if wrong:
        return fail(f"{len(wrong)} of {len(asked)} wrong: {'; '.join(wrong)}", expected, *evidence, remedy=WRONG)
    return ok(f"{len(asked)} of {len(asked)} right", expected)
