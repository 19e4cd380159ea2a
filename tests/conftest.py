"""At the end of a run: how long each part of the suite took, and what the exploring tests went through."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import tally

# Time limits per example would make property tests fail on a busy computer.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A table of the parts (`tests/NAME/`), slowest first."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            part = _part(report.nodeid)
            seconds[part] += report.duration
            tests[part] += report.when == "call"
    if not seconds:
        return
    terminalreporter.section("parts")
    for part in sorted(seconds, key=lambda name: -seconds[name]):
        terminalreporter.line(f"{part:<40} {tests[part]:>5} tests {seconds[part]:>8.1f} s")
    for kind, number in tally.totals().items():
        terminalreporter.line(f"{kind:<40} {number:>5}")


def _part(nodeid: str) -> str:
    """The directory of a fast part; a slow one is told by file."""
    path = Path(nodeid.partition("::")[0])
    return str(path) if "cluster" in path.parts else str(path.parent)
