"""Asks the API server itself for Machines: for all of them at the start, and for those that vanished unheard.

kopf tells of each object that is there when it lists again, and says nothing about those that vanished while its
watch was down. So now and then the API server is asked for the names that there are, without the objects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from machine_operator.controller.roster import Roster
from machine_operator.kube.client import KubeClient
from machine_operator.kube.informer import Key
from machine_operator.kube.resources import MACHINES

__all__ = ["every_machine", "vanished"]

_PAGE = 500

_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


async def every_machine(client: KubeClient) -> AsyncIterator[dict[str, Any]]:
    """All Machines, in pages.

    Raises:
        KubeError: the API server did not answer, or the pages outlived its history.
    """
    token: str | None = None
    while True:
        page = await client.list(MACHINES, limit=_PAGE, continue_token=token)
        for item in page.get("items") or []:
            yield {"apiVersion": MACHINES.api_version, "kind": MACHINES.kind, **item}
        token = page["metadata"].get("continue") or None
        if token is None:
            return


async def vanished(client: KubeClient, machines: Roster) -> list[tuple[Key, str]]:
    """Key and uid of each known Machine that the API server does not have.

    Raises:
        KubeError: it could not be asked.
    """
    before = {key: known.machine.metadata.uid for key in machines if (known := machines.get(key))}
    if not before:
        return []
    there = await _names(client)
    # What was learnt while the list was on its way is not in `before`, so it cannot be lost here.
    return [(key, uid) for key, uid in before.items() if there.get(key) != uid]


async def _names(client: KubeClient) -> dict[Key, str]:
    answer = await client.request("GET", MACHINES.path(), accept=_NAMES_ONLY)
    metas = [item["metadata"] for item in answer.get("items") or []]
    return {Key(meta["namespace"], meta["name"]): meta["uid"] for meta in metas}
