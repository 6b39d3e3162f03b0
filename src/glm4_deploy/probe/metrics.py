"""GET /metrics in Prometheus text: the few series that checks compare before and after."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Samples by name: ((labels, value), …). Counters end in _total."""

    rows: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]

    def sum(self, name: str, **labels: str) -> float | None:
        """The sum over all series of that name with those labels (several engines count apart); None: no such."""
        values = [
            value
            for have, value in self.rows.get(name, ())
            if all(have.get(key) == want for key, want in labels.items()) and math.isfinite(value)
        ]
        return sum(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of one name, by the values of one label."""
        found: dict[str, float] = {}
        for have, value in self.rows.get(name, ()):
            key = have.get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def label(self, name: str, label: str) -> str | None:
        """A label of an info series, such as block_size of vllm:cache_config_info."""
        rows = self.rows.get(name, ())
        return rows[0][0].get(label) if rows else None


def parse(text: str) -> Metrics:
    """Prometheus exposition text; lines that are not samples are passed over."""
    rows: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or line.startswith("#"):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        rows.setdefault(match[1], []).append((dict(_LABEL.findall(match[2] or "")), value))
    return Metrics(rows={name: tuple(found) for name, found in rows.items()})
