"""What is risky in a vLLM Compose file, beyond compose-lint's rules. May import `catalog`, `run`.

Each rule is one function in RULES. Sources: vLLM's security guide (only /v1 needs the key; development mode; media
paths), vLLM's argument defaults (allowed origins are *), docs/how-to/security.md.
"""

import itertools
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm4_deploy.catalog.changes import flag_trouble, variable_trouble
from glm4_deploy.catalog.images import find_image
from glm4_deploy.catalog.rows import mistaken_variables, variables
from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.result import Result, Severity, Status, ok, skipped, unknown, warn
from glm4_deploy.run import RunFailure, run_program
from glm4_deploy.text import secret_name

# compose-lint (PyPI) finds the risks of any container. Its JSON output is read in version 2.

LIMIT_SECONDS = 60
MAX_BYTES = 1 << 20
# Replacements for compose-lint's advice where that is a block of YAML or would stop or cripple an engine.
REMEDIES = {
    "CL-0002": "remove privileged: true; name the devices it needs (GPUs: deploy.resources.reservations.devices)",
    "CL-0003": "set security_opt: [no-new-privileges:true]",
    "CL-0006": "set cap_drop: [ALL]; add back (cap_add) only what the service fails without",
    "CL-0007": "set read_only: true, and a tmpfs or volume for each path it writes (an engine: its caches)",
    "CL-0018": "remove user: root, or name another user that can write to the volumes",
    "CL-0026": "set mem_limit and cpus above the usage observed: an engine at its limit is killed;"
    " page cache and (on unified memory) GPU memory count",
}
_MORE = re.compile(r"\s*(?:Full guide|Details): .*", re.DOTALL)


def lint(file: Path) -> tuple[Result, ...]:
    """Run compose-lint on this file only: no override file, no .env, no configuration of the audited project.

    What it could not read (include, extends, an unreadable env file) becomes an `unknown` row. Its parser limits what a
    hostile file can expand to, so it must read the file before anything else does.

    Raises:
        UsageError: not a readable Compose file.
    """
    # -I: nothing next to the audited file is imported. With our empty configuration, theirs cannot silence a rule.
    words = [sys.executable, "-I", "-m", "compose_lint", "check", "--format", "json", "--no-merge-overrides"]
    words += ["--no-env", "--allow-partial-coverage", str(file.absolute()), "--config"]
    with tempfile.NamedTemporaryFile(suffix=".yml") as nothing:
        done = run_program(*words, nothing.name, timeout=LIMIT_SECONDS)
    if done.failure is RunFailure.TIMEOUT:
        raise UsageError(f"{file} took more than {LIMIT_SECONDS} s to read", hint="is it a Compose file?")
    return _parse(done.stdout, done.stderr, file)


def _parse(stdout: str, stderr: str, file: Path) -> tuple[Result, ...]:
    try:
        content: dict[str, Any] = json.loads(stdout)
        errors = [str(row["message"]) for row in content["errors"]]
        findings = tuple(_finding(row) for row in content["findings"])
        gaps = tuple(_gap(str(row.get("message", row))) for row in content["warnings"])
    except (ValueError, KeyError, TypeError):
        last = (stderr.strip().splitlines() or ["no output"])[-1]
        raise UsageError(f"cannot audit {file}: {last[:200]}", hint="check that it is a Compose file") from None
    if errors:
        raise UsageError(
            f"cannot audit {file}: {' '.join(errors[0].split())[:200]}", hint="check that it is a Compose file"
        )
    return findings + gaps


def _finding(row: dict[str, Any]) -> Result:
    return warn(
        str(row["message"]),
        remedy=REMEDIES.get(str(row["rule_id"])) or remedy(str(row.get("fix") or "")),
        severity=Severity(row["severity"]),
        check=str(row["rule_id"]),
        source=str(row["service"]),
        line=int(row["line"] or 0) or None,
    )


def _gap(message: str) -> Result:
    return unknown(message, "audit the merged file: docker compose config", check="not-seen")


