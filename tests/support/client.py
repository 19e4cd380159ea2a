"""A client whose requests end in a FakeApi, over the same seam as over a network: bytes there, bytes back.

Everything above the transport is the real thing. A `FaultyTransport` lies between, so that a test can break anything,
and let the process that the client stands for die at one of its writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import ApiError
from machine_operator.kube.records import RequestRecord
from machine_operator.kube.transport import WireRequest, WireResponse, WireStream
from tests.support.apiserver import FakeApi, Object, Request
from tests.support.faults import Die, FaultyTransport

__all__ = ["FakeClient", "FakeTransport", "parse_request"]


class FakeClient(KubeClient):
    """One client, as one process has.

    Args:
        latency: seconds for each way of a request.
        die_at: number of the write at which the process ends; `lost_answer`: after the write took effect.

    Attributes:
        faults: what breaks its requests.
    """

    def __init__(
        self,
        api: FakeApi,
        *,
        latency: float = 0.005,
        die_at: int | None = None,
        lost_answer: bool = False,
        on_request: Callable[[RequestRecord], None] = lambda _: None,
    ) -> None:
        self.api = api
        self.faults = FaultyTransport(FakeTransport(api), parse=parse_wire, latency=latency)
        if die_at is not None:
            self.faults.at_write(die_at, Die(after=lost_answer))
        super().__init__(
            Connection(server="http://fake"), transport=self.faults, on_request=on_request
        )

    @property
    def dead(self) -> asyncio.Event:
        """Set once the process is gone."""
        return self.faults.dead

    @property
    def written(self) -> int:
        """How many writes it has sent."""
        return self.faults.written


class FakeTransport:
    """Brings requests to a FakeApi."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def send(self, request: WireRequest) -> WireResponse:
        """One request."""
        try:
            answer = self.api.handle(parse_wire(request))
        except ApiError as error:
            return failure_response(error)
        return WireResponse(200, {}, orjson.dumps(answer))

    @asynccontextmanager
    async def stream(self, request: WireRequest) -> AsyncIterator[WireStream]:
        """A watch. What the server says at once is its answer; what it says later comes in the stream."""
        events = self._watch(request)
        first = asyncio.ensure_future(anext(events))
        try:
            await asyncio.sleep(0)
            error = first.exception() if first.done() else None
            if isinstance(error, ApiError):
                answer = failure_response(error)
                yield WireStream(answer.status, answer.headers, _once(answer.body))
            elif error is not None and not isinstance(error, StopAsyncIteration):
                raise error
            else:
                yield WireStream(200, {}, _chunks(first, events))
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await events.aclose()  # type: ignore[attr-defined]

    def _watch(self, request: WireRequest) -> AsyncIterator[Object]:
        asked, params = parse_wire(request), request.params
        return self.api.watch(
            asked.plural,
            since=int(params.get("resourceVersion") or 0),
            selector=params.get("labelSelector"),
            fields=params.get("fieldSelector"),
            namespace=asked.namespace,
            initial=params.get("sendInitialEvents") == "true",
            timeout=float(params["timeoutSeconds"]),
        )


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _chunks(
    first: asyncio.Future[Object], events: AsyncIterator[Object]
) -> AsyncIterator[bytes]:
    try:
        yield orjson.dumps(await first) + b"\n"
        async for event in events:
            yield orjson.dumps(event) + b"\n"
    except StopAsyncIteration:
        return
    except ApiError as error:
        yield orjson.dumps({"type": "ERROR", "object": status_of(error)}) + b"\n"


def failure_response(error: ApiError) -> WireResponse:
    """What a server sends for such an error."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = f"{error.retry_after:.0f}"
    return WireResponse(error.status, headers, orjson.dumps(status_of(error)))


def status_of(error: ApiError) -> Object:
    """Its `metav1.Status`."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": error.status,
        "reason": error.reason,
        "message": error.message,
        "details": error.details,
    }


_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete", "PATCH": "patch"}


def parse_wire(request: WireRequest) -> Request:
    """The parts of a request as it goes over the wire."""
    return parse_request(
        request.method,
        request.path,
        params=dict(request.params),
        body=orjson.loads(request.body) if request.body is not None else None,
        content_type=request.headers.get("Content-Type", ""),
    )


def parse_request(
    method: str, path: str, *, params: Mapping[str, str], body: Any, content_type: str
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
        verb = "watch" if params.get("watch") else "list"
    if "apply-patch" in content_type:
        verb = "apply"
    return Request(verb, str(plural), namespace, name, subresource, body, dict(params))
