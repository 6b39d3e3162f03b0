"""Put the systemd unit of a deployment in place, or take it away."""

import shutil
import subprocess
from pathlib import Path

from glm4_deploy.engine.compose import find_compose
from glm4_deploy.engine.state import Record
from glm4_deploy.errors import ExtraMissing, StorageError, UsageError
from glm4_deploy.files import write_text
from glm4_deploy.render.autostart import unit_file, unit_name

UNITS = Path("/etc/systemd/system")


def unit_of(record: Record) -> str:
    """The text of the unit for what was brought up here.

    Raises:
        UsageError: nothing was, or not by Compose.
    """
    if record.runner != "compose" or not record.files:
        raise UsageError("nothing was brought up here by Compose", hint="run `glm4-deploy up` first")
    command = find_compose()
    program = shutil.which(command[0]) or command[0]
    files = [str(Path(file).absolute()) for file in record.files]
    return unit_file(
        project=record.project,
        compose=(str(Path(program).absolute()), *command[1:]),
        files=files,
    )


def install(record: Record, units: Path = UNITS) -> Path:
    """Write the unit and enable it; it is started with the host, not now.

    Raises:
        UsageError, StorageError: no right to write there. ExtraMissing: this host has no systemd.
    """
    path = units / unit_name(record.project)
    write_text(path, unit_of(record))
    try:
        _systemctl("daemon-reload")
        _systemctl("enable", path.name)
    except ExtraMissing:
        path.unlink()
        raise
    return path


def remove(project: str, units: Path = UNITS) -> Path | None:
    """Disable and delete the unit; None where there was none. What runs goes on running."""
    path = units / unit_name(project)
    if not path.exists():
        return None
    _systemctl("disable", path.name)
    try:
        path.unlink()
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}", hint="run it as root") from error
    _systemctl("daemon-reload")
    return path


def _systemctl(*words: str) -> None:
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    except OSError:
        raise ExtraMissing("this host has no systemctl", hint="see the unit with: autostart install --print") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ExtraMissing(
            f"systemctl {words[0]}: {said[-1] if said else 'failed'}",
            hint="is systemd running here? See the unit with: autostart install --print",
        )