def remedy(fix: str) -> str:
    """The prose at the start of compose-lint's advice, on one line, without the reference to its guide."""
    first = _MORE.sub("", fix.partition("\n\n")[0])
    prose = itertools.takewhile(lambda line: not line.startswith((" ", "\t")), first.splitlines())
    return " ".join(" ".join(prose).split()).removesuffix(":")


# A service of any Compose file, as far as the audit reads it: command, environment, ports. Pure.

SEPARATE = re.compile(r"^--[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A published port.

    Attributes:
        text: the port as written in the file.
        host: the address it is published on; "" for every interface, None if a variable decides it.
    """

    text: str
    host: str | None

    @property
    def open(self) -> bool:
        return self.host is not None and not (
            self.host.startswith("127.") or self.host in ("::1", "[::1]", "localhost")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceUnderAudit:
    """One service of the audited file.

    Attributes:
        raw: the service as parsed.
        words: entrypoint and command as the shell would split them, including the script of an inner `sh -c`.
        environment: of the service, and what its command assigns before it starts the engine.
    """

    name: str
    raw: Mapping[str, Any]
    image: str
    words: tuple[str, ...]
    environment: Mapping[str, str | None]
    ports: tuple[Port, ...]

    @property
    def is_vllm(self) -> bool:
        """Judged by the command and the variables; by the image if the command does not name another program."""
        if any("vllm_router" in word for word in self.words):
            return False  # it forwards requests and has none of an engine's options
        if any(name.startswith("VLLM_") for name in self.environment):
            return True
        other = len(self.words) > 1 and self.words[0].rpartition("/")[2] in ("python", "python3", "sh", "bash")
        return any("vllm" in word for word in self.words) or ("vllm" in self.image.lower() and not other)

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the flags in its command, without their dashes."""
        heads = (word.partition("=")[0].replace("_", "-") for word in self.words if SEPARATE.match(word))
        return tuple(head.removeprefix("--") for head in heads)

    def flag(self, *names: str) -> str | None:
        """The value of `--name VALUE` or `--name=VALUE`: "" for a flag without a value, None if it is absent.

        argparse also accepts the beginning of a name, as in `--trust-remote`.
        """
        for index, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            dashed = name.replace("_", "-")
            if not any(
                f"--{known}" == dashed or (len(dashed) > 6 and f"--{known}".startswith(dashed)) for known in names
            ):
                continue
            follower = self.words[index + 1] if index + 1 < len(self.words) else ""
            return value if equals else "" if SEPARATE.match(follower) else follower
        return None


def services(content: object) -> Iterator[ServiceUnderAudit]:
    """The services of a parsed file. A part whose type Compose does not allow is treated as absent."""
    mapping = content.get("services") if isinstance(content, dict) else None
    for name, raw in mapping.items() if isinstance(mapping, dict) else ():
        if isinstance(raw, dict):
            outer = (*_words(raw.get("entrypoint")), *_words(raw.get("command")))
            yield ServiceUnderAudit(
                name=_text(name),
                raw=raw,
                image=_text(raw.get("image")),
                words=tuple(_inner(outer)),
                environment={**_environment(raw.get("environment")), **dict(_assignments(outer))},
                ports=tuple(_ports(raw)),
            )


MAX_PORT = 300  # characters of `ADDRESS:HOST:CONTAINER`, with variables
MAX_TEXT = 64_000  # characters of one value: a longer command line is none


def _text(value: object) -> str:
    return str(value)[:MAX_TEXT] if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _words(value: object) -> list[str]:
    if isinstance(value, list):
        return [_text(item) for item in value]
    try:
        return shlex.split(_text(value))
    except ValueError:
        return _text(value).split()


def _inner(words: tuple[str, ...]) -> Iterator[str]:
    """The words, with the script after a `-c` split too: it may contain flags."""
    for before, word in zip(("", *words), words, strict=False):
        yield word
        if before in SCRIPT and " " in word:
            yield from _script(word)


SCRIPT = ("-c", "-lc", "-ec", "-exc", "-xc")
OPERATORS = frozenset({";", ";;", "&", "&&", "|", "||", "(", ")", "{", "}", "!", "then", "do", "else"})
TRANSPARENT = frozenset({"export", "env", "exec", "declare", "-x"})  # what follows is still at a command's start
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def _script(text: str) -> list[str]:
    """A shell script's words and operators, without its comments."""
    lexer = shlex.shlex(text.replace("\\\n", " ").replace("\n", " ;\n"), posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    try:
        return list(lexer)
    except ValueError:  # a quote that is not closed
        return text.split()


def _assignments(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """NAME=VALUE where the shell or `env` would assign it: at the start of a command, not in an echo or a comment."""
    for before, word in zip(("", *words), words, strict=False):
        if before in SCRIPT:
            yield from _assignments(tuple(_script(word)))
    start = True
    for word in words:
        if word in OPERATORS:
            start = True
        elif start and (match := ASSIGNMENT.fullmatch(word)):
            yield match[1], match[2]
        elif word.rpartition("/")[2] not in TRANSPARENT:
            start = False


def _environment(value: object) -> Mapping[str, str | None]:
    if isinstance(value, dict):
        return {_text(name): _scalar(item) for name, item in value.items()}
    pairs = [_text(item).partition("=") for item in value] if isinstance(value, list) else []
    return {name: item if equals else None for name, equals, item in pairs}


def _scalar(value: object) -> str | None:
    return str(value).lower() if isinstance(value, bool) else None if value is None else _text(value)


def _ports(raw: Mapping[str, Any]) -> Iterator[Port]:
    if raw.get("network_mode") == "host":
        yield Port(text="network_mode: host", host="")
    listed = raw.get("ports")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict):
            host = _text(item.get("host_ip"))
            yield Port(
                text=f"{host or '*'}:{_text(item.get('published'))}:{_text(item.get('target'))}", host=_known(host)
            )
        else:
            yield Port(text=_text(item)[:MAX_PORT], host=_host(_text(item)[:MAX_PORT]))


def _host(text: str) -> str | None:
    """`8080:8080` → "", `127.0.0.1:8080:8080` → 127.0.0.1, `[::1]:80:80` → [::1], `${BIND}:80:80` → None."""
    plain = re.sub(r"\$\{[^}]*\}|\$\w+", "$", text)
    head, _, _ = plain.rpartition(":")
    host, _, _ = head.rpartition(":")
    return _known(host)


def _known(host: str) -> str | None:
    return None if "$" in host else host


TRUE = ("1", "true", "yes", "on")


Rule = Callable[[ServiceUnderAudit], Iterator[Result]]


def audit_file(path: Path, fail_on: Severity) -> tuple[Result, ...]:
    """compose-lint's findings and ours, worst first; findings of severity `fail_on` or above fail.

    A group of rules without findings is reported in one `ok` row, so that the report shows that it ran.

    Raises:
        UsageError: not a readable Compose file, or a malicious one.
    """
    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise UsageError(
            f"{path} is not a file of at most {MAX_BYTES >> 20} MiB, so not a Compose file", hint="check the path"
        )
    text = read_text(path)
    common = lint(path)  # first: it rejects files that would explode when parsed
    content = parse_yaml(text, path)
    specific = audit_compose(content)
    rows = [_graded(row, fail_on) for row in (*common, *specific)]
    rows.sort(key=lambda row: (row.severity.rank if row.severity else len(Severity), row.source, row.check))
    if not common:
        rows.append(ok("nothing found", check="any-container"))
    if not has_vllm(content):
        rows.append(skipped("no service looks like vLLM: only the rules for any container apply", check="vllm"))
    elif not specific:
        rows.append(ok(f"nothing found by {len(RULES)} rules", check="vllm"))
    return tuple(rows)


def _graded(row: Result, fail_on: Severity) -> Result:
    fails = row.severity is not None and row.severity.rank <= fail_on.rank
    return replace(row, status=Status.FAIL) if fails else row


def audit_compose(content: object) -> tuple[Result, ...]:
    """Apply every rule to every service that looks like vLLM: one warning per risk."""
    return tuple(
        replace(row, check=name, source=service.name)
        for service in services(content)
        if service.is_vllm
        for name, rule in RULES.items()
        for row in rule(service)
    )


def has_vllm(content: object) -> bool:
    return any(service.is_vllm for service in services(content))


def _has_key(service: ServiceUnderAudit) -> bool:
    """vLLM reads an empty key as no key."""
    return bool(service.flag("api-key") or service.environment.get("VLLM_API_KEY"))


def _open_without_key(service: ServiceUnderAudit) -> Iterator[Result]:
    for port in service.ports:
        if port.host is None:
            yield unknown(f"{port.text}: a variable decides the address", "write the address into the file")
        elif port.open and not _has_key(service):
            risk = f"{port.text}: anyone who can reach this host can use the engine, without a key"
            yield warn(
                risk, remedy="publish on 127.0.0.1, or put a gateway with keys in front", severity=Severity.CRITICAL
            )


def _open_paths(service: ServiceUnderAudit) -> Iterator[Result]:
    if _has_key(service) and any(port.open for port in service.ports):
        risk = "the key protects only /v1: /metrics, /tokenize, /invocations and others answer without it"
        yield warn(risk, remedy="publish on 127.0.0.1 and let a gateway forward only /v1", severity=Severity.HIGH)


def _secret_in_sight(service: ServiceUnderAudit) -> Iterator[Result]:
    if service.flag("api-key") not in (None, ""):
        risk = "--api-key on the command line: `docker inspect` and `ps` show it"
        yield warn(risk, remedy="use a secret file that the command reads into VLLM_API_KEY", severity=Severity.HIGH)
    build = service.raw.get("build")
    arguments = _environment(build.get("args")) if isinstance(build, dict) else {}
    places = {
        "the value of": service.environment,
        "the label": _environment(service.raw.get("labels")),
        "the build argument": arguments,
    }
    for place, values in places.items():
        for name, value in values.items():
            if secret_name(name) and value and "$" not in value:
                risk = f"{place} {name} is in the file and every copy of it, and `docker inspect` shows it"
                yield warn(risk, remedy="use a secret file", severity=Severity.HIGH)


def _origins(service: ServiceUnderAudit) -> Iterator[Result]:
    origins = service.flag("allowed-origins")
    if not _has_key(service) and (origins is None or "*" in origins):
        risk = "no key, and every origin is allowed: any web page opened on this host can use the engine"
        yield warn(risk, remedy='set a key, or --allowed-origins ["http://localhost"]', severity=Severity.MEDIUM)


def _remote_code(service: ServiceUnderAudit) -> Iterator[Result]:
    value = service.flag("trust-remote-code")
    if value is not None and value.lower() != "false":
        risk = "--trust-remote-code runs Python from the checkpoint"
        yield warn(risk, remedy="remove it: GLM-4-9B-chat-hf does not need it", severity=Severity.HIGH)


def _risky_variables(service: ServiceUnderAudit) -> Iterator[Result]:
    risks = {
        "VLLM_SERVER_DEV_MODE": "opens development endpoints (/sleep, /reset_prefix_cache and others) to every client",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "lets messages be unpickled, which runs code",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets every client load adapters from paths of its choice",
    }
    for name, why in risks.items():
        if (service.environment.get(name) or "").lower() in TRUE:
            yield warn(f"{name} {why}", remedy="remove it", severity=Severity.HIGH)


def _local_media(service: ServiceUnderAudit) -> Iterator[Result]:
    path = service.flag("allowed-local-media-path")
    if path:
        yield warn(
            f"--allowed-local-media-path {path}: clients can read files there",
            remedy="remove it: a text model does not need it",
            severity=Severity.HIGH,
        )


def _telemetry(service: ServiceUnderAudit) -> Iterator[Result]:
    names = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_DO_NOT_TRACK")
    if not any((service.environment.get(name) or "").lower() in TRUE for name in names):
        yield warn(
            "vLLM sends usage statistics to its developers",
            remedy='set VLLM_NO_USAGE_STATS: "1"',
            severity=Severity.LOW,
        )


def _writable_model(service: ServiceUnderAudit) -> Iterator[Result]:
    served = dict(zip(service.words, service.words[1:], strict=False)).get("serve", "")
    model = service.flag("model") or served
    for target in _writable_mounts(service):
        if _inside(model, target):
            yield warn(
                f"the model directory {target} is writable",
                remedy="mount it read-only (:ro)",
                severity=Severity.MEDIUM,
            )


def _writable_code(service: ServiceUnderAudit) -> Iterator[Result]:
    for target in _writable_mounts(service):
        for name in ("tool-parser-plugin", "reasoning-parser-plugin", "chat-template"):
            if _inside(service.flag(name) or "", target):
                yield warn(
                    f"--{name} is in {target}, which is writable: a program in the container can change what the "
                    "engine runs at its next start",
                    remedy="mount it read-only (:ro)",
                    severity=Severity.MEDIUM,
                )


def _writable_mounts(service: ServiceUnderAudit) -> Iterator[str]:
    """Where the service mounts something that it may write to."""
    volumes = service.raw.get("volumes")
    for item in volumes if isinstance(volumes, list) else ():
        if isinstance(item, dict):
            target, read_only = str(item.get("target", "")), item.get("read_only") is True
        else:
            parts = str(item).split(":") if isinstance(item, str) else []
            target, read_only = (parts[1] if len(parts) > 1 else ""), len(parts) > 2 and "ro" in parts[2].split(",")
        if target and not read_only:
            yield target


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _health(service: ServiceUnderAudit) -> Iterator[Result]:
    if not isinstance(service.raw.get("healthcheck"), dict):
        yield warn(
            "no health check: an engine that hangs during its start looks healthy",
            remedy="add one, as `glm4-deploy render` does",
            severity=Severity.LOW,
        )


def _log_rotation(service: ServiceUnderAudit) -> Iterator[Result]:
    logging = service.raw.get("logging")
    options = logging.get("options") if isinstance(logging, dict) else None
    if not (isinstance(options, dict) and "max-size" in options) and not (
        isinstance(logging, dict) and "driver" in logging
    ):
        yield warn(
            "Docker's log grows without limit",
            remedy="set the logging options max-size and max-file",
            severity=Severity.LOW,
        )


def _entrypoint(service: ServiceUnderAudit) -> Iterator[Result]:
    if "nvcr.io/nvidia/vllm" in service.image and service.raw.get("entrypoint") is not None:
        risk = "entrypoint is overridden, but the image's entrypoint sets up CUDA forward compatibility"
        yield warn(risk, remedy="remove entrypoint and put the whole command into command", severity=Severity.MEDIUM)


def _mistaken(service: ServiceUnderAudit) -> Iterator[Result]:
    for name, meant in mistaken_variables().items():
        if name in service.environment:
            yield warn(f"nothing reads the variable {name}", remedy=f"rename it to {meant}", severity=Severity.LOW)


def _by_version(service: ServiceUnderAudit) -> Iterator[Result]:
    """Flags and variables that the vLLM of a known image does not know."""
    name, _, tag = service.image.partition("@")[0].rpartition(":")
    version = find_image(name, tag).vllm if name else None
    if version is None:
        return
    given = {f"--{name}": flag_trouble(name, version) for name in service.flags}
    # A variable that this kit renders, as the model's publisher asks, is harmless where nothing reads it.
    given |= {name: variable_trouble(name, version) for name in service.environment if name not in variables()}
    for name, trouble in given.items():
        if trouble:
            sentence, _, advice = trouble.partition("; ")
            yield warn(
                f"{name}: {sentence}", remedy=advice or "glm4-deploy render writes what fits", severity=Severity.LOW
            )


RULES: dict[str, Rule] = {
    "open-without-key": _open_without_key,
    "open-paths": _open_paths,
    "secret-in-sight": _secret_in_sight,
    "every-origin": _origins,
    "remote-code": _remote_code,
    "risky-variable": _risky_variables,
    "local-media": _local_media,
    "writable-model": _writable_model,
    "writable-code": _writable_code,
    "entrypoint": _entrypoint,
    "telemetry": _telemetry,
    "health": _health,
    "log-rotation": _log_rotation,
    "mistaken-variable": _mistaken,
    "not-in-this-version": _by_version,
}
