"""What is risky in a vLLM Compose file, beyond what holds for any container. Pure: a parsed file → findings.

A rule is one function in RULES. Sources: vLLM's security guide (only /v1 asks for the key; development mode; media
paths), its argument defaults (allowed origins are *), docs/how-to/security.md.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.catalog.profiles import mistaken_variables
from glm4_deploy.facts.redact import secret_name
from glm4_deploy.plan.audit_service import Service, services

SECRET_NAME = re.compile(r"(^|_)(API_?KEY|TOKEN|PASSWORD|SECRET)($|_)", re.IGNORECASE)
TRUE = ("1", "true", "yes", "on")


class Severity(StrEnum):
    """UNKNOWN: something could not be judged; it is never taken for fine."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    UNKNOWN = "unknown"


ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One risk. line: in the file, 0 where it is not known. remedy: the next action."""

    rule: str
    severity: Severity
    service: str
    line: int = 0
    observed: str
    remedy: str


Rule = Callable[[Service], Iterator[tuple[Severity, str, str]]]


def audit(content: object) -> tuple[Finding, ...]:
    """Every rule over every service that looks like vLLM."""
    return tuple(
        Finding(rule=name, severity=severity, service=service.name, observed=observed, remedy=remedy)
        for service in services(content)
        if service.is_vllm
        for name, rule in RULES.items()
        for severity, observed, remedy in rule(service)
    )


def names_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret itself, not the path of one."""
    return bool(SECRET_NAME.search(name) or secret_name(name)) and not name.upper().endswith("_FILE")


def has_vllm(content: object) -> bool:
    return any(service.is_vllm for service in services(content))


def _has_key(service: Service) -> bool:
    return (
        service.flag("api-key") is not None
        or bool(service.environment.get("VLLM_API_KEY"))
        or any("VLLM_API_KEY" in word for word in service.words)
    )


def _open_without_key(service: Service) -> Iterator[tuple[Severity, str, str]]:
    for port in service.ports:
        if port.host is None:
            yield Severity.UNKNOWN, f"{port.text}: a variable decides which address", "write the address into the file"
        elif port.open and not _has_key(service):
            said = f"{port.text}: everyone who reaches this host can use the engine, no key is asked for"
            yield Severity.CRITICAL, said, "publish on 127.0.0.1, or put a gateway with keys in front"


def _open_paths(service: Service) -> Iterator[tuple[Severity, str, str]]:
    if _has_key(service) and any(port.open for port in service.ports):
        said = "the key guards /v1 alone: /metrics, /tokenize, /invocations and others answer without it"
        yield Severity.HIGH, said, "publish on 127.0.0.1 and let a gateway pass /v1 only"


def _secret_in_sight(service: Service) -> Iterator[tuple[Severity, str, str]]:
    if service.flag("api-key") not in (None, ""):
        said = "--api-key on the command line: `docker inspect` and `ps` show it"
        yield Severity.HIGH, said, "use a secret file that the command reads into VLLM_API_KEY"
    for name, value in service.environment.items():
        if names_secret(name) and value and "$" not in value:
            said = f"{name} is written into the file: it is in every copy of it, and `docker inspect` shows it"
            yield Severity.HIGH, said, "use a secret file"


def _origins(service: Service) -> Iterator[tuple[Severity, str, str]]:
    origins = service.flag("allowed-origins")
    if not _has_key(service) and (origins is None or "*" in origins):
        said = "no key, and vLLM allows every origin: a web page open on this host can use the engine"
        yield Severity.MEDIUM, said, 'set a key, or --allowed-origins ["http://localhost"]'


def _remote_code(service: Service) -> Iterator[tuple[Severity, str, str]]:
    value = service.flag("trust-remote-code")
    if value is not None and value.lower() != "false":
        said = "--trust-remote-code runs Python from the checkpoint"
        yield Severity.HIGH, said, "remove it: GLM-4-9B-chat-hf needs none"


def _risky_variables(service: Service) -> Iterator[tuple[Severity, str, str]]:
    risks = {
        "VLLM_SERVER_DEV_MODE": "opens development endpoints (/sleep, /reset_prefix_cache and others) to every client",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "lets messages be unpickled, which runs code",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets every client load adapters from paths of its choice",
    }
    for name, why in risks.items():
        if (service.environment.get(name) or "").lower() in TRUE:
            yield Severity.HIGH, f"{name} {why}", "remove it"


def _local_media(service: Service) -> Iterator[tuple[Severity, str, str]]:
    path = service.flag("allowed-local-media-path")
    if path:
        yield (
            Severity.HIGH,
            f"--allowed-local-media-path {path}: clients read files there",
            "remove it: text needs none",
        )


def _telemetry(service: Service) -> Iterator[tuple[Severity, str, str]]:
    names = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_DO_NOT_TRACK")
    if not any((service.environment.get(name) or "").lower() in TRUE for name in names):
        yield Severity.LOW, "vLLM sends usage reports to its makers", 'set VLLM_NO_USAGE_STATS: "1"'


def _writable_model(service: Service) -> Iterator[tuple[Severity, str, str]]:
    model = service.flag("model") or ""
    volumes = service.raw.get("volumes")
    for item in volumes if isinstance(volumes, list) else ():
        if isinstance(item, dict):
            target, read_only = str(item.get("target", "")), item.get("read_only") is True
        else:
            parts = str(item).split(":") if isinstance(item, str) else []
            target, read_only = (parts[1] if len(parts) > 1 else ""), len(parts) > 2 and "ro" in parts[2].split(",")
        inside = target and (model == target or model.startswith(target.rstrip("/") + "/"))
        if inside and not read_only:
            yield Severity.MEDIUM, f"the model's directory {target} can be written", "mount it read-only (:ro)"


def _health(service: Service) -> Iterator[tuple[Severity, str, str]]:
    if not isinstance(service.raw.get("healthcheck"), dict):
        yield (
            Severity.LOW,
            "no health check: an engine that hangs at its start looks alive",
            "render one: glm4-deploy render",
        )


def _log_rotation(service: Service) -> Iterator[tuple[Severity, str, str]]:
    logging = service.raw.get("logging")
    options = logging.get("options") if isinstance(logging, dict) else None
    if not (isinstance(options, dict) and "max-size" in options) and not (
        isinstance(logging, dict) and "driver" in logging
    ):
        yield Severity.LOW, "Docker's log grows without limit", "set logging options max-size and max-file"


def _entrypoint(service: Service) -> Iterator[tuple[Severity, str, str]]:
    if "nvcr.io/nvidia/vllm" in service.image and service.raw.get("entrypoint") is not None:
        said = "entrypoint is overridden: the image's own one sets up CUDA forward compatibility"
        yield Severity.MEDIUM, said, "put everything into command"


def _mistaken(service: Service) -> Iterator[tuple[Severity, str, str]]:
    for name, meant in mistaken_variables().items():
        if name in service.environment:
            yield Severity.LOW, f"nothing reads {name}", f"{meant} is meant"


RULES: dict[str, Rule] = {
    "open-without-key": _open_without_key,
    "open-paths": _open_paths,
    "secret-in-sight": _secret_in_sight,
    "every-origin": _origins,
    "remote-code": _remote_code,
    "risky-variable": _risky_variables,
    "local-media": _local_media,
    "writable-model": _writable_model,
    "entrypoint": _entrypoint,
    "telemetry": _telemetry,
    "health": _health,
    "log-rotation": _log_rotation,
    "mistaken-variable": _mistaken,
}
