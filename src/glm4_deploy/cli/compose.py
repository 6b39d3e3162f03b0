"""`glm4-deploy compose`: what Docker Compose calls for a service with `provider: {type: glm4-deploy}`.

The protocol is Compose's own (extension.md of docker/compose): options come as `--NAME=VALUE`, the service's name
last; stdout is JSON lines with `type` and `message`. After a line of type `error`, Compose kills its provider.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from docker.errors import APIError, NotFound

from glm4_deploy.cli.deploy import bring_up
from glm4_deploy.cli.params import Requested
from glm4_deploy.cli.progress import Progress
from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.docker import connect
from glm4_deploy.deploy.outcome import StartResult
from glm4_deploy.deploy.state import forget_journal, hold_lock, load_record
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.plan.spec import CONTAINER_PORT
from glm4_deploy.settings import Settings
from glm4_deploy.text import did_you_mean, one_line

compose = typer.Typer(
    rich_markup_mode=None,
    help="""Manage a gated engine as a service of any Compose project.

Docker Compose calls it for a service with `provider: {type: glm4-deploy}`; you do not need to run it yourself.

Example: docker compose up
""",
)
OWN = ("config", "override", "runner", "state_dir", "timeout")  # options of ours that are no settings
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
Project = Annotated[str, typer.Option("--project-name", help="The project that depends on the engine.")]
ANY = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}


@compose.callback()
def group(
    ctx: typer.Context,
    project: Project = "",
) -> None:
    ctx.obj = project


@compose.command(context_settings=ANY)
def up(ctx: typer.Context) -> None:
    """Start and gate the service's engine.

    It is attached to the project's network, and Compose receives its address. Arguments: any setting as --NAME=VALUE,
    and the service's name last.
    """
    with _lines() as lines:
        service, options = _parse(ctx.args)
        project = _named(ctx.obj)
        start = _up(project, service, options, lines)
        for name, value in _variables(project, service, start, lines):
            _say("setenv", f"{name}={value}")


@compose.command(context_settings=ANY)
def down(ctx: typer.Context) -> None:
    """Stop and remove the service's engine."""
    with _lines() as lines:
        service, options = _parse(ctx.args)
        state = _state(_named(ctx.obj), service, options)
        if load_record(state) is None:
            lines.note("nothing was started")
            return
        with hold_lock(state, "compose down"):
            if (record := load_record(state)) is not None:
                recorded_engine(record, state).remove()
            forget_journal(state)


@compose.command(context_settings=ANY)
def stop(ctx: typer.Context) -> None:
    """Stop the service's engine until the next `up`."""
    with _lines():
        service, options = _parse(ctx.args)
        state = _state(_named(ctx.obj), service, options)
        if load_record(state) is None:
            return
        with hold_lock(state, "compose stop"):
            if (record := load_record(state)) is not None:
                recorded_engine(record, state).stop()


@compose.command()
def metadata() -> None:
    """Tell Compose that `stop` is supported.

    No parameters are listed: Compose would silently drop every option that is not, so that a misspelt setting had no
    effect. Without a list it passes all, and a wrong one is refused by name.
    """
    typer.echo(json.dumps({"stop": {"parameters": []}}))


def _up(project: str, service: str, options: dict[str, list[str]], lines: "ComposeMessages") -> StartResult:
    own = {name: options[name] for name in OWN if name in options}
    sets = [f"{name}={','.join(values)}" for name, values in options.items() if name not in OWN]
    names = {"project": f"{project}-{service}", "container_name": f"{project}-{service}"}
    requested = Requested(flags=names, sets=tuple(sets), config=Path(own["config"][-1]) if "config" in own else None)
    result = bring_up(
        requested,
        lines,
        state_dir=_state(project, service, options),
        runner=own.get("runner", ["compose"])[-1],
        overrides=tuple(map(Path, own.get("override", ()))),
        timeout=_seconds(own["timeout"][-1]) if "timeout" in own else None,
    )
    if result.error is not None:
        raise result.error
    return result.start


def _variables(project: str, service: str, start: StartResult, lines: "ComposeMessages") -> Iterator[tuple[str, str]]:
    """What the services that depend on this one get, each after the service's name: MODEL_URL of `model`."""
    endpoint, started = start.endpoint, start.started
    url = f"{endpoint.base_url}/v1"
    if endpoint.in_container and started is not None and not endpoint.replicas:
        attached = _attach(f"{project}_default", started.id, service)
        url = f"http://{service}:{CONTAINER_PORT}/v1" if attached else url
    if not url.startswith(f"http://{service}:"):
        lines.note(f"{project}_default has no part in it: {url} is for this host, or network_mode: host")
    yield "URL", url
    yield "HOST_URL", f"{endpoint.base_url}/v1"
    yield "NAME", endpoint.model
    yield "RELEASE", start.release


def _attach(network: str, container: str, alias: str) -> bool:
    """Let the project's services reach the container by the service's name; False if there is no such network."""
    client = connect()
    try:
        found = client.networks.get(network)
    except NotFound:
        return False
    with suppress(APIError):  # 403: it is there already
        found.connect(container, aliases=[alias])
    found.reload()
    return any((one.id or "").startswith(container) for one in found.containers)


def _parse(words: list[str]) -> tuple[str, dict[str, list[str]]]:
    """The service's name, and the values of each option.

    Raises:
        UsageError: an option that is not a setting, or not a service.
    """
    known = (*Settings.model_fields, "image", *OWN)
    options: dict[str, list[str]] = {}
    services = [word for word in words if not word.startswith("--")]
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        key = name.replace("-", "_")
        if not equals or key.partition(".")[0] not in (*known, "env", "args"):
            hint = did_you_mean(key, known) or "any setting of docs/reference/settings.md"
            raise UsageError(f"{name[:60]!r} is not an option of this provider", hint=hint)
        options.setdefault(key, []).append(value)
    if len(services) != 1:
        raise UsageError(f"{len(services)} services are named", hint="Docker Compose calls this, with one")
    return _named(services[0]), options


def _named(name: Any) -> str:
    """A project or service. Raises UsageError for a name that Compose would not give: it becomes part of a path."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"{str(name)[:60]!r} is not a valid project or service name", hint="Docker Compose calls this")
    return name


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,5}", text):
        raise UsageError(f"timeout {text[:20]!r} is not a number of seconds", hint="for example timeout: 900")
    return float(text)


def _state(project: str, service: str, options: dict[str, list[str]]) -> Path:
    """The same from every directory, because `docker compose -p NAME down` may be called anywhere."""
    if "state_dir" in options:
        return Path(options["state_dir"][-1])
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(home) / "glm4-deploy/compose" / project / service


# What Compose reads.


def _say(kind: str, message: str) -> None:
    typer.echo(json.dumps({"type": kind, "message": message}))


class ComposeMessages(Progress):
    """Progress as messages: Compose shows the last one beside the service."""

    def _line(self, text: str) -> None:
        _say("info", one_line(text))

    def _write(self, text: str) -> None:  # type: ignore[override]  # nothing is rewritten here
        return


@contextmanager
def _lines() -> Iterator[ComposeMessages]:
    """An error is the last message: its text, its causes and what to do, then its exit code."""
    lines = ComposeMessages()
    try:
        yield lines
    except DeployError as error:
        text = "\n".join([error.message, *(f"| {one}" for one in error.details), *(f"→ {one}" for one in error.hints)])
        _say("error", text)
        raise typer.Exit(error.exit_code) from None
    finally:
        lines.close()
