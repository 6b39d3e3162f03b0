"""Reports as text for machines: JSON, its JSON Schema, and JUnit XML. Nothing here prints."""

import dataclasses
import json
from typing import Any
from xml.etree import ElementTree

from glm4_deploy.report_model import Report
from glm4_deploy.result import Result, Status
from glm4_deploy.text import cap, escape_json, one_line


def to_wire(value: Any) -> Any:
    """Dataclasses to dicts (a `wire` method says how), tuples to lists; everything else as it is."""
    if hasattr(value, "wire"):
        return to_wire(value.wire())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    return value


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """JSON text that is safe on a terminal: control characters are escaped, other characters stay readable.

    NaN and infinities are refused (JSON has neither): use None for unknown numbers. Half a surrogate pair (a file name
    that is not UTF-8) becomes its JSON escape, which every stream can carry.
    """
    text = json.dumps(to_wire(value), ensure_ascii=False, indent=indent, allow_nan=False)
    return escape_json(text)


def report_json(report: Report, details: Any = None) -> str:
    """The report, followed by the keys of its kind (`details`: a dict or a dataclass)."""
    shared = to_wire(report)
    more = {} if details is None else to_wire(details)
    return dumps(shared | {key: value for key, value in more.items() if key not in shared}) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the keys that all reports share; report.schema.json is its text."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Report).json_schema(mode="serialization")
    for part in (schema, *schema["$defs"].values()):
        if "properties" in part:
            part["required"] = list(part["properties"])
            part["additionalProperties"] = part is schema  # each kind adds its keys at the top
            for described in part["properties"].values():
                described.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


EVIDENCE = 2000  # characters of each piece


def to_junit(report: Report, *, seconds: float = 0.0, started: str = "", note: str = "") -> str:
    """One <testsuite> with a test case per result. `unknown` is an error: a check that was not decided did not pass."""
    count = {status: sum(row.status is status for row in report.results) for status in Status}
    suite = ElementTree.Element(
        "testsuite",
        name=f"glm4-deploy {report.kind}",
        tests=str(len(report.results)),
        failures=str(count[Status.FAIL]),
        errors=str(count[Status.UNKNOWN]),
        skipped=str(count[Status.SKIPPED]),
        time=f"{seconds:.3f}",
    )
    if started:
        suite.set("timestamp", started[:19])
    for row in report.results:
        _case(suite, row, report.kind)
    if note:
        ElementTree.SubElement(suite, "system-out").text = one_line(note, 4000)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, row: Result, kind: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"glm4-deploy.{kind.replace(' ', '.')}",
        name=one_line(" ".join(filter(None, (row.check, row.source, str(row.line or "")))), 200),
        time=f"{row.seconds or 0:.3f}",
    )
    words = one_line(row.observed or row.reason)
    if row.status is Status.FAIL:
        ElementTree.SubElement(case, "failure", message=words).text = _body(row)
    elif row.status is Status.UNKNOWN:
        ElementTree.SubElement(case, "error", message=words).text = _body(row)
    elif row.status is Status.SKIPPED:
        ElementTree.SubElement(case, "skipped", message=words)
    else:
        ElementTree.SubElement(case, "system-out").text = f"{row.status}: {words}"


def _body(row: Result) -> str:
    lines = [f"expected: {one_line(row.expected)}", f"what to do: {one_line(row.remedy)}"]
    lines += [f"{one_line(piece.name)}:\n{cap(piece.text, EVIDENCE)}" for piece in row.evidence]
    return "\n".join(lines)
