"""Where metrics are registered, and metrics whose values are asked for when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

__all__ = ["Asked", "new_registry"]


class _Registry(CollectorRegistry):
    """Leaves out the time at which each series began: Go's client has no such series, and they double the page."""

    @override
    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            if metric.type in ("counter", "histogram"):
                beginning = f"{metric.name}_created"
                metric.samples = [one for one in metric.samples if one.name != beginning]
            yield metric


def new_registry() -> CollectorRegistry:
    """A registry with what is of interest of any process: CPU, memory, open files, garbage collection."""
    registry = _Registry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Asked(Collector):
    """A metric with one label whose values are asked for at each scrape, and cost nothing in between.

    Args:
        registry: where it is registered.
        name: the metric's name; the one of a counter without its `_total`.
        documentation: what it says.
        label: the name of the label.
        kind: a counter only ever grows.

    Attributes:
        values: asked for the value by label value.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        *,
        label: str,
        kind: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._kind = kind
        self.values: Callable[[], Mapping[str, float]] = dict
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Tell the registry the name without asking for values."""
        return [self._family()]

    @override
    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for value, number in self.values().items():
            family.add_metric([value], number)
        return [family]

    def _family(self) -> GaugeMetricFamily | CounterMetricFamily:
        made = GaugeMetricFamily if self._kind == "gauge" else CounterMetricFamily
        return made(self._name, self._documentation, labels=[self._label])
