"""What a user of the Python API writes; a test type-checks it with `mypy --strict` and runs it against a server."""

import sys

from glm4_deploy.api import DeployError, LoopVerdict, ResolvedPlan, Result, Status, detect, plan, render, smoke


def bad(rows: tuple[Result, ...]) -> list[str]:
    return [f"{row.check}: {row.observed}" for row in rows if row.status is Status.FAIL]


planned: ResolvedPlan = plan("gb10", settings={"port": 9000, "model_dir": "/models/glm-4-9b-chat-hf-nvfp4"})
files = render(planned)
main: str = files["compose.yaml"]
assert "9000" in main
memory = planned.deployment.memory
assert memory is not None
tokens: int = memory.kv_cache_tokens
reasons: dict[str, str] = dict(planned.deployment.reasons)

finding = detect("The same again. " * 40)
assert finding.degenerate
assert finding.verdict is LoopVerdict.EXACT_LOOP
start: int | None = finding.start

report = smoke(sys.argv[1], suite="quick", only=["chat"], timeout_s=20)
assert report.verdict.passed, bad(report.results)

try:
    plan("no-such-profile")
except DeployError as error:
    code: int = error.exit_code
    assert error.message
    assert code == 2
else:
    raise AssertionError("a wrong profile was accepted")

sys.stdout.write(f"{start} {tokens} {sorted(reasons)[:1]} {report.verdict}\n")
