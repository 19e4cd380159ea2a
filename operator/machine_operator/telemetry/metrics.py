"""What the controller counts, for Prometheus.

Queue, reconcile and client metrics have the names and labels of controller-runtime and client-go, so that dashboards
and alerts made for those fit. What is counted when it happens has its labels resolved once. What can be read off the
engine (machines by phase, age of the watches) is asked for when somebody scrapes, and costs nothing in between.

No label ever carries the name or namespace of an object: their number is not bounded, and a metrics store is
not under Kubernetes' access control. `docs/operations/metrics.md` lists all metrics; a test compares it with this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from machine_operator import __version__
from machine_operator.api.phases import Phase
from machine_operator.telemetry.registry import Asked

__all__ = ["CONTROLLER", "ControllerMetrics", "RequestRecord", "WorkInProgress"]

CONTROLLER = "machine"
"""The value of the labels `name` and `controller`: there is one controller and it has one queue."""

_RESULTS = ("success", "requeue", "requeue_after", "error")

_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REQUESTS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30)
_LIVES = (0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200)
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_NO_ANSWER = "<error>"
"""What client-go writes for the code of a request that got no answer."""

_METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "delete": "DELETE",
}
"""The HTTP methods of Kubernetes' verbs; `patch` and `apply` are PATCH."""


class RequestRecord(Protocol):
    """One request to kube-apiserver that has ended."""

    @property
    def verb(self) -> str:
        """Kubernetes' word for what was done, as in RBAC, and `apply`."""

    @property
    def resource(self) -> str:
        """What it was done to: a plural, perhaps with a subresource; never a name."""

    @property
    def code(self) -> int:
        """The HTTP status, or 0 where there was no answer."""

    @property
    def seconds(self) -> float:
        """How long it took."""


class WorkInProgress(Protocol):
    """What is being worked on."""

    @property
    def keys(self) -> int:
        """How many keys."""

    @property
    def seconds(self) -> float:
        """How long work on all of them has taken so far, together."""

    @property
    def longest(self) -> float:
        """How long work on one of them has taken so far, at most."""


class _QueueMetrics:
    """The part that the work queue tells, each method a `QueueMetrics` one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("name", "controller")
        label = {"name": CONTROLLER, "controller": CONTROLLER}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=registry).labels(**label)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, names, buckets=_WAITS, registry=registry).labels(**label)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=registry).labels(**label)

        depth = gauge("workqueue_depth", "Keys that wait for a worker")
        adds = counter("workqueue_adds_total", "Keys added that did not wait already")
        waited = histogram("workqueue_queue_duration_seconds", "How long a key waited for a worker")
        worked = histogram("workqueue_work_duration_seconds", "How long work on a key took")
        retries = counter("workqueue_retries_total", "Looks at a key that ended in a retry")
        self._unfinished = gauge(
            "workqueue_unfinished_work_seconds",
            "Seconds of work on keys that is still under way, all together",
        )
        self._longest = gauge(
            "workqueue_longest_running_processor_seconds",
            "How long the longest work on a key that is still under way has taken so far",
        )
        self._active = Gauge(
            "controller_runtime_active_workers",
            "How many machines are being looked at",
            ("controller",),
            registry=registry,
        ).labels(CONTROLLER)
        # Bound methods of the children: one call each on the hot path.
        self.queue_depth: Callable[[int], None] = depth.set
        self.queue_added: Callable[[], None] = adds.inc
        self.queue_waited: Callable[[float], None] = waited.observe
        self.queue_worked: Callable[[float], None] = worked.observe
        self.queue_retried: Callable[[], None] = retries.inc

    def ask_queue(self, in_progress: Callable[[], WorkInProgress]) -> None:
        """Ask at each scrape for the work that is under way."""
        self._active.set_function(lambda: in_progress().keys)
        self._unfinished.set_function(lambda: in_progress().seconds)
        self._longest.set_function(lambda: in_progress().longest)


class _ReconcileMetrics:
    """Passes of the reconciler."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("controller",)
        total = Counter(
            "controller_runtime_reconcile_total",
            "Looks at a machine, by how they ended",
            ("controller", "result"),
            registry=registry,
        )
        self._results = {result: total.labels(CONTROLLER, result) for result in _RESULTS}
        self._errors = Counter(
            "controller_runtime_reconcile_errors_total",
            "Looks at a machine that ended in an error",
            names,
            registry=registry,
        ).labels(CONTROLLER)
        self._seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "How long a look at a machine took",
            names,
            buckets=_WAITS,
            registry=registry,
        ).labels(CONTROLLER)
        self._workers = Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "How many machines can be looked at at the same time",
            names,
            registry=registry,
        ).labels(CONTROLLER)

    def workers(self, count: int) -> None:
        """There are so many workers."""
        self._workers.set(count)

    def reconciled(self, *, result: str, seconds: float) -> None:
        """A worker has looked at a machine.

        Args:
            result: success, requeue, requeue_after or error.
            seconds: how long it took.

        Raises:
            KeyError: it is none of these.
        """
        self._results[result].inc()
        if result == "error":
            self._errors.inc()
        self._seconds.observe(seconds)


