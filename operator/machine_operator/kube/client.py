"""A thin client of kube-apiserver: bytes in, orjson out, errors of our own tree.

Objects stay plain dicts here; whoever reads them turns them into something typed at once. Each request has its
own time limit. A watch ends by itself when the server closes it, and fails as `Unreachable` when nothing at all
(not even a bookmark, which the server sends about once a minute) came for `INACTIVITY` seconds: a half-open
connection behind a load balancer would stay silent for ever.

What carries the bytes is a `Transport`. A 401 has the connection's token renewed, once for all requests that wait
for it, and the request is repeated once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import orjson

from machine_operator import __version__
from machine_operator.kube.answers import event_of, failure, parse
from machine_operator.kube.connection import Connection
from machine_operator.kube.records import RequestRecord, describe
from machine_operator.kube.resources import Resource
from machine_operator.kube.transport import (
    AiohttpTransport,
    Transport,
    WireRequest,
    WireResponse,
    WireStream,
    lines,
)

__all__ = ["INACTIVITY", "KubeClient", "RequestRecord"]

INACTIVITY = 70.0
"""Seconds without a byte after which a watch is given up. Bookmarks come about every 60 s."""

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

Object = dict[str, Any]


def _unobserved(_: RequestRecord) -> None:
    pass


class KubeClient:
    """Requests to one API server as one identity. Use it as an async context manager.

    Args:
        transport: carries the requests; aiohttp where none is given.
        on_request: told of each request.

    Attributes:
        streams_lists: whether a watch may be asked to begin with what exists (`watch_list`). Informers set it to
            False when the server refuses that, for all informers of this client.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        user_agent: str = "machine-operator",
        transport: Transport | None = None,
        on_request: Callable[[RequestRecord], None] = _unobserved,
    ) -> None:
        self.connection = connection
        self._agent = f"{user_agent}/{__version__}"
        self._transport = transport or AiohttpTransport(connection, session=self.new_session)
        # Without a transport, and before it is opened, there is nobody to ask.
        self.streams_lists = transport is not None
        self._on_request = on_request
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KubeClient:
        await self._transport.open()
        self.streams_lists = True
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        await self._transport.close()

    def new_session(self) -> aiohttp.ClientSession:
        """A session of its own with our identity (kopf closes the one that it is given)."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self.connection.tls or False, limit=64, keepalive_timeout=60
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._agent, "Accept": "application/json"},
            middlewares=(self._authenticate,),
            timeout=aiohttp.ClientTimeout(total=30.0, sock_connect=5.0),
            trust_env=False,
        )

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session, for what is no plain request (WebSockets)."""
        if isinstance(self._transport, AiohttpTransport):
            return self._transport.session
        raise RuntimeError("this KubeClient has a transport without an HTTP session")

    async def _authenticate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Sign what others send over a session of ours; our own requests are signed already."""
        identity = None if "Authorization" in request.headers else self._identity()
        if identity is None:
            return await handler(request)
        request.headers["Authorization"] = identity
        response = await handler(request)
        if response.status == 401 and await self._renewed(identity):
            response.release()
            request.headers["Authorization"] = self._identity() or ""
            response = await handler(request)
        return response

    def _identity(self) -> str | None:
        token = self.connection.token()
        return None if token is None else f"Bearer {token}"

    async def _renewed(self, refused: str | None) -> bool:
        """Whether we have a token other than the refused one; all that ask at once share one attempt."""
        if self._identity() == refused and self.connection.renew is not None:
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.ensure_future(self.connection.renew())
            # Shielded: whoever gives up waiting must not take the attempt away from the others.
            await asyncio.shield(self._renewal)
        return self._identity() != refused

    # ---- requests

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str | None = None,
        timeout: float = 30.0,
    ) -> Object:
        """One request and its JSON answer ({} for an empty one). `path` has no query; `params` are that.

        Raises:
            ApiError: the server refused; its class says what that means.
            Unreachable: there was no answer within `timeout` seconds.
        """
        headers: dict[str, str] = {}
        data = None
        if body is not None:
            data = orjson.dumps(body)
            headers["Content-Type"] = content_type
        if accept is not None:
            headers["Accept"] = accept
        wire = WireRequest(method, path, params or {}, headers, data, timeout)
        verb, resource = describe(method, path, content_type)
        answer, signed = await self._send(wire, verb, resource)
        if answer.status == 401 and await self._renewed(signed):
            answer, _ = await self._send(wire, verb, resource)
        if answer.status >= 300:
            raise failure(answer.status, answer.headers, answer.body, request=f"{method} {path}")
        return parse(answer.body)

    async def _send(
        self, wire: WireRequest, verb: str, resource: str
    ) -> tuple[WireResponse, str | None]:
        """The answer, and the identity with which it was asked for."""
        identity = self._sign(wire)
        started, code = time.perf_counter(), 0
        try:
            answer = await self._transport.send(wire)
            code = answer.status
        finally:
            seconds = time.perf_counter() - started
            self._on_request(RequestRecord(verb, resource, code, seconds))
        return answer, identity

    def _sign(self, wire: WireRequest) -> str | None:
        identity = self._identity()
        if identity is not None:
            wire.headers["Authorization"] = identity
        return identity

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """One object."""
        return await self.request("GET", resource.path(namespace=namespace, name=name))

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        resource_version: str | None = None,
        limit: int | None = None,
        continue_token: str | None = None,
    ) -> Object:
        """The list object: whole, or in pages of `limit`, where each page's `metadata.continue` asks for the next.
        `resource_version="0"` answers from the server's cache.

        Raises:
            Expired: the continue token is too old; begin again.
        """
        params = _selectors(label_selector, field_selector)
        if resource_version is not None:
            params["resourceVersion"] = resource_version
        if limit is not None:
            params["limit"] = str(limit)
        if continue_token is not None:
            params["continue"] = continue_token
        return await self.request("GET", resource.path(namespace=namespace), params=params)

    async def create(
        self, resource: Resource, body: Object, *, namespace: str | None = None
    ) -> Object:
        """POST a new object.

        Raises:
            AlreadyExists: one of that name is there.
        """
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self.request("POST", resource.path(namespace=namespace), body=full)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Object,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        """PUT the whole object; its resourceVersion guards against lost updates."""
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        return await self.request("PUT", path, body=body)

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: Object,
        *,
        manager: str,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply: own exactly the fields in `body`, by force, as `manager`."""
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        params = {"fieldManager": manager, "force": "true"}
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self.request("PATCH", path, params=params, body=full, content_type=_APPLY)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Object,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        strategic: bool = False,
    ) -> Object:
        """Merge patch; `strategic` merges lists by key and works on built-in kinds only."""
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        kind = _STRATEGIC if strategic else _MERGE
        return await self.request("PATCH", path, body=body, content_type=kind)

    async def json_patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[Object],
        *,
        namespace: str | None = None,
    ) -> Object:
        """JSON patch; put a `test` on what you read, so that a concurrent write refuses it."""
        path = resource.path(namespace=namespace, name=name)
        return await self.request("PATCH", path, body=[*operations], content_type=_JSON_PATCH)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> Object:
        """Delete one object; with `uid` only if it is still that one.

        Raises:
            NotFound: it is gone already.
            Conflict: an object of that name has another uid.
        """
        options: Object = {"propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        path = resource.path(namespace=namespace, name=name)
        return await self.request("DELETE", path, body=options)

    # ---- watch

    def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[Object]:
        """Events `{"type", "object"}` after `resource_version`, bookmarks included, until the server ends it.

        Raises:
            Expired: the version is too old; list again.
            ApiError: any other failure, also one that arrives inside the stream.
            Unreachable: the connection broke, or nothing came for `INACTIVITY` seconds.
        """
        params = _selectors(label_selector, field_selector)
        params["resourceVersion"] = resource_version
        return self._events(resource, namespace, params)

    def watch_list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[Object]:
        """A watch that begins with what exists now (WatchList), each object as ADDED; a BOOKMARK with the
        annotation `k8s.io/initial-events-end` tells where that ends. Then it goes on as `watch` does.

        Raises:
            Invalid: this server cannot do that; list instead. Otherwise as `watch`.
        """
        params = _selectors(label_selector, field_selector)
        params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return self._events(resource, namespace, params)

    async def _events(
        self, resource: Resource, namespace: str | None, params: dict[str, str]
    ) -> AsyncIterator[Object]:
        params |= {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(290, 580)),
        }
        wire = WireRequest(
            "GET", resource.path(namespace=namespace), params, {}, timeout=INACTIVITY
        )
        request = f"WATCH {wire.path}"
        async with AsyncExitStack() as stack:
            answer, signed = await self._open(stack, wire, resource)
            if answer.status == 401 and await self._renewed(signed):
                await stack.aclose()
                answer, _ = await self._open(stack, wire, resource)
            if answer.status >= 300:
                body = b"".join([chunk async for chunk in answer.chunks])
                raise failure(answer.status, answer.headers, body, request=request)
            async for line in lines(answer.chunks):
                yield event_of(line, request)

    async def _open(
        self, stack: AsyncExitStack, wire: WireRequest, resource: Resource
    ) -> tuple[WireStream, str | None]:
        identity = self._sign(wire)
        started, code = time.perf_counter(), 0
        try:
            answer = await stack.enter_async_context(self._transport.stream(wire))
            code = answer.status
        finally:
            seconds = time.perf_counter() - started
            self._on_request(RequestRecord("watch", resource.plural, code, seconds))
        return answer, identity


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    params: dict[str, str] = {}
    if label_selector:
        params["labelSelector"] = label_selector
    if field_selector:
        params["fieldSelector"] = field_selector
    return params
