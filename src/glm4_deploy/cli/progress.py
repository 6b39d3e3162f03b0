"""Progress on stderr: one line per phase, one bar per image layer, bytes done."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.report.terminal import results_text
from glm4_deploy.result import Result
from glm4_deploy.text import clean_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from glm4_deploy.deploy.docker import PullState


SHOWN_LAYERS = 8  # at once: the image has dozens


def describe_pull(state: "PullState") -> str:
    rate = state.fetched / 1e6 / state.seconds if state.seconds > 0 else 0.0
    sizes = f"{state.fetched / 1e9:.2f} of {state.total / 1e9:.2f} GB, {rate:.0f} MB/s"
    return f"{state.done} of {len(state.layers)} layers, {sizes}, {state.seconds:.0f} s"


class PullBars:
    """An image pull on a terminal: one bar in total and one per layer being pulled, drawn by Rich."""

    def __init__(self) -> None:
        self._progress: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, state: "PullState") -> None:
        progress = self._open()
        self._set(progress, "image", describe_pull(state), state.fetched, state.total)
        moving = [layer for layer in state.layers if not layer.done and layer.total][:SHOWN_LAYERS]
        for layer in moving:
            self._set(progress, layer.id, f"{layer.id} {layer.status.lower()}", layer.current, layer.total)
        for name in set(self._tasks) - {"image", *(layer.id for layer in moving)}:
            progress.remove_task(self._tasks.pop(name))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def _open(self) -> "RichProgress":
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        return self._progress

    def _set(self, progress: "RichProgress", name: str, text: str, current: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = progress.add_task(text, total=total or None)
        progress.update(self._tasks[name], description=text, completed=current, total=total or None)


WIDTH = 100
LINE_SECONDS = 10.0  # between two lines of one phase if lines cannot be rewritten
QUIET_S = 2.0  # shorter work shows no progress


class Progress:
    """What `up` shows while it works: one line per phase and check; on a terminal, the current line is rewritten."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._live = sys.stderr.isatty()
        self._bars = PullBars()
        self._phase = ""
        self._expected = ""
        self._shown_at = 0.0

    def note(self, text: str) -> None:
        self._line(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bars.close()

    def expect(self, ready_seconds: float | None) -> None:
        """ready_seconds: what earlier starts on this host took; None: not known."""
        self._expected = f" of about {ready_seconds:.0f} s" if ready_seconds else ""

    def pull(self, state: "PullState") -> None:
        """The layers of an image being pulled: bars on a terminal, else a line every LINE_SECONDS."""
        if self._live:
            self._bars.show(state)
        elif time.monotonic() - self._shown_at >= LINE_SECONDS or state.done == len(state.layers):
            self._shown_at = time.monotonic()
            self._line(f"{'image':12}{describe_pull(state)}")

    def phase(self, facts: EngineFacts, seconds: float) -> None:
        self._bars.close()
        phase = str(facts.phase)
        shown = f"{phase:12}{seconds:6.1f} s{self._expected}" + (f"  {facts.progress}" if facts.progress else "")
        if phase != self._phase or (not self._live and time.monotonic() - self._shown_at >= LINE_SECONDS):
            self._phase, self._shown_at = phase, time.monotonic()
            self._line(shown)
        elif self._live:
            self._write(f"\r{self._stamp()}{shown}"[:WIDTH].ljust(WIDTH))

    def check_started(self, check: str) -> None:
        if self._live:
            self._write(f"\r{self._stamp()}checking {check} …".ljust(WIDTH))

    def check_done(self, result: Result) -> None:
        self._line(f"{result.status:8} {result.check}")

    def table(self, results: Iterable[Result]) -> None:
        """Print the results on stdout."""
        typer.echo(results_text(results), nl=False)

    def _stamp(self) -> str:
        return f"{time.monotonic() - self._begin:7.1f} s  "

    def _line(self, text: str) -> None:
        self._bars.close()
        clear = "\r" + " " * WIDTH + "\r" if self._live else ""
        self._write(f"{clear}{self._stamp()}{clean_text(text)}\n")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class BytesProgress:
    """Bytes done of the total: one rewritten line on a terminal, else a line every 10 %."""

    def __init__(self, word: str, *, rate: bool = False) -> None:
        """rate: show how fast it goes, in GB as networks and hubs count."""
        self._word, self._rate, self._first = word, rate, 0
        self._live = sys.stderr.isatty()
        self._begin = time.monotonic()
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        if self._shown < 0 and not self._first:
            self._first = done  # there already, from an earlier run
        percent = 100 * done // max(total, 1)
        step = percent if self._live else percent // 10 * 10
        seconds = time.monotonic() - self._begin
        if step == self._shown or seconds < QUIET_S:
            return
        self._shown = step
        sizes = f"{done / 2**30:.2f} of {total / 2**30:.2f} GiB"
        if self._rate:
            sizes = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {(done - self._first) / 1e6 / seconds:.0f} MB/s"
        line = f"{self._word} {step:3} %  {sizes}  {seconds:.0f} s"
        start, end = ("\r", "\n" if done >= total else "") if self._live else ("", "\n")
        sys.stderr.write(f"{start}{line}{end}")
        sys.stderr.flush()