class _RequestMetrics:
    """Requests to kube-apiserver, and what is heard from it."""

    def __init__(self, registry: CollectorRegistry, *, host: str) -> None:
        self._host = host
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to kube-apiserver, by status code; <error> where there was no answer",
            ("code", "method", "host"),
            registry=registry,
        )
        self._latency = Histogram(
            "rest_client_request_duration_seconds",
            "How long requests to kube-apiserver took, without watches",
            ("verb", "host"),
            buckets=_REQUESTS,
            registry=registry,
        )
        self._writes = Counter(
            "machine_operator_api_writes_total",
            "Requests to kube-apiserver that change something, whether they succeeded or not",
            ("verb", "resource"),
            registry=registry,
        )
        self._relists = Asked(
            registry,
            "machine_operator_watch_relists",
            "Times that all objects were listed anew because a watch could not go on",
            label="resource",
            kind="counter",
        )
        self._ages = Asked(
            registry,
            "machine_operator_watch_age_seconds",
            "Seconds since anything was heard on a watch; bookmarks come about once a minute",
            label="resource",
        )
        self._events = Asked(
            registry,
            "machine_operator_events",
            "Kubernetes Events, by what became of them",
            label="result",
            kind="counter",
        )
        self._by_code: dict[tuple[str, int], Counter] = {}
        self._by_verb: dict[str, Histogram] = {}
        self._by_write: dict[tuple[str, str], Counter] = {}

    def on_request(self, record: RequestRecord) -> None:
        """A request has ended, with or without an answer."""
        verb = record.verb
        method = _METHODS.get(verb, "PATCH")
        counter = self._by_code.get((method, record.code))
        if counter is None:
            code = str(record.code or _NO_ANSWER)
            counter = self._requests.labels(code, method, self._host)
            self._by_code[method, record.code] = counter
        counter.inc()
        if verb != "watch":
            latency = self._by_verb.get(method)
            if latency is None:
                latency = self._by_verb[method] = self._latency.labels(method, self._host)
            latency.observe(record.seconds)
        if method != "GET":
            key = (verb, record.resource)
            writes = self._by_write.get(key)
            if writes is None:
                writes = self._by_write[key] = self._writes.labels(*key)
            writes.inc()

    def ask_watches(
        self,
        *,
        ages: Callable[[], Mapping[str, float]],
        relists: Callable[[], Mapping[str, int]],
    ) -> None:
        """Ask at each scrape, by resource, for the seconds since anything was heard, and the new listings so far."""
        self._ages.values = ages
        self._relists.values = lambda: {resource: float(n) for resource, n in relists().items()}

    def ask_events(self, tally: Callable[[], Mapping[str, int]]) -> None:
        """Ask at each scrape for the number of Events so far, by what became of them."""
        self._events.values = lambda: {result: float(n) for result, n in tally().items()}


class _MachineMetrics:
    """Machines, and what people wait for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._machines = Asked(
            registry,
            "machine_operator_machines",
            "Machines by phase; a phase without machines is 0",
            label="phase",
        )
        self._not_ready = Asked(
            registry,
            "machine_operator_machines_not_ready",
            "Machines whose condition Ready is not True, by its reason",
            label="reason",
        )
        running = Histogram(
            "machine_operator_time_to_running_seconds",
            "From a machine's creation, or from the wish to wake it, until it runs",
            ("from",),
            buckets=_LIVES,
            registry=registry,
        )
        self._running = {start: running.labels(start) for start in ("create", "wake")}
        self._sleep = Histogram(
            "machine_operator_time_to_sleep_seconds",
            "From the wish that a machine sleeps until it does",
            buckets=_LIVES,
            registry=registry,
        )
        self._reports = Counter(
            "machine_operator_reports_total",
            "Troubles that were told to a machine's owner, by reason",
            ("reason",),
            registry=registry,
        )

    def ask_machines(
        self,
        *,
        phases: Callable[[], Mapping[Phase, int]],
        not_ready: Callable[[], Mapping[str, int]],
    ) -> None:
        """Ask at each scrape for the number of machines by phase, and of those not Ready by reason."""

        def every_phase() -> dict[str, float]:
            there = phases()
            return {phase.value: float(there.get(phase, 0)) for phase in Phase}

        self._machines.values = every_phase
        self._not_ready.values = lambda: {str(k): float(n) for k, n in not_ready().items()}

    def time_to_running(self, seconds: float, *, since: str) -> None:
        """A machine runs, so many seconds after its `create` or `wake`.

        Raises:
            KeyError: `since` is neither of the two.
        """
        self._running[since].observe(seconds)

    def time_to_sleep(self, seconds: float) -> None:
        """A machine sleeps, so many seconds after it was asked to."""
        self._sleep.observe(seconds)

    def trouble_told(self, reason: str) -> None:
        """A trouble was told to a machine's owner; `reason` is one of the stable words for it."""
        self._reports.labels(reason).inc()


class ControllerMetrics(_QueueMetrics, _ReconcileMetrics, _RequestMetrics, _MachineMetrics):
    """All metrics of a controller process, in one registry. It is also the work queue's `QueueMetrics`.

    Args:
        registry: where they are registered; one `ControllerMetrics` each.
        host: HOST:PORT of kube-apiserver, a label of the client's metrics.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str = "kubernetes") -> None:
        _QueueMetrics.__init__(self, registry)
        _ReconcileMetrics.__init__(self, registry)
        _RequestMetrics.__init__(self, registry, host=host)
        _MachineMetrics.__init__(self, registry)
        self._leader = Gauge(
            "leader_election_master_status",
            "1 while this process is the leader that works on machines, else 0",
            ("name",),
            registry=registry,
        )
        lag = Histogram(
            "machine_operator_loop_lag_seconds",
            "How late the event loop ran something that was due, looked at each second",
            buckets=_LAGS,
            registry=registry,
        )
        self.loop_lagged: Callable[[float], None] = lag.observe
        Gauge(
            "machine_operator_build_info",
            "Always 1; the label tells the version",
            ("version",),
            registry=registry,
        ).labels(__version__).set(1)

    def leading(self, lease: str, leads: bool) -> None:
        """This process has become the leader of `lease`, or is it no longer."""
        self._leader.labels(lease).set(1 if leads else 0)
