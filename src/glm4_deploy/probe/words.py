"""Untrusted text inside the short phrases of a verdict."""


def shorten(text: str, limit: int = 160) -> str:
    """On one line, at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def quote(text: str, limit: int = 60) -> str:
    """As `shorten`, in quotes; `nothing` for an answer that holds no word."""
    return repr(shorten(text, limit)) if text.strip() else "nothing"


def parting(one: str, other: str) -> str:
    """Where two texts part, and how each goes on from there."""
    shorter = min(len(one), len(other))
    where = next((place for place in range(shorter) if one[place] != other[place]), shorter)
    return f"they part at character {where}: {quote(one[where:], 30)} against {quote(other[where:], 30)}"
