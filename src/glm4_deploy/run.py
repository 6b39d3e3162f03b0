"""Run a read-only command for a fact: an argument list, a time limit, and what came of it as a value."""

import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a command printed. `code` is None where it could not be run or did not end; `trouble` says why."""

    code: int | None
    stdout: str = ""
    stderr: str = ""
    trouble: str = ""
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0


def run_program(*arguments: str, timeout: float = 2.0) -> Output:
    """Run it without a shell and without standard input; never raises for what the command does."""
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return Output(code=None, trouble=f"{arguments[0]} is not installed")
    except subprocess.TimeoutExpired:
        return Output(code=None, trouble=f"{arguments[0]} did not answer within {timeout:g} s", timed_out=True)
    except OSError as error:
        return Output(code=None, trouble=f"{arguments[0]} cannot be run: {error.strerror}")
    return Output(code=done.returncode, stdout=done.stdout, stderr=done.stderr)
