"""`glm4-deploy support-bundle`: what this kit's other commands say, in one archive for others to read."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy import __version__
from glm4_deploy.cli.params import STATE, Json, StateDir
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.deploy.releases import BOOT_LOG, REPORT, Release, Store
from glm4_deploy.deploy.state import Record, load_record
from glm4_deploy.deploy.support import (
    LOG_BYTES,
    Masker,
    Part,
    document,
    read_compose_file,
    read_kept,
    secrets_of,
    write_support_bundle,
)
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.files import ensure_writable
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import read_compose, read_docker, read_host
from glm4_deploy.logs.noise import without_prompts
from glm4_deploy.render.compose import COMPOSE
from glm4_deploy.report.wire import dumps
from glm4_deploy.run import run_program
from glm4_deploy.settings import FILE

SECONDS = 50.0  # for one command: less than for all parts, so that none is left running
LAST_LINES = "2000"


def support_bundle(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", dir_okay=False, help="The archive to write.")
    ] = Path("glm4-support.tar.gz"),
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Write one archive for a forum or an issue; secrets, names and addresses are masked.

    It holds versions, the reports of doctor, plan, status and diagnose, the releases, the settings and the Compose
    files in use, the logs of the engine and of its last start, and that start's smoke report: plain text, at most 5 MB.
    Nothing is sent anywhere. Look through it before you share it.

    Exit code 0 once it is written, even if parts could not be had: it says which, and why. 18: it cannot be written.

    Example: glm4-deploy support-bundle -o glm4-support.tar.gz
    """
    ensure_writable(output)
    record = None
    with suppress(DeployError):  # a damaged record: `status` says so
        record = load_record(state_dir)
    newest = next(iter(reversed(Store(state_dir).releases())), None)
    with tempfile.TemporaryDirectory(prefix="glm4-support-") as scratch:
        parts = tuple(_parts(state_dir, record, newest, Path(scratch)))
        masker = Masker.of_this_host(secrets=_secrets(state_dir, record), keep=_services(state_dir, record))
        written = write_support_bundle(output, parts, masker)
    if json_:
        typer.echo(dumps(written))
        return
    for row in written.rows():
        typer.echo(row)
    typer.echo(f"\n{output}: {written.size:,} bytes. Look through it before you share it: a name in free text stays.")


def _parts(state_dir: Path, record: Record | None, newest: Release | None, scratch: Path) -> Iterator[Part]:
    """In the order of the archive. newest: the last start that was judged; its settings are those to check."""
    state = ("--state-dir", str(state_dir))
    settings: tuple[str, ...] = ()
    if newest is not None:
        (scratch / "settings.yaml").write_text(json.dumps(newest.settings), encoding="utf-8")
        settings = ("--config", str(scratch / "settings.yaml"))
    yield Part(name="versions.json", read=partial(_versions, record, newest))
    # JSON: of a name that a table's column wraps, neither half would be masked.
    yield Part(name="doctor.json", read=partial(_output, "doctor", "--json", *settings, *state))
    for name, words in (("plan", settings), ("status", ()), ("diagnose", ())):
        yield Part(name=f"{name}.txt", read=partial(_report, name, *words, *state))
    yield Part(name="releases.json", read=partial(_output, "releases", "--json", *state))
    yield Part(name="settings.yaml", read=partial(read_kept, FILE))
    for number, path in enumerate(_files(state_dir, record), start=1):
        yield Part(name=f"compose-{number}.yaml", read=partial(read_compose_file, path))
    yield Part(name="engine.log", read=partial(_engine_log, *state), limit=LOG_BYTES)
    yield Part(name="boot.log", read=partial(_of_release, state_dir, newest, BOOT_LOG), limit=LOG_BYTES)
    yield Part(name="failed.log", read=partial(_failed_log, state_dir, newest), limit=LOG_BYTES)
    yield Part(name="smoke.json", read=partial(_of_release, state_dir, newest, REPORT))


