"""What all parts of the suite share: side by side with xdist, and a table of them at the end of a run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

from tests.support import tally

# Time limits per example would make property tests fail on a busy computer.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

_CLUSTER_LIMIT = 300.0
_ON_CLUSTERS = ("tests/cluster/", "tests/conformance/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the tests of clusters, not their fixtures: on a fresh computer the first one builds the control plane for
    minutes.
    """
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_CLUSTER_LIMIT, func_only=True))


class _ClustersTogether(LoadScopeScheduling):
    """One process has the clusters; the others run what needs none, test by test.

    `--dist loadgroup` would do, but its groups are not seen with pytest 9.2.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(_ON_CLUSTERS) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With several processes, who runs what."""
    return _ClustersTogether(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several tells the first one what it counted."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tally"] = tally.totals()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Which takes it over."""
    counted: dict[str, int] = getattr(node, "workeroutput", {}).get("tally", {})
    for kind, number in counted.items():
        tally.count(kind, number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long each part of the suite took (`tests/NAME/`), slowest first, and what exploring tests went through."""
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
