"""The command line without its start: a server that has imported the kit forks a process for each command.

A start of Python and of the kit's imports takes a second of CPU time or two, and some thousand tests run a command.
A forked one differs from one that was started in that alone: it has its own arguments, directory, environment, streams
and exit code. tests/e2e starts every command for real.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KIT = (sys.executable, "-m", "glm4_deploy")
MESSAGE = 1 << 20
STARTED = dict(os.environ)  # before any test changed it
# What Python itself or Rich reads when it is loaded: a command that is given one of these is started for real.
READ_AT_START = ("PYTHON", "LC_", "LANG", "TERMINAL_WIDTH", "FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS", "_GLM4_")


class Process:
    """A forked command: as much of `subprocess.Popen` as tests use."""

    def __init__(self, words: tuple[str, ...], answers: socket.socket) -> None:
        self.args = words
        self.returncode: int | None = None
        self._answers = answers
        answers.settimeout(120)  # for the server's imports
        self.pid = int(answers.recv(32) or b"0")
        assert self.pid, "the server of forked commands has ended"

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._answers.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                answer = self._answers.recv(32)
                if not answer:  # the server has ended, and nobody waits for its commands
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)
                self.returncode = int(answer or -signal.SIGKILL)
                self._answers.close()
        return self.returncode

    def send_signal(self, sign: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sign)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    *words: str | Path,
    stdout: IO[Any],
    stderr: IO[Any],
    stdin: IO[Any] | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process | subprocess.Popen[bytes]:
    """Begin `glm4-deploy WORDS`. env: all of its variables, like `subprocess`; by default this process's."""
    argv = tuple(str(word) for word in words)
    variables = dict(os.environ if env is None else env)
    with contextlib.ExitStack() as opened:
        given = stdin or opened.enter_context(Path(os.devnull).open("rb"))
        if any(variables.get(name) != STARTED.get(name) for name in {*variables, *STARTED} if _at_start(name)):
            return subprocess.Popen([*KIT, *argv], stdin=given, stdout=stdout, stderr=stderr, cwd=cwd, env=variables)
        ours, theirs = socket.socketpair()
        opened.callback(theirs.close)
        message = json.dumps({"argv": argv, "cwd": str(cwd or Path.cwd()), "env": variables}).encode()
        streams = [given.fileno(), stdout.fileno(), stderr.fileno(), theirs.fileno()]
        socket.send_fds(_server(), [message], streams)
    return Process(argv, ours)


def run(
    *words: str | Path,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `glm4-deploy WORDS` to its end, as `subprocess.run` would with captured text.

    Raises:
        subprocess.TimeoutExpired: it took longer; it was killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = start(*words, stdin=given, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode().replace("\r\n", "\n"))
    return subprocess.CompletedProcess([*KIT, *map(str, words)], code, *texts)


def _at_start(name: str) -> bool:
    return name != "PYTHONPATH" and name.startswith(READ_AT_START)


_servers: dict[int, socket.socket] = {}  # by the pid of the process that started it


def _server() -> socket.socket:
    if os.getpid() not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
            command = [sys.executable, __file__, str(theirs.fileno())]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=STARTED, cwd=Path(__file__).parent
            )
        _servers[os.getpid()] = ours
        atexit.register(_end, ours, process)
    return _servers[os.getpid()]


def _end(server: socket.socket, process: subprocess.Popen[bytes]) -> None:
    server.close()
    process.wait()


def _import_all() -> dict[str, str]:
    """The kit's modules that its commands load; what needs an extra stays out. Returns the variables that they set."""
    before = dict(os.environ)
    package = importlib.import_module("glm4_deploy")
    for module in pkgutil.walk_packages(package.__path__, "glm4_deploy."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each message. Returns in each fork, with its message; and, once nobody can ask, with None."""
    answers: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as events:
        events.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is not control:
                    pid, answer = answers.pop(key.fd)
                    events.unregister(key.fd)
                    os.close(key.fd)
                    with answer, contextlib.suppress(BrokenPipeError):
                        answer.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                    continue
                text, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 4)
                if not text:
                    return None
                pid = os.fork()
                if not pid:
                    for number, descriptor in enumerate(descriptors[:3]):
                        os.dup2(descriptor, number)
                    for descriptor in (*descriptors, *answers):
                        os.close(descriptor)
                    for _, answer in answers.values():
                        answer.close()
                    control.close()
                    request: dict[str, Any] = json.loads(text)
                    return request
                answer = socket.socket(fileno=descriptors[3])
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                with contextlib.suppress(BrokenPipeError):
                    answer.send(str(pid).encode())
                ended = os.pidfd_open(pid)
                answers[ended] = (pid, answer)
                events.register(ended, selectors.EVENT_READ)


def _become(request: dict[str, Any], imported: Mapping[str, str]) -> None:
    """What a start of Python would have done with these streams, variables and arguments.

    imported: the variables that the imports set.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update({**imported, **request["env"]})
    time.tzset()
    os.chdir(request["cwd"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = [str(Path(sys.executable).with_name("glm4-deploy")), *request["argv"]]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        wrapper = io.TextIOWrapper(
            raw, encoding="utf-8", errors=errors, line_buffering=number == 2 or os.isatty(number)
        )
        setattr(sys, name, wrapper)


if __name__ == "__main__":
    sys.path.pop(0)  # a command does not see the modules of the tests
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends this server
    from_imports = _import_all()
    gc.freeze()
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _become(asked, from_imports)
        importlib.import_module("glm4_deploy.cli.app").main()
