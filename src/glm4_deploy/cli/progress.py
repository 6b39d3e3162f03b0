"""Progress on stderr: a line a phase and a line a check; on a terminal the line of the moment is rewritten in place."""

import sys
import time
from collections.abc import Iterable

from glm4_deploy.facts.enginelog import EngineFacts
from glm4_deploy.result import Result

WIDTH = 100


class Progress:
    """Everything that `up` says while it works. stdout is left to the report."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._live = sys.stderr.isatty()
        self._phase = ""

    def note(self, text: str) -> None:
        self._line(text)

    def phase(self, facts: EngineFacts, seconds: float) -> None:
        phase = str(facts.phase)
        detail = f"  {facts.progress}" if facts.progress else ""
        if phase != self._phase:
            self._phase = phase
            self._line(f"{phase:12}{detail}")
        elif self._live:
            self._write(f"\r{self._stamp()}{phase:12}{detail}"[:WIDTH].ljust(WIDTH))

    def check_started(self, check: str) -> None:
        if self._live:
            self._write(f"\r{self._stamp()}checking {check} …".ljust(WIDTH))

    def check_done(self, result: Result) -> None:
        self._line(f"{result.status:8} {result.check}")

    def table(self, results: Iterable[Result]) -> None:
        """The verdicts, on stdout."""
        from glm4_deploy.report.terminal import print_results

        print_results(tuple(results))

    def _stamp(self) -> str:
        return f"{time.monotonic() - self._begin:7.1f} s  "

    def _line(self, text: str) -> None:
        clear = "\r" + " " * WIDTH + "\r" if self._live else ""
        self._write(f"{clear}{self._stamp()}{text}\n")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
