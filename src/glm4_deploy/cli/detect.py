"""`glm4-deploy detect`: the detector on a file or a pipe."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopFinding
from glm4_deploy.errors import Judged, UsageError
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import make_report
from glm4_deploy.result import Result
from glm4_deploy.text import escape_json


class InputFormat(StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


def detect(
    file: Annotated[str, typer.Argument(help="A file, or - for standard input.", show_default=False)] = "-",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per document, one per line.")] = False,
    kind: Annotated[
        InputFormat,
        typer.Option(
            "--format", help='auto: JSONL if FILE ends in .jsonl or its first line is an object with a "text".'
        ),
    ] = InputFormat.AUTO,
    junit: JUnit = None,
) -> None:
    """Find loops and garbage in generated text.

    The input is plain text (one document) or JSONL (one document per row).

    A JSONL row is {"text": …} and, where known, "prompt", "finish_reason", "token_ids" and "logprobs": each one
    improves the verdict. Exit 0: all clean. 1: something degenerate. 2: the input could not be read, or has no rows.

    Example: glm4-deploy detect answers.jsonl --json
    """
    outputs = Outputs(json=stdout_if(json_), junit=junit)
    outputs.check()
    degenerate, number = False, 0
    results: list[Result] = []  # for JUnit alone: a stream of rows may be endless
    for number, finding in _findings(file, kind):
        degenerate |= finding.degenerate
        if junit is not None:
            results.append(finding.result(f"row-{number}"))
        if outputs.text:
            typer.echo(_row(number, finding))
        elif json_:
            typer.echo(dumps(finding, indent=None))
    if not number:
        raise UsageError(
            f"no rows in {file}: nothing was judged", hint="give one JSON object per line, each with a text"
        )
    if junit is not None:
        Outputs(junit=junit).write(make_report("detect", results), lambda: "")  # the rows are already printed
    if degenerate:
        raise typer.Exit(Judged.exit_code)


def _findings(file: str, kind: InputFormat) -> Iterator[tuple[int, LoopFinding]]:
    with _open(file) as stream:
        head, rows = _head(stream)
        rows = rows or file.endswith((".jsonl", ".ndjson"))
        if kind is InputFormat.JSONL or (kind is InputFormat.AUTO and rows):
            lines = chain(io.StringIO(head, newline="\n"), stream)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, scan(**_document(line, number))
        else:
            text = head + stream.read()
            _refuse_binary(text, file)
            yield 1, scan(text)


def _open(file: str) -> TextIO:
    try:
        raw = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - the wrapper closes it
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="name a file, or - for standard input") from None
    # newline="\n": offsets count every character as given. surrogateescape: a broken byte is one odd character.
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _refuse_binary(text: str, file: str) -> None:
    """Refuse input of which a third is NUL (UTF-16) or not UTF-8; a few broken bytes are left to the detector."""
    if len(re.findall("[\0\udc80-\udcff]", text)) > len(text) / 3:
        raise UsageError(f"{file} is not UTF-8 text: nothing was judged", hint="convert it: iconv -f UTF-16 -t UTF-8")


def _head(stream: TextIO) -> tuple[str, bool]:
    """The text up to and including the first non-blank line, and whether that line is a JSONL row."""
    head = ""
    for line in stream:
        head += line
        if line.strip():
            try:
                return head, not _FIELDS.keys().isdisjoint(_object(line))
            except ValueError:
                return head, False
    return head, False


def _object(line: str) -> dict[str, Any]:
    """Parse one JSON object. Raises ValueError with a message for the user."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _document(line: str, number: int) -> dict[str, Any]:
    """The arguments of `scan` from a JSONL row; other keys are ignored."""
    try:
        row = _object(line)
        for key, (is_valid, kind) in _FIELDS.items():
            if not is_valid(row.get(key)):
                raise ValueError(f'"{key}" must be {kind}')
    except ValueError as error:
        raise UsageError(
            f"line {number}: {error}",
            hint='each line must be a JSON object such as {"text": "…", "finish_reason": "stop"}',
        ) from None
    return {key: row.get(key) for key in _FIELDS}


def _number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 53)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (lambda value: isinstance(value, str), "a string"),
    "prompt": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "finish_reason": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "token_ids": (
        lambda value: value is None or (isinstance(value, list) and all(type(item) is int for item in value)),
        "a list of integers or null",
    ),
    "logprobs": (
        lambda value: (
            value is None or (isinstance(value, list) and all(item is None or _number(item) for item in value))
        ),
        "a list of numbers and nulls, or null",
    ),
}


def _row(number: int, finding: LoopFinding) -> str:
    """One line for a person."""
    place = f" from character {finding.start}" if finding.start is not None else ""
    unit = f": {_one_line(finding.unit[:60])}" if finding.unit else ""
    return f"{number:>5}  {finding.verdict:<16} {finding.confidence:4.2f}  {_one_line(finding.why)}{place}{unit}"


def _one_line(text: str) -> str:
    """Newlines are escaped, not removed: a unit that repeats may be one."""
    return escape_json(text.replace("\n", "\\n").replace("\t", "\\t"))
