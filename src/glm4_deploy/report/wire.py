"""JUnit XML, as CI systems read it: one test case a check."""

import dataclasses
import json
from typing import Any
from xml.etree import ElementTree

from glm4_deploy.report_model import SuiteReport
from glm4_deploy.result import Result, Status
from glm4_deploy.text import cap, escape_json, one_line

# Frozen dataclasses to JSON, the one way that every `--json` takes.


def to_wire(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists; everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    return value


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """JSON text that a terminal may show: what would steer it is escaped, other letters stay readable.

    NaN and infinities are refused (they are no JSON): give None for unknown numbers. Half a surrogate pair (a file name
    that is not UTF-8) becomes its JSON escape, which every stream can carry.
    """
    text = json.dumps(to_wire(value), ensure_ascii=False, indent=indent, allow_nan=False)
    return escape_json(text)


EVIDENCE = 2000  # characters of each piece


def to_junit(report: SuiteReport) -> str:
    """The report as one <testsuite>. `unknown` counts as an error: it was not judged, and is no pass."""
    count = {status: sum(row.status is status for row in report.results) for status in Status}
    suite = ElementTree.Element(
        "testsuite",
        name=f"glm4-deploy smoke {report.suite}",
        tests=str(len(report.results)),
        failures=str(count[Status.FAIL]),
        errors=str(count[Status.UNKNOWN]),
        skipped=str(count[Status.SKIPPED]),
        time=f"{report.seconds:.3f}",
        timestamp=report.started[:19],
    )
    for row in report.results:
        _case(suite, row)
    ElementTree.SubElement(suite, "system-out").text = one_line(report.covered, 4000)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, row: Result) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="glm4-deploy.smoke", name=row.check, time=f"{row.seconds or 0:.3f}"
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
