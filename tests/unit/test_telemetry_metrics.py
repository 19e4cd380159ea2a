"""What is counted, under which names; and that the documentation lists exactly that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from machine_operator import __version__
from machine_operator.api.phases import Phase
from machine_operator.controller.queue import QueueMetrics, WorkQueue
from machine_operator.telemetry.gateway import GatewayMetrics
from machine_operator.telemetry.metrics import ControllerMetrics
from machine_operator.telemetry.registry import new_registry
from tests.support.virtual import run_virtual

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations" / "metrics.md"
QUEUE = {"name": "machine", "controller": "machine"}
HOST = "api:6443"


@dataclass
class Request:
    verb: str
    resource: str = "machines"
    code: int = 200
    seconds: float = 0.1


@dataclass
class Work:
    keys: int
    seconds: float
    longest: float


class Counts:
    """Metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.of = ControllerMetrics(self.registry, host=HOST)

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def counts() -> Counts:
    return Counts()


def use_all(metrics: ControllerMetrics) -> None:
    """Have each metric show all of its labels."""
    metrics.on_request(Request("apply"))
    metrics.leading("machine-operator", True)
    metrics.trouble_told("QuotaExceeded")
    metrics.ask_machines(phases=lambda: {Phase.RUNNING: 2}, not_ready=lambda: {"CrashLoop": 1})
    metrics.ask_watches(ages=lambda: {"machines": 1.0}, relists=lambda: {"machines": 0})
    metrics.ask_events(lambda: {"created": 3})
    metrics.ask_queue(lambda: Work(2, 5.0, 3.0))


def use_all_of_the_gateway(metrics: GatewayMetrics) -> None:
    metrics.answered("/v1/machines", "GET", 200, seconds=0.001)
    metrics.machines.values = lambda: {"machines": 3.0}
    metrics.behind.values = lambda: {"machines": 0.0}
    metrics.inside.values = lambda: {"connections": 1}
    metrics.entries.values = lambda: {"wakes_asked": 1}
    metrics.connects.observe(0.1)


def test_the_queue_tells_its_story(counts: Counts) -> None:
    sink: QueueMetrics = counts.of

    async def scenario() -> None:
        now = [0.0]
        queue: WorkQueue[str] = WorkQueue(sink=sink, clock=lambda: now[0])
        counts.of.ask_queue(queue.in_progress)
        queue.add("a")
        queue.add("a")
        queue.add("b")
        assert counts.value("workqueue_depth", **QUEUE) == 2
        now[0] = 3.0
        await queue.get()
        await queue.get()
        now[0] = 4.0
        queue.done("a")
        now[0] = 5.0
        assert counts.value("controller_runtime_active_workers", controller="machine") == 1
        assert counts.value("workqueue_unfinished_work_seconds", **QUEUE) == 2
        assert counts.value("workqueue_longest_running_processor_seconds", **QUEUE) == 2
        queue.retry("a")

    run_virtual(scenario())
    assert counts.value("workqueue_depth", **QUEUE) == 0
    assert counts.value("workqueue_adds_total", **QUEUE) == 2
    assert counts.value("workqueue_queue_duration_seconds_sum", **QUEUE) == 6
    assert counts.value("workqueue_queue_duration_seconds_count", **QUEUE) == 2
    assert counts.value("workqueue_work_duration_seconds_sum", **QUEUE) == 1
    assert counts.value("workqueue_retries_total", **QUEUE) == 1


def test_passes_are_counted_by_result(counts: Counts) -> None:
    counts.of.workers(32)
    for result in ("success", "error", "error", "requeue_after"):
        counts.of.reconciled(result=result, seconds=0.5)
    total = "controller_runtime_reconcile_total"
    expected = {"success": 1, "requeue": 0, "requeue_after": 1, "error": 2}
    for result, number in expected.items():
        assert counts.value(total, controller="machine", result=result) == number
    only = {"controller": "machine"}
    assert counts.value("controller_runtime_reconcile_errors_total", **only) == 2
    assert counts.value("controller_runtime_reconcile_time_seconds_sum", **only) == 2
    assert counts.value("controller_runtime_max_concurrent_reconciles", **only) == 32
    with pytest.raises(KeyError):
        counts.of.reconciled(result="perhaps", seconds=0.5)


