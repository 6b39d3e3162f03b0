"""Order statistics of a handful of timings."""

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear interpolation between closest ranks (NumPy's default); None of nothing. share: 0 to 1."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def milliseconds(seconds: float | None) -> str:
    """For people: `12.3 ms`, `2270 ms`, or `-` where there is none."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
