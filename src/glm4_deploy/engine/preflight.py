"""What can be known before anything is started: each blocker ends in its own error."""

import errno
import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from glm4_deploy.checkpoint.finding import WHY
from glm4_deploy.checkpoint.verify import verify
from glm4_deploy.engine.release import Service
from glm4_deploy.errors import CheckpointRefused, ModelMissing, PortTaken, UsageError
from glm4_deploy.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Which checkpoint it is. fingerprint: of its configuration, headers and sizes; stamp: of sizes and times of
    change, so that weights which were replaced by others of the same shape do not pass unseen."""

    fingerprint: str | None
    stamp: str | None


def check_model_directory(directory: Path) -> None:
    """Raises ModelMissing: not there, not a directory, not readable, empty, or without a config.json."""
    hint = "give the checkpoint's own directory with --model-dir"
    try:
        names = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        raise ModelMissing(f"no model directory at {directory}", hint=hint) from None
    except OSError as error:
        raise ModelMissing(f"cannot read the model directory {directory}: {error.strerror}", hint=hint) from None
    if not names:
        raise ModelMissing(f"the model directory {directory} is empty", hint=f"download the checkpoint; then {hint}")
    if "config.json" not in names:
        raise ModelMissing(f"{directory} holds no config.json, so it is no checkpoint", hint=hint)


def check_checkpoint(service: Service, *, force: bool, note: Callable[[str], None]) -> Weights:
    """The checkpoint, judged for the engine that is to load it.

    Raises:
        ModelMissing, CheckpointRefused
    """
    directory = Path(service.model_dir)
    check_model_directory(directory)
    report = verify(directory, vllm=service.vllm)
    details = [f"{result.check}: {result.observed}{_consequence(result)}" for result in report.failures]
    if details and not force:
        raise CheckpointRefused(
            f"the checkpoint at {directory} has {len(details)} fault(s) that this engine would not survive",
            details=details,
            hint=f"{report.failures[0].remedy or 'mend it: glm4-deploy checkpoint repair'}; "
            "--force starts it all the same",
        )
    for line in details:
        note(f"forced past: {line}")
    return Weights(fingerprint=report.fingerprint, stamp=stamp(directory))


def _consequence(result: Result) -> str:
    """What the finding means for this engine, in the rule's own words."""
    return "".join(f" ({evidence.text})" for evidence in result.evidence if evidence.name == WHY)


def stamp(directory: Path) -> str | None:
    """A digest of the names, sizes and times of change in a directory; None where it cannot be read."""
    with suppress(OSError):
        rows = [(path.name, path.stat()) for path in sorted(directory.iterdir()) if not path.name.startswith(".")]
        text = "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in rows)
        return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:12]
    return None


def check_port(deployment: Service) -> None:
    """Raises PortTaken where something holds the address. Not to be asked where this deployment's own engine does."""
    family = socket.AF_INET6 if ":" in deployment.bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((deployment.bind, deployment.port))
        except PermissionError:
            return  # a low port: the Docker engine may, this user may not
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(
                    f"this host has no address {deployment.bind}", hint="choose one of `ip -brief address` with --bind"
                ) from None
            if error.errno != errno.EADDRINUSE:
                raise UsageError(f"cannot use {deployment.bind}:{deployment.port}: {error.strerror}") from None
            raise PortTaken(
                f"port {deployment.port} on {deployment.bind} is taken{_who(deployment.base_url)}",
                hint=f"find its owner with `ss -ltnp 'sport = :{deployment.port}'`, or choose another with --port",
            ) from None


def _who(base_url: str) -> str:
    """What a stale server says of itself, for the message."""
    try:
        models = httpx.get(f"{base_url}/v1/models", timeout=2, trust_env=False).json()["data"]
        return f" by a server of the model {str(models[0]['id'])[:60]!r}"
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
        return ""