@pytest.mark.parametrize(
    ("verb", "method", "writes"),
    [
        ("get", "GET", False),
        ("list", "GET", False),
        ("watch", "GET", False),
        ("create", "POST", True),
        ("update", "PUT", True),
        ("patch", "PATCH", True),
        ("apply", "PATCH", True),
        ("delete", "DELETE", True),
    ],
)
def test_requests_are_counted_by_code_and_writes_by_verb(
    counts: Counts, verb: str, method: str, writes: bool
) -> None:
    for code in (200, 200, 409, 0):
        counts.of.on_request(Request(verb, "machines/status", code=code))
    requests = "rest_client_requests_total"
    for code, number in (("200", 2), ("409", 1), ("<error>", 1)):
        assert counts.value(requests, code=code, method=method, host=HOST) == number
    written = counts.value(
        "machine_operator_api_writes_total", verb=verb, resource="machines/status"
    )
    assert written == (4 if writes else None)
    took = counts.value("rest_client_request_duration_seconds_count", verb=method, host=HOST)
    assert took == (None if verb == "watch" else 4)


def test_machines_are_counted_when_somebody_scrapes(counts: Counts) -> None:
    phases: dict[Phase, int] = {}
    reasons = {"CrashLoop": 1}
    counts.of.ask_machines(phases=lambda: phases, not_ready=lambda: reasons)
    assert counts.value("machine_operator_machines", phase="running") == 0
    phases[Phase.RUNNING] = 7
    assert counts.value("machine_operator_machines", phase="running") == 7
    assert counts.value("machine_operator_machines", phase="sleeping") == 0
    assert counts.value("machine_operator_machines_not_ready", reason="CrashLoop") == 1
    reasons.clear()
    assert counts.value("machine_operator_machines_not_ready", reason="CrashLoop") is None


def test_what_people_wait_for(counts: Counts) -> None:
    counts.of.time_to_running(4.0, since="create")
    counts.of.time_to_running(2.0, since="wake")
    counts.of.time_to_sleep(8.0)
    name = "machine_operator_time_to_running_seconds_sum"
    assert counts.value(name, **{"from": "create"}) == 4
    assert counts.value(name, **{"from": "wake"}) == 2
    assert counts.value("machine_operator_time_to_sleep_seconds_sum") == 8
    counts.of.loop_lagged(0.25)
    assert counts.value("machine_operator_loop_lag_seconds_sum") == 0.25
    counts.of.trouble_told("QuotaExceeded")
    assert counts.value("machine_operator_reports_total", reason="QuotaExceeded") == 1
    for leads in (True, False):
        counts.of.leading("operator", leads)
        assert counts.value("leader_election_master_status", name="operator") == leads
    assert counts.value("machine_operator_build_info", version=__version__) == 1


def test_two_controllers_share_nothing() -> None:
    one, other = Counts(), Counts()
    one.of.queue_added()
    assert other.value("workqueue_adds_total", **QUEUE) == 0


def test_names_do_not_clash_in_a_registry(counts: Counts) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        ControllerMetrics(counts.registry)


def test_the_page_has_no_series_of_beginnings(counts: Counts) -> None:
    use_all(counts.of)
    page = generate_latest(counts.registry).decode()
    assert "workqueue_adds_total{" in page
    assert "_created" not in page
    assert "process_resident_memory_bytes" in page


# ---- the documentation


def metrics_of_the_code() -> dict[str, tuple[str, set[str]]]:
    registry = CollectorRegistry()
    use_all(ControllerMetrics(registry, host=HOST))
    use_all_of_the_gateway(GatewayMetrics(registry))
    found: dict[str, tuple[str, set[str]]] = {}
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        assert metric.samples, f"{name}: `use_all` does not use it"
        found[name] = (metric.type, labels)
    return found


def metrics_of_the_document() -> dict[str, tuple[str, set[str]]]:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_documentation_lists_all_metrics() -> None:
    assert metrics_of_the_document() == metrics_of_the_code(), f"{DOCUMENT} is out of date"


def test_alerts_of_the_documentation_use_metrics_that_exist() -> None:
    known = set(metrics_of_the_code())
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (group,) = yaml.safe_load(block)["groups"]
    assert len(group["rules"]) == 3
    used = {
        name
        for rule in group["rules"]
        for name in re.findall(
            r"\b(?:workqueue|controller_runtime|machine_operator)_\w+", rule["expr"]
        )
    }
    assert len(used) >= 3
    for name in used:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in known or name in known


def test_no_label_names_an_object() -> None:
    for name, (_, labels) in metrics_of_the_code().items():
        assert not labels & {"namespace", "machine", "uid", "pod", "node"}, name
        assert "name" not in labels or name.startswith(("workqueue_", "leader_election_"))
