"""Smoke checks on many endpoints in parallel, from an inventory; some behind SSH, nothing is installed there."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from glm4_deploy.errors import DeployError, Unreachable, UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Result, Status, fail, verdict

TUNNEL_S = 20.0
HINT = "for example:\n  hosts:\n    spark-1: {base_url: http://10.0.0.5:8080}\n    spark-2: {ssh: ops@spark-2}"
Destination = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$", max_length=255)]


class Host(BaseModel):
    """One endpoint. With `ssh` (user@host, or a name from ssh_config), base_url is as seen from that host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = "http://127.0.0.1:8080"
    ssh: Destination | None = None
    model: str | None = None
    api_key_file: Path | None = None


class Inventory(BaseModel):
    """hosts: name → endpoint; model: the expected served name, for hosts without their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[dict[str, Host], Field(min_length=1, max_length=10_000)]
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAnswer:
    """The result of one host. report: None if it could not be reached; row: its line in the table."""

    host: str
    row: Result
    report: SuiteReport | None


def read_inventory(path: Path) -> Inventory:
    """Read an inventory in YAML. Paths of key files are relative to it.

    Raises:
        UsageError: no such file, not YAML, an unknown key or a wrong value, with its location.
    """
    try:
        content = parse_yaml(read_text(path), path)
        inventory = Inventory.model_validate(content if content is not None else {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{path}: {where}: {first['msg']}", hint=HINT) from None
    for name, host in inventory.hosts.items():
        try:
            _ = ProbeTarget(base_url=host.base_url).root
        except UsageError as error:
            raise UsageError(f"{path}: hosts.{name}: {error.message}", hint=error.hint) from None
    return inventory


async def ask_fleet(
    inventory: Inventory,
    *,
    suite: Suite,
    only: tuple[str, ...] = (),
    keys_from: Path,
    at_once: int = 8,
    on_answer: Callable[[HostAnswer], None] | None = None,
) -> tuple[HostAnswer, ...]:
    """Run the suite against every host, at most `at_once` at a time; results in the order of the inventory.

    A host that cannot be reached is a failed row, never an exception: the other hosts are checked all the same.
    """
    slots = asyncio.Semaphore(at_once)

    async def check_host(name: str, host: Host) -> HostAnswer:
        async with slots:
            answer = await _ask(name, host, inventory.model, suite, only, keys_from)
        if on_answer:
            on_answer(answer)
        return answer

    return tuple(await asyncio.gather(*(check_host(name, host) for name, host in inventory.hosts.items())))


async def _ask(
    name: str, host: Host, model: str | None, suite: Suite, only: tuple[str, ...], keys_from: Path
) -> HostAnswer:
    try:
        key = SecretStr(read_text(keys_from / host.api_key_file)) if host.api_key_file else None
        async with _reach(host) as base_url:
            target = ProbeTarget(base_url=base_url, model=host.model or model, api_key=key)
            report = await run_suite(target, suite=suite, only=only)
    except DeployError as error:
        row = fail(error.message, remedy=error.hint, check=name)
        return HostAnswer(host=name, row=row, report=None)
    return HostAnswer(host=name, row=_row(name, report), report=report)


def _row(name: str, report: SuiteReport) -> Result:
    judged = [result for result in report.results if result.status is not Status.SKIPPED]
    bad = [result for result in judged if result.status in {Status.FAIL, Status.UNKNOWN}]
    problem = f"{bad[0].check}: {bad[0].observed or bad[0].reason}" if bad else ""
    version = next((fact.value for fact in report.engine if fact.name == "vLLM" and fact.value[:1].isdigit()), None)
    engine = f"{report.model or 'no model'}{f', vLLM {version}' if version else ''}"
    return Result(
        check=name,
        status=verdict(report.results),
        observed=problem or f"{engine}: {len(judged)} checks, no failure seen",
        remedy=bad[0].remedy if bad else "",
        seconds=report.seconds,
    )


@asynccontextmanager
async def _reach(host: Host) -> AsyncIterator[str]:
    """The address to use: the host's own, or the local end of an SSH tunnel that stays open for the block."""
    if host.ssh is None:
        yield host.base_url
        return
    parts = urlsplit(ProbeTarget(base_url=host.base_url).root)
    remote = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["ssh", "-N", "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ConnectTimeout=10"]
    pipe = asyncio.subprocess.PIPE
    try:
        tunnel = await asyncio.create_subprocess_exec(
            *command, "-L", f"{local}:{remote}", "--", host.ssh, stdin=asyncio.subprocess.DEVNULL, stderr=pipe
        )
    except OSError as error:
        raise UsageError("ssh is not installed here", hint="install an OpenSSH client") from error
    try:
        await _wait_open(local, tunnel, host.ssh)
        yield f"{parts.scheme}://{local}{parts.path}"
    finally:
        with suppress(ProcessLookupError):
            tunnel.terminate()
        await tunnel.wait()


async def _wait_open(local: str, tunnel: asyncio.subprocess.Process, destination: str) -> None:
    """Wait until the tunnel accepts connections.

    Raises:
        Unreachable: ssh exited (with its message), or the tunnel did not open in time.
    """
    hint = f"try it yourself: ssh -o BatchMode=yes {destination} true"
    address, _, port = local.partition(":")
    for _ in range(int(TUNNEL_S / 0.1)):
        if tunnel.returncode is not None:
            message = (await tunnel.stderr.read()).decode(errors="replace").strip() if tunnel.stderr else ""
            raise Unreachable(f"ssh {destination}: {message.splitlines()[-1] if message else 'ssh exited'}", hint=hint)
        with suppress(OSError):
            _, writer = await asyncio.open_connection(address, int(port))
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise Unreachable(f"ssh {destination}: no tunnel after {TUNNEL_S:.0f} s", hint=hint)
