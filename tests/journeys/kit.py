"""The command line as a user calls it, in its own directory, with the stand-in for vLLM behind it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.kit import MODEL, Done
from preloaded import Process, start

TESTS = Path(__file__).parents[1]
LIMIT_S = 120.0  # for anything: reached only where something hangs
GOOD = ("ok", "warn")  # on a busy machine a stream may arrive in one piece, which is a warning


def wait_for(seen: Callable[[], bool], what: Callable[[], str] = lambda: "in vain") -> None:
    """Until it is seen. what: said where it never is."""
    deadline = time.monotonic() + LIMIT_S
    while not seen():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command under way; its output goes to files."""

    process: "Process | subprocess.Popen[bytes]"
    out: Path
    err: Path

    def wait_for(self, words: str) -> None:
        """Until the command has written `words` to stderr."""
        wait_for(lambda: self.process.poll() is not None or words in self.err.read_text(), self.err.read_text)
        assert words in self.err.read_text(), self.err.read_text()

    def end(self, sign: signal.Signals | None = None) -> Done:
        """Send the signal, if any, and wait for the end."""
        if sign is not None:
            self.process.send_signal(sign)
        self.process.wait(LIMIT_S)
        err = self.err.read_text()
        assert "Traceback" not in err, err
        return Done(code=self.process.returncode, out=self.out.read_text(), err=err)


@dataclass(kw_only=True)
class Kit:
    """lease: the file that the test keeps locked, and every engine of it watches."""

    directory: Path
    lease: Path
    port: int
    running: list[Running] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """This environment without settings of the kit, with the stand-in as vLLM, and no Docker within reach."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GLM4_")}
        paths = (inherited.get("PYTHONPATH"), TESTS, TESTS / "journeys/stand_in")
        return inherited | {
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
            "GLM4_CPU_PYTHON": sys.executable,
            "STAND_IN_LEASE": str(self.lease),
            "DOCKER_HOST": "unix:///nowhere",
            "COLUMNS": "200",
        }

    def start(self, *words: str | Path, **env: str) -> Running:
        """Start a command and go on."""
        place = self.directory / f"command-{len(self.running)}"
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = start(*words, cwd=self.directory, env=self.env | env, stdout=stdout, stderr=stderr)
        one = Running(process=process, out=out, err=err)
        self.running.append(one)
        return one

    def run(self, *words: str | Path, **env: str) -> Done:
        """Run a command to its end."""
        return self.start(*words, **env).end()

    def up_words(self, *words: str | Path, engine: str = "", model: Path = MODEL) -> tuple[str | Path, ...]:
        """`up` of an engine that behaves as the stand-in's docstring says; that setting is part of the release."""
        behaviour = ("--set", f"env.STAND_IN={engine}") if engine else ()
        options = ("--runner", "process", "--profile", "cpu", "--model-dir", model, "--port", str(self.port))
        return ("up", *options, *behaviour, *words)

    def up(self, *words: str | Path, engine: str = "", model: Path = MODEL, **env: str) -> Done:
        return self.run(*self.up_words(*words, engine=engine, model=model), **env)

    def start_up(self, *words: str | Path, engine: str = "hangs", phase: str = "weights") -> Running:
        """`up`, until it reports a phase of the engine's start; in that one the engine stays."""
        one = self.start(*self.up_words(*words, engine=engine))
        one.wait_for(f" s  {phase} ")
        return one

    def good_release(self, *words: str | Path) -> str:
        """The id of a release that serves."""
        done = self.up(*words, "--json")
        assert done.code == 0, done.err
        return str(done.json["release"])

    def status(self) -> Any:
        """What `status --json` reports; its exit code must agree with it."""
        done = self.run("status", "--json")
        assert done.code == (0 if done.json["up"] else 1), done.err
        return done.json

    @staticmethod
    def steady(status: dict[str, Any]) -> dict[str, Any]:
        """Of what `status --json` reports, what two looks at the same engine have in common."""
        return {key: value for key, value in status.items() if key not in ("core", "memory", "results")}

    def releases(self) -> list[dict[str, Any]]:
        done = self.run("releases", "--json")
        assert done.code == 0, done.err
        rows: list[dict[str, Any]] = done.json["releases"]
        return rows

    @property
    def recorded(self) -> list[str]:
        """The releases on disk: what `releases` would list."""
        return sorted(path.parent.name for path in self.directory.glob(".glm4/releases/*/release.json"))

    def pids(self) -> dict[str, int]:
        """The engine's processes by name, from its own log."""
        log = (self.directory / ".glm4/engine.log").read_text()
        return {name: int(pid) for name, pid in re.findall(r"^\((\w+) pid=(\d+)\)", log, re.MULTILINE)}
