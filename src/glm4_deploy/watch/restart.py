"""Restart the engine's container where that was asked for: log first, then backoff and a ceiling.

What a person stopped is left alone.
"""

import json
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from docker.errors import DockerException
from docker.models.containers import Container

from glm4_deploy.deploy.docker import ContainerState, connect, find_container, state_of
from glm4_deploy.deploy.state import hold_lock
from glm4_deploy.errors import DeployError
from glm4_deploy.files import write_text
from glm4_deploy.watch.judge import State

MENDABLE = frozenset({State.HUNG, State.BABBLING, State.UNREACHABLE})  # another server on the port is not
TAIL_LINES = 5000
KEPT = 10
STOP_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """backoff_s doubles with each restart of the last hour; grace_s: how long a start may take."""

    backoff_s: float = 60.0
    ceiling: int = 3
    grace_s: float = 900.0


class Policy:
    """Whether to restart now. Pure: time (seconds, monotonic) and the container's state come with the question."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._done: deque[float] = deque()

    def done(self, at: float) -> None:
        self._done.append(at)

    def recent(self, at: float) -> int:
        """Restarts in the last hour."""
        while self._done and at - self._done[0] >= 3600:
            self._done.popleft()
        return len(self._done)

    def why_not(
        self, state: State, at: float, container: ContainerState | None, *, up_s: float | None, since_s: float
    ) -> str | None:
        """None: restart it. Otherwise why it is left alone; empty where there is nothing to mend.

        up_s: seconds since the container's present start, None where it is not running. since_s: seconds since the
        state began: a container that is younger than that was not meant by it.
        """
        if state not in MENDABLE:
            return ""
        if container is None:
            return "there is no such container"
        if not container.running and _stopped_on_purpose(container):
            return f"it was stopped (exit code {container.exit_code}), and who stopped it may mean it"
        # A cold engine compiles in its first requests, for a minute or more, and stands as still as a hung one.
        if up_s is not None and up_s < self.rules.grace_s and (state is not State.BABBLING or up_s < since_s):
            return f"it started {up_s:.0f} s ago and may take {self.rules.grace_s:.0f} s"
        recent = self.recent(at)
        if recent >= self.rules.ceiling:
            return f"restarted {recent} times within an hour, which is the ceiling: it needs a person"
        wait = self.rules.backoff_s * 2 ** (recent - 1) if recent else 0.0
        rest = wait - (at - self._done[-1]) if recent else 0.0
        return "waiting between two restarts" if rest > 0 else None


def _stopped_on_purpose(container: ContainerState) -> bool:
    """Docker restarts by itself what dies under `always` or `unless-stopped`: what stays down there was stopped by
    somebody. Under the other policies the exit code tells: `docker stop` ends an engine with 0 or 143 (SIGTERM)."""
    kept_by_docker = container.restart_policy in ("always", "unless-stopped")
    return container.status in ("created", "paused") or kept_by_docker or container.exit_code in (None, 0, 143)


class Keeper(Protocol):
    """What keeps an engine alive: a container, in tests a stand-in."""

    def state(self) -> ContainerState | None: ...
    def restart(self, why: str) -> Path: ...


class ContainerKeeper:
    """One container, by its name or by its Compose project and service, looked up anew each time."""

    def __init__(self, *, name: str | None, project: str, service: str, directory: Path) -> None:
        self._client = connect(timeout=STOP_S + 60)
        self._name, self._project, self._service = name, project, service
        self._directory = directory

    def state(self) -> ContainerState | None:
        container = self._container()
        return state_of(container) if container else None

    def restart(self, why: str) -> Path:
        """Keep the end of its log, then restart it. Returns where the log is.

        Raises:
            DeployError: another glm4-deploy is at work, the log cannot be kept, or Docker refuses. Nothing was
                restarted then, except where Docker itself failed in the middle.
        """
        with hold_lock(self._directory, "watch --restart"):
            container = self._container()
            if container is None:
                raise DeployError("the container has gone")
            kept = self._keep_log(container, why)
            try:
                container.restart(timeout=STOP_S)
            except (DockerException, OSError) as error:
                raise DeployError(f"docker restart failed: {str(error)[:200]}") from error
        return kept

    def _container(self) -> Container | None:
        try:
            if self._name is None:
                return find_container(self._client, self._project, self._service)
            found = self._client.containers.list(all=True, filters={"name": f"^/{self._name}$"})
            return found[0] if found else None
        except (DockerException, OSError) as error:
            raise DeployError(f"the Docker engine does not answer: {str(error)[:200]}") from error

    def _keep_log(self, container: Container, why: str) -> Path:
        folder = self._directory / "watch"
        now = datetime.now(UTC)
        path = folder / f"restart-{now:%Y%m%dT%H%M%SZ}.log"
        try:
            tail = container.logs(tail=TAIL_LINES, timestamps=True).decode("utf-8", errors="replace")
        except (DockerException, OSError) as error:
            raise DeployError(f"its log cannot be read: {str(error)[:200]}") from error
        head = {"restarted": now.isoformat(timespec="seconds"), "container": container.name, "why": why}
        write_text(path, f"{json.dumps(head, ensure_ascii=False)}\n{tail}", mode=0o600)
        for old in sorted(folder.glob("restart-*.log"))[:-KEPT]:
            old.unlink(missing_ok=True)
        return path
