"""The command line as a user calls it, in a separate directory."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo/glm-4-tiny-chat"
KIT = [str(Path(sys.executable).parent / "glm4-deploy")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(kw_only=True)
class Kit:
    """The command line with its own directory, project name and port."""

    directory: Path
    project: str
    port: int = field(default_factory=free_port)
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str | Path, timeout: float = 400) -> Done:
        done = subprocess.run(
            [*KIT, *map(str, words)],
            cwd=self.directory,
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def up(self, *words: str | Path, model: Path = MODEL, timeout: float = 900) -> Done:
        patience = () if "--timeout" in words else ("--timeout", "600")  # a busy machine needs more than the default
        return self.run("up", *self.settings(model), *words, *patience, timeout=timeout)

    def settings(self, model: Path) -> tuple[str, ...]:
        sets = (f"project={self.project}", f"container_name={self.project}")
        options = ("--profile", "cpu", "--model-dir", str(model), "--port", str(self.port))
        return (*options, *(word for item in sets for word in ("--set", item)))
