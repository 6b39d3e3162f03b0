"""Untrusted text inside a report, and inside the short phrases of a verdict."""

KEPT = 20_000  # characters: some four times what the longest honest answer here has


def shorten(text: str, limit: int = 160) -> str:
    """On one line, at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def bound(text: str, limit: int = KEPT) -> str:
    """At most `limit` characters and a word on the rest: what a report keeps of an answer, whatever the server sent."""
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit} more characters"


def quote(text: str, limit: int = 60) -> str:
    """As `shorten`, in quotes; `nothing` for an answer that holds no word."""
    return repr(shorten(text, limit)) if text.strip() else "nothing"


def parting(one: str, other: str) -> str:
    """Where two texts part, and how each goes on from there."""
    shorter = min(len(one), len(other))
    where = next((place for place in range(shorter) if one[place] != other[place]), shorter)
    return f"they part at character {where}: {quote(one[where:], 30)} against {quote(other[where:], 30)}"
