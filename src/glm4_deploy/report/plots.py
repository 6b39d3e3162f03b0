"""Plots as inline SVG: distributions, the token timeline, the phases of a start.

Without script, image or outside font, in the page's own colours (light, dark and print). Drawn by hand on purpose:
pygal embeds a script and makes the timeline of 24 streams 2.4 MB where this makes 0.14 MB; leather makes six times as
much and has fixed colours, so no dark mode.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
LEFT = 54
RIGHT = 30
TOP = 14
BOTTOM = 40
SERIES = 4  # as many colours as the page has (--s0 to --s3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: its label and its values, in milliseconds."""

    label: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stream of the timeline.

    Attributes:
        arrivals: when its tokens came, in seconds after it was sent.
        loop_at: when the first copy of what repeats began; None for an answer without a loop.
    """

    label: str
    arrivals: tuple[float, ...]
    loop_at: float | None = None


def distribution(series: Sequence[Series], unit: str, title: str) -> str:
    """The share of answers (y) within a time (x, from 0): one step curve per series, lines at p50 and p95."""
    height = 260
    shown = [one for one in series if one.values][:SERIES]
    if not shown:
        return ""
    top = nice_ceiling(max(max(one.values) for one in shown))
    parts = [_frame(height, top, unit), *_shares(height)]
    for place, one in enumerate(shown):
        parts.append(_steps(sorted(one.values), top, height, place))
    return _svg(height, title, parts)


def timeline(rows: Sequence[Row], title: str) -> str:
    """One row per stream, one tick per token, a dot at the first; what came after a loop began has its own colour."""
    pitch = 18
    height = TOP + BOTTOM + pitch * len(rows)
    if not rows:
        return ""
    top = nice_ceiling(max(row.arrivals[-1] for row in rows))
    parts = [_frame(height, top, "s after it was sent")]
    for place, row in enumerate(rows):
        y = TOP + pitch * place + pitch / 2
        first = _x(row.arrivals[0], top)
        looping = bisect_left(row.arrivals, row.loop_at) if row.loop_at is not None else len(row.arrivals)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{first:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if row.loop_at is not None:
            begin, end = _x(row.loop_at, top), _x(row.arrivals[-1], top)
            parts.append(
                f'<rect class="looping" x="{begin:.1f}" y="{y - 7:.1f}" width="{end - begin + 2:.1f}" height="14"/>'
            )
        for name, arrivals in (("tick", row.arrivals[:looping]), ("tick bad", row.arrivals[looping:])):
            ticks = "".join(f"M{x:.1f} {y - 4:.1f}v8" for x in _thin([_x(at, top) for at in arrivals]))
            parts.append(f'<path class="{name}" d="{ticks}"/>' if ticks else "")
        parts.append(
            f'<circle class="first" cx="{first:.1f}" cy="{y:.1f}" r="3"><title>{escape(row.label)}</title></circle>'
        )
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{place + 1}</text>')
    return _svg(height, title, parts)


def spans(steps: Sequence[tuple[str, float, float]], title: str) -> str:
    """One bar per step, (name, begin, end) in seconds: where the time of a start went."""
    pitch = 22
    left = 96
    height = TOP + BOTTOM + pitch * len(steps)
    if not steps:
        return ""
    top = nice_ceiling(max(end for _, _, end in steps))
    parts = [_frame(height, top, "s after the start", left)]
    for place, (name, begin, end) in enumerate(steps):
        y = TOP + pitch * place
        x, until = _x(begin, top, left), _x(end, top, left)
        label = f"{end - begin:.1f} s"
        inside = until > WIDTH - RIGHT - 60
        parts.append(
            f'<rect class="span" x="{x:.1f}" y="{y + 3}" width="{max(1.0, until - x):.1f}" height="{pitch - 7}"/>'
        )
        parts.append(f'<text class="axis" x="{left - 6}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        anchor, at = ("end", x - 5) if inside else ("start", until + 5)
        parts.append(f'<text class="axis" x="{at:.1f}" y="{y + 15}" text-anchor="{anchor}">{label}</text>')
    return _svg(height, title, parts)


def nice_ceiling(value: float) -> float:
    """The next of ten round numbers times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power > value:
        power /= 10
    while power * 10 <= value:
        power *= 10
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if power * step >= value)


def _x(value: float, top: float, left: int = LEFT) -> float:
    return left + (WIDTH - left - RIGHT) * min(value / top, 1.0)


def _frame(height: int, top: float, unit: str, left: int = LEFT) -> str:
    """The x axis with five labels."""
    base = height - BOTTOM
    parts = [f'<line class="base" x1="{left}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for step in range(5):
        value = top * step / 4
        x = _x(value, top, left)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(unit)}</text>')
    return "".join(parts)


def _shares(height: int) -> list[str]:
    span = height - TOP - BOTTOM
    parts = []
    for share in (0.0, 0.5, 0.95, 1.0):
        y = TOP + span * (1 - share)
        if share in {0.5, 0.95}:
            parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if share != 1.0:
            words = {0.0: "0", 0.5: "p50", 0.95: "p95"}[share]
            parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    return parts


def _steps(ordered: list[float], top: float, height: int, place: int) -> str:
    span = height - TOP - BOTTOM
    path = [f"M{_x(ordered[0], top):.1f} {TOP + span}"]
    for rank, value in enumerate(ordered, start=1):
        path.append(f"H{_x(value, top):.1f}V{TOP + span * (1 - rank / len(ordered)):.1f}")
    path.append(f"H{WIDTH - RIGHT}")
    return f'<path class="curve s{place}" d="{"".join(path)}"/>'


def _thin(xs: list[float]) -> list[float]:
    """Ticks at least half a pixel apart: more would only fill the file."""
    kept: list[float] = []
    for x in xs:
        if not kept or x - kept[-1] >= 0.5:
            kept.append(x)
    return kept


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
