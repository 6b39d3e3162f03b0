"""Known failures of an engine's start and service, as typed rows of signatures.yaml."""

import re
from dataclasses import dataclass
from functools import cache

from glm4_deploy.catalog import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One row. has: literals, one of which every matching line contains: they are looked for before the regex.

    wrapper: the line only tells that something failed; its cause stands elsewhere. example: a line as seen.
    where: versions, GPUs or hosts where it matters, for people.
    """

    id: str
    severity: str
    has: tuple[str, ...]
    regex: re.Pattern[str]
    cause: str
    fix: str
    source: str
    example: str
    where: str = ""
    wrapper: bool = False


@cache
def signatures() -> tuple[Signature, ...]:
    """All rows, in the order of the file."""
    return tuple(
        Signature(**{**row, "has": tuple(row["has"]), "regex": re.compile(row["regex"])})
        for row in load("signatures")["signatures"]
    )


def table() -> str:
    """The rows as a Markdown table, for docs/reference/signatures.md."""
    rows = ["| id | severity | cause | what to do | seen |", "|---|---|---|---|---|"]
    for row in signatures():
        where = f" ({row.where})" if row.where else ""
        cells = (f"`{row.id}`", row.severity, row.cause + where, row.fix, row.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
