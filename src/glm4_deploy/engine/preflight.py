"""What can be known before anything is started: each blocker ends in its own error."""

import errno
import socket
from pathlib import Path

import httpx

from glm4_deploy.engine.runner import RunState
from glm4_deploy.errors import ModelMissing, PortTaken, UsageError
from glm4_deploy.plan.deployment import Deployment


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


def check_port(deployment: Deployment, running: RunState) -> None:
    """Raises PortTaken where something else than this deployment's own running engine holds the address."""
    if running.running:
        return  # its own container or process holds the port; compose itself tells where that is not so
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
