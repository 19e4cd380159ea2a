"""What the gateway counts, for Prometheus. Labels carry routes, never ids or organisations.

What happens per request has its series resolved once for each route, method and code; what can be read off the caches
is asked for when somebody scrapes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from machine_operator import __version__
from machine_operator.telemetry.registry import Asked

__all__ = ["GatewayMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class GatewayMetrics:
    """The series of one gateway.

    Attributes:
        under_way: requests that are being answered.
        machines: asked for the number of machines in the cache.
        behind: asked for the seconds since contact to the API server was lost, by kind.
        inside: asked for what leads into machines now, by kind.
        entries: asked for what has been done for that, by kind.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        Gauge(
            "machine_operator_gateway_build_info", "Version.", ["version"], registry=registry
        ).labels(__version__).set(1)
        self._requests = Counter(
            "machine_operator_gateway_requests",
            "Requests answered, by route, method and status code.",
            ["route", "method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "machine_operator_gateway_request_seconds",
            "Until the answer began.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._timers: dict[tuple[str, str], Histogram] = {}
        self.under_way = 0
        Gauge(
            "machine_operator_gateway_requests_under_way",
            "Requests that are being answered, streams included.",
            registry=registry,
        ).set_function(lambda: self.under_way)
        self.machines = Asked(
            registry,
            "machine_operator_gateway_cached_objects",
            "Objects in the caches, by kind.",
            label="kind",
        )
        self.behind = Asked(
            registry,
            "machine_operator_gateway_cache_behind_seconds",
            "Seconds since contact to the API server was lost, by kind; 0 while all is well.",
            label="kind",
        )

        self.inside = Asked(
            registry,
            "machine_operator_gateway_inside",
            "What leads into machines now, by kind.",
            label="kind",
        )
        self.entries = Asked(
            registry,
            "machine_operator_gateway_entries",
            "Wakes, and writes of activity, by what became of them.",
            label="what",
            kind="counter",
        )
        self.connects = Histogram(
            "machine_operator_gateway_guest_connect_seconds",
            "Until a guest had let the gateway in, from the first attempt on.",
            buckets=_SECONDS,
            registry=registry,
        )

    def answered(self, route: str, method: str, code: int, *, seconds: float) -> None:
        """One answer has begun, `seconds` after its request came."""
        counter = self._counters.get((route, method, code))
        if counter is None:
            counter = self._requests.labels(route, method, str(code))
            self._counters[route, method, code] = counter
        counter.inc()
        timer = self._timers.get((route, method))
        if timer is None:
            timer = self._timers[route, method] = self._seconds.labels(route, method)
        timer.observe(seconds)
