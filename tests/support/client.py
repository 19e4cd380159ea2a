"""A KubeClient whose requests end in a FakeApi: everything above `request` and `watch` is the real one.

It can die: at its n-th write the process that it stands for is gone, either before the write reached the server or
after it did and before the answer came back. Nothing of it ever goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from typing_extensions import override

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import ApiError
from machine_operator.kube.resources import Resource
from tests.support.apiserver import FakeApi, Object, Request

__all__ = ["FakeClient", "parse_request"]


class FakeClient(KubeClient):
    """One client, as one process has.

    Args:
        latency: seconds for each way of a request.
        die_at: number of the write at which the process ends; `lost_answer`: after the write took effect.
    """

    def __init__(
        self,
        api: FakeApi,
        *,
        latency: float = 0.005,
        die_at: int | None = None,
        lost_answer: bool = False,
    ) -> None:
        super().__init__(Connection(server="http://fake"))
        self.api = api
        self.dead = asyncio.Event()
        self.written = 0
        self._latency = latency
        self._die_at = die_at
        self._lost_answer = lost_answer

    @override
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Object:
        request = parse_request(
            method, path, params=dict(params or {}), body=body, content_type=content_type
        )
        await self._alive()
        await asyncio.sleep(self._latency)
        self.written += request.writes
        last = request.writes and self.written == self._die_at
        if last and not self._lost_answer:
            self.dead.set()
        await self._alive()
        try:
            answer = self.api.handle(request)
        except ApiError:
            await asyncio.sleep(self._latency)
            raise
        finally:
            if last:
                self.dead.set()
        await self._alive()
        await asyncio.sleep(self._latency)
        await self._alive()
        return answer

    @override
    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[Object]:
        events = self.api.watch(
            resource.plural, since=int(resource_version), selector=label_selector
        )
        async for event in events:
            await asyncio.sleep(self._latency)
            await self._alive()
            yield event

    async def _alive(self) -> None:
        if self.dead.is_set():
            await asyncio.Future()


_VERBS = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch"}


def parse_request(
    method: str, path: str, *, params: dict[str, str], body: Any, content_type: str
) -> Request:
    """The parts of a request, from its path."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = None
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    plural, name, subresource = [*parts, None, None][:3]
    verb = _VERBS[method]
    if verb == "get" and name is None:
        verb = "list"
    if "apply-patch" in content_type:
        verb = "apply"
    return Request(verb, str(plural), namespace, name, subresource, body, params)
