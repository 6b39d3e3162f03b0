"""The table of tests/e2e/test_engines.py: one row for each engine, one column for each test."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from scripts.engines import newest

TESTS = "test_engines.py"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One test of one engine."""

    vllm: str
    test: str
    outcome: str
    observed: str
    seconds: int

    @property
    def text(self) -> str:
        return f"{self.outcome}: {self.observed}" if self.observed else self.outcome


def _deploys_newest(item: pytest.Item) -> bool:
    """Other tests deploy that one."""
    deploys = item.nodeid.partition("::")[0].endswith(TESTS) and "deployed" in item.fixturenames
    return deploys and f"[{newest()}" in item.nodeid


class Matrix:
    """Collects the outcomes, and leaves out what runs only for engines that are named."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cells: list[Cell] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._config.getoption("--engines"):
            return
        left_out = [item for item in items if item.get_closest_marker("matrix") or _deploys_newest(item)]
        items[:] = [item for item in items if item not in left_out]
        self._config.hook.pytest_deselected(items=left_out)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if TESTS not in report.nodeid or (report.when != "call" and report.passed):
            return
        name, _, parameters = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        vllm, _, variant = parameters.partition("-")
        observed = dict(report.user_properties).get("observed", "")
        if report.skipped and isinstance(report.longrepr, tuple):
            observed = report.longrepr[2]
        self._cells.append(
            Cell(
                vllm=vllm,
                test=" ".join([*name.removeprefix("test_").split("_"), *([variant] if variant else [])]),
                outcome=report.outcome,
                observed=str(observed),
                seconds=round(report.duration),
            )
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._cells:
            return
        table = self.markdown()
        terminalreporter.section("engines")
        terminalreporter.write_line(table)
        if out := self._config.getoption("--engines-out"):
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / "engines.md").write_text(table)
            (Path(out) / "engines.json").write_text(json.dumps([asdict(cell) for cell in self._cells], indent=1))

    def markdown(self) -> str:
        tests = list(dict.fromkeys(cell.test for cell in self._cells))
        cells = {(cell.vllm, cell.test): cell.text for cell in self._cells}
        lines = [["vLLM", *tests], ["---"] * (len(tests) + 1)]
        for vllm in dict.fromkeys(cell.vllm for cell in self._cells):
            lines.append([vllm, *(cells.get((vllm, test), "") for test in tests)])
        date = datetime.now(tz=UTC).date()
        rows = "\n".join("| " + " | ".join(word.replace("|", "\\|") for word in line) + " |" for line in lines)
        return f"{date}\n\n{rows}\n"
