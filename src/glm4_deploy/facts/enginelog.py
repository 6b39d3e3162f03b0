"""A first reader of an engine's log: facts, phase, the last lines that matter."""

import re
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    STARTING = "starting"
    CONFIG = "config"
    WEIGHTS = "weights"
    COMPILE = "compile"
    KV_CACHE = "kv_cache"
    GRAPHS = "graphs"
    ROUTES = "routes"
    READY = "ready"


class Severity(StrEnum):
    FATAL = "fatal"
    ERROR = "error"
    WARN = "warn"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    version: str | None = None
    kernel: str | None = None
    native_fp4: bool | None = None
    kv_cache_dtype: str | None = None
    kv_cache_tokens: int | None = None
    phase: Phase = Phase.STARTING
    progress: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    id: str
    severity: Severity
    line: str
    cause: str
    fix: str


class LogReader:
    def __init__(self) -> None:
        self.facts = EngineFacts()
        self.findings: tuple[LogFinding, ...] = ()
        self.fatal: LogFinding | None = None
        self._tail: deque[str] = deque(maxlen=200)

    def feed(self, line: str) -> None:
        self._tail.append(line)
        for pattern, phase in PHASES:
            if pattern in line:
                self.facts = replace(self.facts, phase=phase)
        if match := re.search(r"version (\d+\.\d+\S*)", line):
            self.facts = replace(self.facts, version=match[1])
        if match := re.search(r"GPU KV cache size: ([\d,]+)", line):
            self.facts = replace(self.facts, kv_cache_tokens=int(match[1].replace(",", "")))

    def tail(self, count: int) -> tuple[str, ...]:
        return tuple(self._tail)[-count:]


PHASES = (
    ("non-default args", Phase.CONFIG),
    ("Starting to load model", Phase.WEIGHTS),
    ("Loading weights took", Phase.COMPILE),
    ("KV cache size", Phase.KV_CACHE),
    ("Starting vLLM", Phase.ROUTES),
    ("Application startup complete", Phase.READY),
)
