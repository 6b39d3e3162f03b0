"""Restart the engine's container on request (`watch --restart`): log kept first, backoff, a limit per hour.

With `--rollback`, an engine that babbles again within an hour of its restart is replaced by the last good release, at
most once a day. A container that somebody stopped is left alone.
"""

import json
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from docker.errors import DockerException
from docker.models.containers import Container

from glm4_deploy.deploy.docker import ContainerState, connect, find_container, state_of
from glm4_deploy.deploy.state import hold_lock, load_stop
from glm4_deploy.errors import DeployError, RollbackFailed
from glm4_deploy.files import write_text
from glm4_deploy.run import run_program
from glm4_deploy.text import one_line
from glm4_deploy.watch.judge import State

RESTARTABLE = frozenset(
    {State.HUNG, State.BABBLING, State.UNREACHABLE}
)  # a restart does not help against another server on the port
TAIL_LINES = 5000
KEPT_LOGS = 10
STOP_S = 30
DAY_S = 86_400.0
ROLLBACK_S = 4 * 3600.0  # `rollback` has a limit for each start; this one only ends what hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Limits of restarts.

    Attributes:
        backoff_s: pause after a restart; doubles with each restart of the last hour.
        ceiling: restarts per hour.
        grace_s: how long a start may take.
        rollbacks: per day.
    """

    backoff_s: float = 60.0
    ceiling: int = 3
    grace_s: float = 900.0
    rollbacks: int = 0


class Policy:
    """Decides whether to restart now. Pure: time (monotonic seconds) and the container's state are arguments."""

    def __init__(self, rules: Rules, held: Callable[[ContainerState], str] = lambda _container: "") -> None:
        """held: from a container to why it is not to be started again; '' for no reason."""
        self.rules = rules
        self._held = held
        self._done: deque[float] = deque()
        self._babbled: float | None = None  # when it was last restarted for that
        self._rolled_back: list[float] = []
        self._failed = float("-inf")
        self._start = self._up = self._from = self._at = 0.0

    def uptime(self, started_at: float, wall: float, at: float) -> float:
        """Seconds since the container's start. Once it is known, changes of the date do not matter.

        Args:
            started_at, wall: that start and now, in epoch seconds.
            at: now, in monotonic seconds.
        """
        if started_at != self._start:
            first, since = not self._at, at - self._at
            self._up = max(wall - started_at, 0.0)
            self._up = self._up if first else min(self._up, since)  # at the last look it was another start
            self._start, self._from = started_at, at
        self._at = at
        return self._up + at - self._from

    def done(self, at: float, state: State) -> None:
        """It was restarted."""
        self._done.append(at)
        if state is State.BABBLING:
            self._babbled = at

    def failed(self, at: float) -> None:
        """A restart failed: the next attempt waits, also if nothing was restarted and so nothing counts."""
        self._failed = at

    def rolled_back(self, at: float) -> None:
        """A rollback was tried; whatever runs now gets its own restart first."""
        self._rolled_back.append(at)
        self._babbled = None

    def rolls_back(self, state: State, at: float) -> bool:
        """Whether to put the last good release back, rather than restart: it babbles again, and none was this day."""
        if state is not State.BABBLING or self._babbled is None or at - self._babbled >= 3600:
            return False
        return sum(at - one < DAY_S for one in self._rolled_back) < self.rules.rollbacks

    def recent(self, at: float) -> int:
        """Restarts in the last hour."""
        while self._done and at - self._done[0] >= 3600:
            self._done.popleft()
        return len(self._done)

    def why_not(
        self, state: State, at: float, container: ContainerState | None, *, up_s: float | None, since_s: float
    ) -> str | None:
        """None: restart it. Otherwise why it is left alone; '' if the state does not call for a restart.

        Args:
            up_s: seconds since the container's last start; None if it is not running.
            since_s: seconds since the state began; a younger container is not the one that was judged.
        """
        if state not in RESTARTABLE:
            return ""
        if container is None:
            return "the container does not exist"
        if container.gave_up:
            return f"given up after {container.restarts} restarts, the ceiling of its restart policy: it needs a person"
        if held := self._held(container):  # also while it runs: a stop takes seconds
            return held
        if not container.running and _stopped_on_purpose(container):
            return f"it was stopped (exit code {container.exit_code}), probably on purpose"
        # A cold engine compiles during its first requests, for a minute or more, which looks like a hang.
        if up_s is not None and up_s < self.rules.grace_s and (state is not State.BABBLING or up_s < since_s):
            return f"it started {up_s:.0f} s ago and may take {self.rules.grace_s:.0f} s"
        recent = self.recent(at)
        if recent >= self.rules.ceiling and not self.rolls_back(state, at):
            return f"restarted {recent} times within an hour, the ceiling: it needs a person"
        wait = self.rules.backoff_s * 2 ** (recent - 1) if recent else 0.0
        remaining = wait - (at - self._done[-1]) if recent else 0.0
        remaining = max(remaining, self.rules.backoff_s - (at - self._failed))
        return "waiting between two restarts" if remaining > 0 else None


