"""What a watch that is killed must not forget: what it restarted, so that its limits hold for the next one too."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.errors import StorageError
from glm4_deploy.files import write_text
from glm4_deploy.watch.judge import State
from glm4_deploy.watch.restart import Policy, Rules

BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Which start of this host it is: monotonic times of one start can be compared, also between processes."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acts:
    """Restarts and rollbacks, in monotonic seconds of one start of the host, which no change of the date moves."""

    boot: str = ""
    done: tuple[FiniteFloat, ...] = ()
    babbled: FiniteFloat | None = None
    rolled_back: tuple[FiniteFloat, ...] = ()


_CODEC: TypeAdapter[Acts] = TypeAdapter(Acts)


class KeptPolicy(Policy):
    """A policy whose acts are on disk before they are done: one that cannot be written is not done.

    After a start of the host it starts over, as the engine does.
    """

    def __init__(self, rules: Rules, file: Path, held: Callable[[ContainerState], str] = lambda _: "") -> None:
        super().__init__(rules, held)
        self._file = file
        acts = Acts()
        with suppress(OSError, ValidationError):
            acts = _CODEC.validate_json(file.read_bytes())
        if acts.boot and acts.boot == boot_id():
            self._done.extend(acts.done)
            self._babbled, self._rolled_back = acts.babbled, list(acts.rolled_back)

    def done(self, at: float, state: State) -> None:
        """As for any policy. Raises StorageError: do not restart."""
        with self._undone_unless_saved():
            super().done(at, state)

    def rolled_back(self, at: float) -> None:
        """As for any policy. Raises StorageError: do not roll back."""
        with self._undone_unless_saved():
            super().rolled_back(at)

    @contextmanager
    def _undone_unless_saved(self) -> Iterator[None]:
        before = tuple(self._done), self._babbled, list(self._rolled_back)
        try:
            yield
            self._save()
        except StorageError:
            self._done.clear()
            self._done.extend(before[0])
            self._babbled, self._rolled_back = before[1:]
            raise

    def _save(self) -> None:
        acts = Acts(boot=boot_id(), done=tuple(self._done), babbled=self._babbled, rolled_back=tuple(self._rolled_back))
        write_text(self._file, json.dumps(asdict(acts)), mode=0o600)
