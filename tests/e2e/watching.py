"""A running `watch --json` as its lines arrive, and the processes that a test stops under it."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar


class Lines:
    """The watch's JSON lines, as they arrive."""

    open: ClassVar[list["Lines"]] = []

    def __init__(self, words: list[str], cwd: Path | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.open.append(self)
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.rows.append(json.loads(line) if line.startswith("{") else {"event": "text", "text": line})

    def wait(self, matches: Callable[[dict[str, Any]], bool], seconds: float, *, after: int = 0) -> float:
        """Seconds until a line after the first `after` matches."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if any(matches(row) for row in self.rows[after:]):
                return time.monotonic() - begin
            time.sleep(0.1)
        raise AssertionError(f"no matching line within {seconds:.0f} s; the last ones: {self.rows[-12:]}")

    def state(self, *names: str, seconds: float, after: int = 0) -> float:
        return self.wait(lambda row: row["event"] == "state" and row["state"] in names, seconds, after=after)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(15)
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()


def cores(parent: int) -> list[int]:
    """The engine cores of an API server."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            name = (path / "comm").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "Engine" in name:
            pids.append(int(path.name))
    return pids
