"""The questions with known answers (catalog/canaries.yaml), and how each answer is judged."""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from glm4_deploy.catalog import load
from glm4_deploy.probe.words import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One question. Exactly one of contains, count_to and json_schema is set; none for a free text."""

    id: str
    family: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    contains: tuple[str, ...] = ()
    count_to: int | None = None
    json_schema: dict[str, Any] | None = None

    @property
    def prompt(self) -> str:
        """The chat as one text, for reports and for the detector."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    @property
    def expected(self) -> str:
        if self.contains:
            return " or ".join(self.contains)
        if self.count_to:
            return f"1 to {self.count_to} in order"
        return "JSON that obeys the schema" if self.json_schema else "a text without a loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A fixed text for perplexity."""

    id: str
    text: str


@cache
def canaries() -> tuple[Canary, ...]:
    return tuple(_canary(row) for row in load("canaries")["canaries"])


@cache
def passages() -> tuple[Passage, ...]:
    return tuple(Passage(id=row["id"], text=row["text"]) for row in load("canaries")["passages"])


def family(name: str) -> tuple[Canary, ...]:
    return tuple(canary for canary in canaries() if canary.family == name)


def named(name: str) -> Canary:
    return next(canary for canary in canaries() if canary.id == name)


def _canary(row: dict[str, Any]) -> Canary:
    expect = row["expect"]
    return Canary(
        id=row["id"],
        family=row["family"],
        messages=tuple(row["messages"]),
        max_tokens=row["max_tokens"],
        contains=tuple(expect.get("contains", ())),
        count_to=expect.get("count_to"),
        json_schema=expect.get("json_schema"),
    )


def fault(canary: Canary, text: str) -> str | None:
    """What is wrong with an answer, in a short phrase with the value seen; None where it is right.

    Loops are the detector's to judge, not this function's.
    """
    if canary.contains:
        return _fault_contains(canary.contains, text)
    if canary.count_to is not None:
        return _fault_count(canary.count_to, text)
    if canary.json_schema is not None:
        return fault_json(canary.json_schema, text)
    return None if text.strip() else "an empty answer"


def _fault_contains(wanted: tuple[str, ...], text: str) -> str | None:
    folded = text.casefold()
    for want in wanted:
        # A number stands alone: 1442 is no answer to 12 * 12, though it contains 144.
        pattern = rf"(?<![\d.,]){re.escape(want)}(?!\d|[.,]\d)" if want.isdigit() else re.escape(want.casefold())
        if re.search(pattern, folded):
            return None
    return f"{quote(text)} instead of {' or '.join(wanted)}"


def _fault_count(last: int, text: str) -> str | None:
    numbers = [int(word[:9]) for word in re.findall(r"\d+", text)]
    for position, number in enumerate(numbers, start=1):
        if number != position:
            before = f"after {position - 1}" if position > 1 else "at the start"
            return f"{number} {before}" if position <= last else f"went on past {last} with {number}"
    if len(numbers) < last:
        return f"stopped at {len(numbers)} of {last}"
    return None if len(numbers) == last else f"went on to {len(numbers)}, past {last}"


def fault_json(schema: dict[str, Any], text: str) -> str | None:
    """As `fault`, for an answer that must be one JSON value obeying a schema (JSON Schema 2020-12)."""
    from jsonschema import Draft202012Validator

    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON ({str(error)[:60]}): {quote(text)}"
    errors = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda error: list(error.absolute_path))
    return f"JSON that breaks the schema: {errors[0].message[:80]}" if errors else None
