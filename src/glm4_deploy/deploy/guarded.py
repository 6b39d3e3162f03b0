"""Whether the guard of a deployment answers, and what it has counted: asked inside its container."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from docker.models.containers import Container

from glm4_deploy.deploy.docker import connect, find_container, state_of
from glm4_deploy.deploy.state import Record
from glm4_deploy.errors import DeployError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.host.system import gather
from glm4_deploy.probe.endpoints import parse_metrics
from glm4_deploy.probe.guard_counts import GuardCounts, guard_counts
from glm4_deploy.result import Result, fail, ok, unknown
from glm4_deploy.text import one_line

SERVICE = "guard"  # in the Compose file, and the first word of its command
PORT = 9110  # its metrics: published nowhere, and a rootless Docker's networks are not reachable from the host
LIMIT_S = 15.0  # for all that Docker is asked: its SDK reads the output of an exec without any limit
NOT_ASKED = {None, 126, 127, 137}  # exit codes of an exec: not recorded yet, no Python, killed
CLIENTS = 8081  # its port for clients, where its command names none
# A mode that does not exist: the guard refuses that itself, so neither costs the engine anything nor waits for it.
ASK = """
import http.client as h, sys
def ask(what, port, path, headers):
    try:
        c = h.HTTPConnection("127.0.0.1", port, timeout=5)
        c.request("GET", path, headers=headers)
        return c.getresponse().read(1048576)
    except Exception as error:
        sys.exit(f"{{what}}: {{type(error).__name__}}: {{error}}")
metrics = ask("its /metrics", {port}, "/metrics", {{}})
ask("its port {clients}, where clients ask", {clients}, "/", {{"X-GLM4-Guard": "is it there?"}})
sys.stdout.buffer.write(metrics)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus:
    """One look at the guard."""

    answers: bool | None
    """Whether its /metrics and its port for clients answer; None: it could not be asked, so nothing is known."""
    detail: str
    """What was seen instead of its counters; '' for nothing."""
    mode: str = ""
    """`off`, `observe`, `cut` or `retry`, as its container was started; '' if not known."""
    restarts: int = 0
    counts: GuardCounts | None = None

    @property
    def summary(self) -> str:
        mode = f"mode {self.mode or 'unknown'}"
        counts = self.counts
        if counts is None:
            return f"{mode}; {self.detail}"
        since = f" since {_utc(counts.started)}" if counts.started else ""
        done = [f"{counts.sick:.0f} looped or were garbage", f"{counts.cut:.0f} cut"]
        done += [f"{counts.retried:.0f} asked again"] if counts.retried else []
        done += [f"{counts.unjudged:.0f} more passed unjudged"] if counts.unjudged else []
        restarts = f"; restarted {self.restarts} times" if self.restarts else ""
        restarts += "; memory is low, and it refuses new questions" if counts.refuses else ""
        return f"{mode}; {counts.judged:.0f} answers judged{since}, {', '.join(done)}{restarts}"

    def result(self, project: str) -> Result:
        """The row of a report. Clients reach the engine only through it."""
        if self.counts and self.counts.refuses:
            seen = "the guard refuses new questions, because the host is short of memory"
            remedy = "free memory, or lower guard_refuse_below_gib and run glm4-deploy up: docs/how-to/guard.md"
            return fail(seen, "it takes questions", check="guard", remedy=remedy)
        if self.answers:
            return ok(self.summary, "it answers", check="guard")
        remedy = f"docker compose -p {project} logs guard"
        if self.answers is None:
            seen = f"the guard could not be asked: {self.detail}"
            return unknown(seen, remedy, observed=seen, expected="it answers", check="guard")
        seen = f"the guard, through which clients reach the engine, does not answer: {self.detail}"
        return fail(seen, "it answers", check="guard", remedy=remedy)


def _utc(at: float) -> str:
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return "an unknown time"


def read_guard(record: Record) -> GuardStatus | None:
    """Look once; None if the files on record have no guard, and none runs. Does not raise, and ends within LIMIT_S."""
    late = GuardStatus(answers=None, detail=f"Docker gave no answer within {LIMIT_S:g} s")
    seen: GuardStatus | None = gather({SERVICE: partial(_look, record)}, timeout=LIMIT_S).get(SERVICE, late)
    return seen


def _look(record: Record) -> GuardStatus | None:
    expected = _is_in(record.files)
    try:
        container = find_container(connect(timeout=LIMIT_S), record.endpoint.project, SERVICE)
        if container is None:
            return GuardStatus(answers=False, detail="it has no container") if expected else None
        other = GuardStatus(answers=None, detail="its container does not run `guard`")
        return ask_guard(container) or (other if expected else None)
    except Exception as error:  # noqa: BLE001 (however Docker fails, the guard is unknown and the rest counts)
        return GuardStatus(answers=None, detail=one_line(str(error) or type(error).__name__, 200))


def _is_in(files: tuple[str, ...]) -> bool:
    """Whether a Compose file has this kit's guard."""
    for file in map(Path, files):
        with suppress(DeployError, AttributeError, KeyError, TypeError, IndexError):
            if file.is_file() and parse_yaml(read_text(file), file)["services"][SERVICE]["command"][0] == SERVICE:
                return True
    return False


def ask_guard(container: Container, *, port: int = PORT) -> GuardStatus | None:
    """Ask it from within its container; None if the container is not a guard of this kit.

    Raises:
        DockerException, requests.RequestException: Docker does not answer.
        ValueError: its command names a port that is not a number.
    """
    command = container.attrs["Config"].get("Cmd") or ()
    if SERVICE not in command[:1]:
        return None
    mode, state = _option(command, "--mode", "observe"), state_of(container)
    if state is None or not state.running:
        detail = f"{state.name}: {state.status}, exit code {state.exit_code}" if state else "its container has gone"
        return GuardStatus(answers=False, detail=detail, mode=mode, restarts=state.restarts if state else 0)
    clients = int(_option(command, "--port", str(CLIENTS)))
    code, output = container.exec_run(["python3", "-c", ASK.format(port=port, clients=clients)])
    text = output.decode("utf-8", errors="replace") if isinstance(output, bytes) else ""
    counts = guard_counts(parse_metrics(text)) if code in (0, None) else None
    if counts is None and code:
        why = one_line(text.strip().rpartition("\n")[2], 120) or f"exit code {code}"
        answers = None if code in NOT_ASKED else False
        return GuardStatus(answers=answers, detail=why, mode=mode, restarts=state.restarts)
    if counts is None:
        return GuardStatus(answers=None, detail="no guard's counters at its /metrics", mode=mode)
    return GuardStatus(answers=True, detail="", mode=mode, restarts=state.restarts, counts=counts)


def _option(command: Any, name: str, default: str) -> str:
    words = " ".join(map(str, command)).replace(f"{name}=", f"{name} ").split(" ")
    return words[words.index(name) + 1] if name in words[:-1] else default
