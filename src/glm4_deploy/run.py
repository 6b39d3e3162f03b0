"""The one way to run a program: an argument list and a time limit in, an `Output` out. May import nothing.

Two modules manage a process object themselves: `deploy/engines.py` (an engine as a process group) and
`probe/fleet.py` (an SSH tunnel that stays open while a block runs).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL when a program is stopped early


class RunFailure(StrEnum):
    """Why there is no exit code."""

    MISSING = "missing"  # no such program on PATH
    REFUSED = "refused"  # the system cannot start it: permission, not executable, arguments too long
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The result of running a program.

    Attributes:
        code: exit code; None if it could not be started or ran into the time limit.
        failure: why there is no exit code.
        trouble: the same as a message for people; '' if there is an exit code.
    """

    code: int | None
    stdout: str = ""
    stderr: str = ""
    failure: RunFailure | None = None
    trouble: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def last_line(self) -> str:
        """The last line of stderr, or else of stdout, or else why it could not run; '' if there is none."""
        lines = (self.stderr.strip() or self.stdout.strip() or self.trouble).splitlines()
        return lines[-1] if lines else ""


def run_program(
    *arguments: str,
    timeout: float,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    show: bool = False,
    terminal: bool = False,
) -> Output:
    """Run a program to its end, but no longer than `timeout` seconds. Nothing that the program does raises.

    It runs in a new session, so that its children end with it and none of them can prompt on the terminal.

    Args:
        environment: added to the environment of this process.
        on_line: called with each line of stdout and stderr as it arrives; `Output` then contains neither.
        show: send its output to this process's stderr; `Output` then contains neither.
        terminal: stay in this process's session, for a program that may ask for a passphrase.
    """
    name = arguments[0]
    try:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=sys.stderr if show else subprocess.PIPE,
            stderr=subprocess.STDOUT if show or on_line else subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
            encoding="utf-8",
            errors="replace",
            start_new_session=not terminal,
        )
    except FileNotFoundError:
        return Output(code=None, failure=RunFailure.MISSING, trouble=f"{name} is not installed")
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = getattr(error, "strerror", None) or error
        return Output(code=None, failure=RunFailure.REFUSED, trouble=f"{name} cannot be run: {why}")
    try:
        if on_line:
            return _follow(child, timeout, on_line)
        stdout, stderr = child.communicate(stdin or None, timeout=timeout)
        return Output(code=child.returncode, stdout=stdout or "", stderr=stderr or "")
    except subprocess.TimeoutExpired:
        trouble = f"{name} did not answer within {timeout:g} s"
        return Output(code=None, failure=RunFailure.TIMEOUT, trouble=trouble)
    finally:
        _end(child, group=not terminal)


def _follow(child: subprocess.Popen[str], timeout: float, on_line: Callable[[str], None]) -> Output:
    """Pass on each line. Reading a pipe has no time limit, so a timer kills the program, which ends the loop."""
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        _signal(child, signal.SIGKILL, group=True)

    timer = threading.Timer(timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        for line in child.stdout or ():
            on_line(line)
        code = child.wait()
    finally:
        timer.cancel()
    if timed_out.is_set():
        raise subprocess.TimeoutExpired(child.args, timeout)
    return Output(code=code)


def _end(child: subprocess.Popen[str], *, group: bool) -> None:
    """Leave no process and no open pipe behind, whether a time limit or Ctrl-C ended the wait."""
    if child.returncode is None:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # always both: a grandchild may outlive its parent's SIGTERM
            if group or child.returncode is None:
                _signal(child, sign, group=group)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _signal(child: subprocess.Popen[str], sign: signal.Signals, *, group: bool) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, sign) if group else child.send_signal(sign)
