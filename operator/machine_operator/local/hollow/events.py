"""Events: what people see in `kubectl describe`. The same one is not repeated within some minutes."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError
from machine_operator.kube.resources import EVENTS
from machine_operator.local.hollow.times import now, timestamp
from machine_operator.local.hollow.tracked import Object

__all__ = ["Events"]

log = logging.getLogger(__name__)

_QUIET = 300.0
_REMEMBERED = 2000


class Events:
    """Writes events as one component.

    Args:
        component: named as the source.
        node: named as the source's host.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        node: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._source = {"component": component, "host": node}
        self._clock = clock
        self._sent: dict[tuple[str, str, str], float] = {}

    async def warn(self, item: Object, reason: str, message: str) -> None:
        """A Warning about `item`."""
        await self._send(item, "Warning", reason, message)

    async def tell(self, item: Object, reason: str, message: str) -> None:
        """A Normal event about `item`."""
        await self._send(item, "Normal", reason, message)

    async def _send(self, item: Object, kind: str, reason: str, message: str) -> None:
        metadata = item["metadata"]
        key = (str(metadata["uid"]), reason, message)
        moment = self._clock()
        if moment - self._sent.get(key, float("-inf")) < _QUIET:
            return
        if len(self._sent) >= _REMEMBERED:
            self._sent.clear()
        self._sent[key] = moment
        namespace = metadata.get("namespace") or "default"
        stamp = timestamp(now())
        try:
            await self._client.create(
                EVENTS,
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {
                        "name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}",
                        "namespace": namespace,
                    },
                    "involvedObject": {
                        "apiVersion": item["apiVersion"],
                        "kind": item["kind"],
                        "name": metadata["name"],
                        "namespace": metadata.get("namespace"),
                        "uid": metadata["uid"],
                        "resourceVersion": metadata.get("resourceVersion"),
                    },
                    "type": kind,
                    "reason": reason,
                    "message": message[:1024],
                    "source": self._source,
                    "firstTimestamp": stamp,
                    "lastTimestamp": stamp,
                    "count": 1,
                },
                namespace=namespace,
            )
        except KubeError as error:
            # An event is a courtesy: its loss (a namespace that is going away) must not stop the
            # work.
            log.info("event %s about %s was not written: %s", reason, metadata["name"], error)
