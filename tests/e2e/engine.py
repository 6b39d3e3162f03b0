"""A real vLLM on the CPU as a local process, for as long as a `with` block lasts."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

NAME = "glm-4-9b-chat"
START_S = 420.0  # two at once on two busy cores take over two minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running engine."""

    base_url: str
    started: float
    """Epoch seconds, just before its process was started."""
    log: Path
    """Everything it writes."""

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    @property
    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/health", timeout=30, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def last_words(self) -> str:
        """Its last errors and its last lines, for the report of a failed test."""
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines[:-30] if " ERROR " in line or "Traceback" in line or "Error:" in line]
        return "\n".join([*errors[-60:], "…", *lines[-30:]])


@contextmanager
def engine(
    python: str,
    model: Path,
    log: Path,
    *extra: str,
    port: int = 0,
    env: Mapping[str, str] | None = None,
    eager: bool = True,
    start_s: float = START_S,
) -> Iterator[Engine]:
    """Start vLLM with `model` on `port` or a free one, wait until it is healthy, and stop its process group at the end.

    env: variables besides this process's own.
    eager: without compilation, which takes a minute or two.
    start_s: seconds until it must be healthy.

    Raises:
        AssertionError: it died or was not ready in time; the message holds the end of its log.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", *extra]
    command += ["--enforce-eager"] if eager else []
    env = (
        os.environ
        | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_COMPUTE_NANS_IN_LOGITS": "1"}
        | dict(env or {})
    )
    started = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        base_url = f"http://127.0.0.1:{port}"
        _wait(process, base_url, log, start_s)
        yield Engine(base_url=base_url, started=started, log=log)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], base_url: str, log: Path, start_s: float) -> None:
    limit = time.monotonic() + start_s
    while time.monotonic() < limit:
        assert process.poll() is None, f"the engine died:\n{_tail(log)}"
        try:
            if httpx.get(f"{base_url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the engine was not ready within {start_s:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for what is left of the group: the engine core may outlive the API server."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
