"""The errors: each class owns its exit code, each instance says what to do next. May import nothing.

Exit codes are a public promise (README, "Exit codes"): unique, documented and stable. 0 is success. 1 is a negative
verdict (a failed check, a finding, drift) rather than an error; `Judged` carries such a verdict up to the command line.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Self


class DeployError(Exception):
    """Something that the user can act on.

    Args:
        message: what failed, with the value seen; one line.
        hint: the next action, or several; one line each, imperative.
        details: a few lines of evidence (the end of a log), shown between message and hints.
    """

    exit_code: ClassVar[int] = 70
    meaning: ClassVar[str] = "a defect in glm4-deploy itself: run again with --debug and report it"

    def __init__(self, message: str, *, hint: str | Iterable[str] = (), details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(filter(None, (hint,) if isinstance(hint, str) else hint))
        self.details = tuple(details)

    @property
    def hint(self) -> str:
        """The first hint, for places with room for only one."""
        return self.hints[0] if self.hints else ""

    def advise(self, *hints: str) -> Self:
        """The same error with further hints."""
        return type(self)(self.message, hint=(*self.hints, *hints), details=self.details)

    def blame(self, causes: Iterable[str], hint: str) -> Self:
        """The same error with what caused it in front of its other details and hints."""
        return type(self)(self.message, hint=(hint, *self.hints), details=(*causes, *self.details))

    def wire(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "message": self.message,
            "hints": list(self.hints),
            "details": list(self.details),
            "exit_code": self.exit_code,
        }


class Judged(DeployError):
    exit_code = 1
    meaning = "a negative verdict: a failed check, a finding, drift"


class UsageError(DeployError):
    exit_code = 2
    meaning = "wrong usage: an option, a setting or an input file"


class Unreachable(DeployError):
    exit_code = 3
    meaning = "nothing answers at the address"


class WrongEngine(DeployError):
    exit_code = 4
    meaning = "something answers, but it is not the engine or model expected"


class DockerMissing(DeployError):
    exit_code = 5
    meaning = "no Docker client, or no Docker engine answers"


class ComposeMissing(DeployError):
    exit_code = 6
    meaning = "the docker compose plugin is missing or too old"


class DockerDenied(DeployError):
    exit_code = 7
    meaning = "no permission to use the Docker socket"


class PortTaken(DeployError):
    exit_code = 8
    meaning = "the port is already taken"


class ModelMissing(DeployError):
    exit_code = 9
    meaning = "the model directory is missing, empty or unreadable, or a hub does not have the model for you"


class CheckpointRefused(DeployError):
    exit_code = 10
    meaning = "the checkpoint has a defect that stops this engine or corrupts its answers"


class EngineDied(DeployError):
    exit_code = 11
    meaning = "the engine died: it stopped or restarted during its start or a check"


class EngineTimeout(DeployError):
    exit_code = 12
    meaning = "the engine was not ready in time"


class PlanRefused(DeployError):
    exit_code = 13
    meaning = "the settings do not fit this machine (memory, GPU, driver)"


class Locked(DeployError):
    exit_code = 14
    meaning = "another glm4-deploy command is working on this deployment"


class RolledBack(DeployError):
    exit_code = 15
    meaning = "the new release failed; the last good one is running again"


class RollbackFailed(DeployError):
    exit_code = 16
    meaning = "the new release failed and the last good one could not be restored"


class ComposeFailed(DeployError):
    exit_code = 17
    meaning = "docker compose rejected the file or failed"


class StorageError(DeployError):
    exit_code = 18
    meaning = "a file could not be read or written (disk full, permission)"


class ImageMissing(DeployError):
    exit_code = 19
    meaning = "the image is not on this host and could not be pulled"


class ExtraMissing(DeployError):
    exit_code = 20
    meaning = "an optional component is not installed"