def _files(state_dir: Path, record: Record | None) -> tuple[Path, ...]:
    """The Compose files in use, as they were given to `docker compose -f`."""
    return tuple(map(Path, record.files)) if record is not None and record.files else (state_dir / COMPOSE,)


# This kit's own commands, each in its own process: one that fails or hangs costs only its part.


def _run(*words: str) -> tuple[str, str]:
    """What a command prints, and how it ends. Raises UsageError if it prints nothing."""
    done = run_program(sys.executable, "-P", "-m", "glm4_deploy", *words, timeout=SECONDS)
    if not done.stdout.strip():
        said = next((line for line in done.stderr.splitlines() if line.startswith("glm4-deploy: ")), done.last_line)
        raise UsageError(said.removeprefix("glm4-deploy: ") or "it printed nothing")
    return done.stdout, f"{done.stderr}exit code {done.code}\n"


def _report(*words: str) -> str:
    return f"$ glm4-deploy {words[0]}\n" + "".join(_run(*words))


def _output(*words: str) -> str:
    return _run(*words)[0]


def _engine_log(*state: str) -> str:
    return _log(_output("logs", "--tail", LAST_LINES, *state))


# Files.


def _of_release(state_dir: Path, newest: Release | None, name: str) -> str:
    if newest is None:
        raise UsageError("no start of this deployment is recorded")
    text = read_kept(Store(state_dir).root / newest.id / name)
    return _log(text) if name == BOOT_LOG else text


def _failed_log(state_dir: Path, newest: Release | None) -> str:
    text, boot = _log(read_kept(state_dir / "failed.log")), ""
    with suppress(DeployError):
        boot = _of_release(state_dir, newest, BOOT_LOG)
    if text == boot:
        raise UsageError("it is the same as boot.log")
    return text


def _log(text: str) -> str:
    """A log without what users asked and the model answered."""
    return without_prompts(text.encode()).decode()


# What is a secret here, and what is not.


def _secrets(state_dir: Path, record: Record | None) -> frozenset[str]:
    """The values of the environment, the settings and the Compose files that are named like a secret, and the key."""
    documents = [document(path) for path in (FILE, *_files(state_dir, record))]
    environment = {name: value for name, value in os.environ.items() if name != "PWD"}  # the working directory
    found = {*secrets_of(environment), *(secret for one in documents for secret in secrets_of(one))}
    with suppress(DeployError):
        found |= set(secrets_of(read_kept(Path(".env")).splitlines()))
    with suppress(DeployError):
        key = secret_key(record.endpoint.api_key_file) if record is not None else None
        found |= {key.get_secret_value()} if key is not None else set()
    return frozenset(found)


def _services(state_dir: Path, record: Record | None) -> Iterator[str]:
    """The services of the Compose files, which are hosts to each other."""
    for path in _files(state_dir, record):
        content = document(path)
        services = content.get("services") if isinstance(content, dict) else None
        yield from services if isinstance(services, dict) else ()


def _versions(record: Record | None, newest: Release | None) -> str:
    gpu, docker, compose, host = read_gpus(), read_docker(""), read_compose(), read_host()
    started = newest or record
    vllm = started.endpoint.vllm if started is not None else None
    found: dict[str, Any] = {
        "glm4_deploy": __version__,
        "python": platform.python_version(),
        "machine": host.machine,
        "kernel": host.kernel,
        "docker": docker.version or docker.trouble,
        "compose": ".".join(map(str, compose.version)) if compose.version else compose.trouble,
        "driver": gpu.driver or gpu.trouble,
        "gpus": [one.name for one in gpu.gpus],
        "vllm_planned": ".".join(map(str, vllm)) if vllm else None,
        "vllm_in_log": newest and newest.engine.get("version"),
        "image": newest and newest.image,
    }
    return dumps(found) + "\n"
