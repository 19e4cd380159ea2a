"""Plain objects of one kind as they change, for the processes of a benchmark: no cache, no models, one watch."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Expired, KubeError
from machine_operator.kube.resources import Resource

__all__ = ["Object", "follow", "is_ready", "until_terminated"]

Object = dict[str, Any]


async def follow(
    client: KubeClient,
    resource: Resource,
    take: Callable[[str, Object], None],
    *,
    namespace: str | None = None,
    listed: Callable[[], None] = lambda: None,
) -> None:
    """Call `take(event type, object)` for what is there and for each change, until cancelled.

    Args:
        client: the connection and identity.
        resource: the kind.
        take: told everything; must not block.
        namespace: only there; None is everywhere.
        listed: called once everything that was there at first has been told.
    """
    version: str | None = None
    while True:
        try:
            if version is None:
                answer = await client.list(resource, namespace=namespace)
                for item in answer.get("items") or []:
                    take("ADDED", item)
                version = str(answer["metadata"]["resourceVersion"])
                listed()
            async for event in client.watch(
                resource, namespace=namespace, resource_version=version
            ):
                item = event["object"]
                version = str(item["metadata"]["resourceVersion"])
                if event["type"] != "BOOKMARK":
                    take(event["type"], item)
        except Expired:
            version = None
        except KubeError as error:
            # A saturated API server closes watches of slow clients; it goes on where it was.
            print(f"watch of {resource.plural}: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.1)


def is_ready(item: Object) -> bool:
    """Whether its condition Ready is True."""
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in (item.get("status") or {}).get("conditions") or ()
    )


async def until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until SIGTERM."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