def _stopped_on_purpose(container: ContainerState) -> bool:
    """Whether somebody stopped the container.

    Under the policies `always` and `unless-stopped` Docker restarts what dies, so a container that stays down was
    stopped. Under the others the exit code decides: `docker stop` ends an engine with 0 or 143 (SIGTERM).
    """
    kept_by_docker = container.restart_policy in ("always", "unless-stopped")
    return container.status in ("created", "paused") or kept_by_docker or container.exit_code in (None, 0, 143)


class Keeper(Protocol):
    """What `run_watch` restarts: a container, or a stand-in in tests."""

    def state(self) -> ContainerState | None: ...
    def restart(self, why: str, begin: Callable[[], None]) -> Path: ...
    def roll_back(self, why: str) -> str: ...


class ContainerKeeper:
    """One container, by its name or by its Compose project and service, looked up each time."""

    def __init__(self, *, name: str | None, project: str, service: str, directory: Path) -> None:
        self._client = connect(timeout=STOP_S + 60)
        self._name, self._project, self._service = name, project, service
        self._directory = directory

    def state(self) -> ContainerState | None:
        container = self._container()
        return state_of(container) if container else None

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        """Store the end of its log, then restart it. Returns the path of the log.

        Args:
            begin: called when nothing but the restart itself is left to do; if it raises, nothing is restarted.

        Raises:
            DeployError: another glm4-deploy is running, the log cannot be stored, it was stopped for memory meanwhile,
                or Docker refuses. Nothing was restarted then, unless `begin` was called and Docker failed halfway.
        """
        with hold_lock(self._directory, "watch --restart"):
            container = self._container()
            if container is None:
                raise DeployError("the container does not exist any more")
            log = self._store_log(container, why)
            try:
                _refuse_if_stopped_for_memory(container, self._directory)
                begin()
            except DeployError:
                with suppress(OSError):  # the file system may take nothing more: why it failed is the news
                    log.unlink(missing_ok=True)
                raise
            self._prune_logs()  # only now: attempts that restart nothing must not displace the logs of those that do
            try:
                container.restart(timeout=STOP_S)
            except (DockerException, OSError) as error:
                raise DeployError(f"docker restart failed: {str(error)[:200]}") from error
        return log

    def roll_back(self, why: str) -> str:
        """Store the end of its log, then put the last good release back. Returns the id of the release that serves.

        Raises:
            DeployError: another glm4-deploy is running, the log cannot be stored, or it was stopped for memory
                meanwhile; nothing was changed.
            RollbackFailed: see `roll_back`.
        """
        with hold_lock(self._directory, "watch --rollback"):
            container = self._container()
            if container is not None:
                self._store_log(container, why)
                _refuse_if_stopped_for_memory(container, self._directory)
                self._prune_logs()
        return roll_back(self._directory)

    def _container(self) -> Container | None:
        try:
            if self._name is None:
                return find_container(self._client, self._project, self._service)
            containers = self._client.containers.list(all=True, filters={"name": f"^/{self._name}$"})
            return containers[0] if containers else None
        except (DockerException, OSError) as error:
            raise DeployError(f"the Docker engine does not answer: {str(error)[:200]}") from error

    def _store_log(self, container: Container, why: str) -> Path:
        now = datetime.now(UTC)
        path = self._directory / "watch" / f"restart-{now:%Y%m%dT%H%M%SZ}.log"
        try:
            tail = container.logs(tail=TAIL_LINES, timestamps=True).decode("utf-8", errors="replace")
        except (DockerException, OSError) as error:
            raise DeployError(f"its log cannot be read: {str(error)[:200]}") from error
        head = {"restarted": now.isoformat(timespec="seconds"), "container": container.name, "why": why}
        write_text(path, f"{json.dumps(head, ensure_ascii=False)}\n{tail}", mode=0o600)
        return path

    def _prune_logs(self) -> None:
        with suppress(OSError):
            for old in sorted((self._directory / "watch").glob("restart-*.log"))[:-KEPT_LOGS]:
                old.unlink(missing_ok=True)


def _refuse_if_stopped_for_memory(container: Container, directory: Path) -> None:
    """Storing a log takes seconds, in which memory may have run out. Raises DeployError."""
    state = state_of(container)
    if state and (stop := load_stop(directory, since=state.started_at, of=state.name)):
        raise DeployError(f"it is stopped: {stop.why}", hint=stop.remedy)


def roll_back(directory: Path) -> str:
    """Run `glm4-deploy rollback` to the last good release that differs, gate included. Returns the new release's id.

    Raises:
        RollbackFailed: there is none, it did not pass, or another glm4-deploy is running. The message says what serves.
    """
    words = ("rollback", "--state-dir", str(directory), "--json")
    done = run_program(sys.executable, "-m", "glm4_deploy", *words, timeout=ROLLBACK_S)
    if done.ok:
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(done.stdout)["release"])
    said = [line for line in done.stderr.splitlines() if line.startswith("glm4-deploy: ")]
    raise RollbackFailed(one_line((said or [done.last_line])[-1].removeprefix("glm4-deploy: "), 400))
