"""The rendered gateway as two local processes: the real Caddy in the pinned release, and the authoriser."""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from e2e.kit import free_port
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.render.compose import rendered

CADDY = str(Path(sys.executable).parent / "caddy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway."""

    url: str
    port: int
    root: Path
    """The certificate of its own authority."""
    log: Path
    """Caddy's."""
    keys: Path
    """The key directory."""

    def client(self, key: str | None = None, *, timeout: float = 60) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        verify = ssl.create_default_context(cafile=str(self.root))
        return httpx.Client(base_url=self.url, headers=headers, verify=verify, timeout=timeout, trust_env=False)


@contextmanager
def gateway(
    engine: str,
    directory: Path,
    *,
    engine_key: str = "",
    sets: tuple[str, ...] = (),
    extras: tuple[str, ...] = ("gateway",),
) -> Iterator[Gateway]:
    """Run the gateway in front of `engine` (host:port), from the files that `render --with gateway` writes."""
    files = rendered(resolve_spec({"profile": "cpu", "extras": list(extras)}, sets=sets))
    for name in ("gateway/Caddyfile", "gateway/authorise.py"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(files[name])
    if engine_key:
        (directory / "engine.key").write_text(engine_key + "\n")
    port, inner, keys, data = free_port(), free_port(), directory / "keys", directory / "data"
    keys.mkdir()
    environment = os.environ | {
        "GATEWAY_PORT": str(port), "ENGINE_PORT": str(free_port()), "ENGINE": engine,
        "AUTHORISER": f"127.0.0.1:{inner}",
        "XDG_DATA_HOME": str(data), "XDG_CONFIG_HOME": str(directory / "config"),
        "ENGINE_KEY_FILE": str(directory / "engine.key"),
    }  # fmt: skip
    authorise = [sys.executable, "-I", directory / "gateway/authorise.py", keys / "keys.json", str(inner), "127.0.0.1"]
    caddy = [CADDY, "run", "--config", directory / "gateway/Caddyfile", "--adapter", "caddyfile"]
    with (directory / "caddy.log").open("wb") as log:
        processes = [subprocess.Popen(words, env=environment, stdout=log, stderr=log) for words in (authorise, caddy)]
    try:
        for waited in (port, inner):
            _wait(waited, processes, directory / "caddy.log")
        root = data / "caddy/pki/authorities/local/root.crt"
        front = Gateway(url=f"https://localhost:{port}", port=port, root=root, log=directory / "caddy.log", keys=keys)
        _wait_certificate(front)
        yield front
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


def _wait(port: int, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        for process in processes:
            assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def _wait_certificate(front: Gateway) -> None:
    """Caddy listens before it has made its certificate."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with front.client() as client:
                client.get("/health")
                return
        except (httpx.TransportError, OSError):
            assert time.monotonic() < deadline, front.log.read_text()
            time.sleep(0.2)
