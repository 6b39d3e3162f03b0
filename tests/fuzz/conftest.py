"""Prints how much was tried, and the worst of it."""

import resource

import pytest

from fuzz.harness import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.inputs:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        terminalreporter.write_line(
            f"fuzz: {TALLY.inputs} inputs, {TALLY.refused} refused, slowest {TALLY.worst[0]:.2f} s of CPU "
            f"({TALLY.worst[1]}), peak memory of the whole run {peak} MiB"
        )
