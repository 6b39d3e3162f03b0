"""What the trials showed: a table, a plot, and the lines for the settings file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glm4_deploy.files import read_text, template_path
from glm4_deploy.settings import Settings, save_settings_file
from glm4_deploy.tune.search import Trial, front
from glm4_deploy.tune.space import changed

# Of a load. At 2 s the same speed differed by 18 % between two starts on one H200, at 10 s by 2.3 % (docs/lab/gpu.md).
SHORT_S = 5.0
HEAD = ("", "settings", "tokens/s", "TTFT p50, p99 ms", "TPOT p50, p99 ms", "")


def table(trials: Sequence[Trial], winner: Trial | None) -> tuple[tuple[str, ...], ...]:
    """HEAD, then one row per trial: `*` marks the winner, `+` what is on the Pareto front."""
    best = front(trials)
    return (HEAD, *(tuple(_cells(trial, trial is winner, trial in best)) for trial in trials))


def _cells(trial: Trial, won: bool, on_front: bool) -> Iterator[str]:
    yield "*" if won else "+" if on_front else ""
    yield trial.label
    level = trial.level
    if level is None:
        yield from ("-", "-", "-", f"{trial.outcome}: {trial.reason}")
        return
    yield f"{level.output_tokens_per_s:.0f}"
    yield f"{level.ttft.p50:.0f}, {level.ttft.p99:.0f}"
    yield f"{level.tpot.p50:.1f}, {level.tpot.p99:.1f}"
    yield "; ".join(level.broken) or (f"{trial.gain:+.1%}" if trial.gain is not None else "")


def doubt(winner: Trial) -> str:
    """Why what separates the winner from the others may be chance; '' if nothing is known against it."""
    seconds = winner.level.seconds if winner.level else SHORT_S
    if seconds >= SHORT_S:
        return ""
    return (
        f"the load lasted {seconds:.1f} s, which is too short to tell settings apart: name more users or longer answers"
    )


# The plot.

WIDTH, HEIGHT, LEFT, TOP = 640, 360, 70, 24


def plot(trials: Sequence[Trial], winner: Trial | None, title: str) -> str:
    """An SVG: output tokens per second over TPOT p50 (ms); the front is joined by a line, the winner is filled."""
    from jinja2 import Environment

    measured = [(trial, trial.level) for trial in trials if trial.level is not None and not trial.level.failed]
    xs, ys = [level.tpot.p50 for _, level in measured], [level.output_tokens_per_s for _, level in measured]
    across, up = 1.1 * max(xs, default=1.0) or 1.0, 1.1 * max(ys, default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + x / across * WIDTH, 1), round(TOP + HEIGHT - y / up * HEIGHT, 1)

    best = front(trials)
    points = [
        {"at": place(x, y), "label": trial.label, "on_front": trial in best, "won": trial is winner, "x": x, "y": y}
        for (trial, _), x, y in zip(measured, xs, ys, strict=True)
    ]
    ordered = sorted((x, y) for (trial, _), x, y in zip(measured, xs, ys, strict=True) if trial in best)
    line = [place(x, y) for x, y in ordered]
    text = template_path("tune.svg.j2").read_text(encoding="utf-8")
    frame = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "top": TOP, "across": across, "up": up, "title": title}
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(text)
        .render(points=points, line=line, **frame)
    )


# The settings file.


def write_settings(file: Path, configured: Settings, winner: Trial, why: str) -> tuple[str, ...]:
    """Put the winner's changes into the settings file, with the reason; every other line stays as it is.

    Returns:
        The lines written.

    Raises:
        UsageError: the result would not be valid settings; nothing is written.
        StorageError
    """
    changes = dict(winner.settings)
    if "args" in changes:  # a block is replaced as a whole, so it holds what was configured too
        changes["args"] = dict(changed(configured, winner.settings).args)
    before = read_text(file) if file.exists() else ""
    lines = [f"# by `glm4-deploy tune`, {datetime.now(UTC):%Y-%m-%d}: {why}"]
    lines += [line for name, value in changes.items() for line in _entry(name, value, getattr(configured, name))]
    kept = without_blocks(before, frozenset(changes))
    text = kept + ("" if not kept or kept.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    save_settings_file(file, text)
    return tuple(lines)


def _entry(name: str, value: Any, old: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name}:"
        yield from (f"  {key}: {json.dumps(item)}" for key, item in value.items())
    else:
        yield f"{name}: {json.dumps(value)}  # was {json.dumps(old)}"


def without_blocks(text: str, names: frozenset[str]) -> str:
    """The YAML text without these top-level keys, their blocks, and the line that an earlier run wrote above them."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "\t", "\n", "#", "-"):
            inside = line.partition(":")[0].strip("'\"") in names
        elif line.startswith("#"):
            inside = False
        if not inside and not line.startswith("# by `glm4-deploy tune`"):
            kept.append(line)
    return "".join(kept)
