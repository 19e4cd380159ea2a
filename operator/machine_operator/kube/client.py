"""A thin client of kube-apiserver: bytes in, orjson out, errors of our own tree.

Objects stay plain dicts here; whoever reads them turns them into something typed at once. Each request has its
own time limit. A watch ends by itself when the server closes it, and fails as `Unreachable` when nothing at all
(not even a bookmark, which the server sends about once a minute) came for `INACTIVITY` seconds: a half-open
connection behind a load balancer would stay silent for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from machine_operator import __version__
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import Unreachable, from_status
from machine_operator.kube.resources import Resource

__all__ = ["INACTIVITY", "KubeClient"]

INACTIVITY = 70.0
"""Seconds without a byte after which a watch is given up. Bookmarks come about every 60 s."""

_REQUEST = aiohttp.ClientTimeout(total=30.0, connect=5.0)
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

Object = dict[str, Any]


class KubeClient:
    """Requests to one API server as one identity. Use it as an async context manager."""

    def __init__(self, connection: Connection, *, user_agent: str = "machine-operator") -> None:
        self.connection = connection
        self._agent = f"{user_agent}/{__version__}"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> KubeClient:
        self._session = self.new_session()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def new_session(self) -> aiohttp.ClientSession:
        """A session of its own with our identity (kopf closes the one that it is given)."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self.connection.tls or False, limit=64, keepalive_timeout=60
            ),
            headers={"User-Agent": self._agent, "Accept": "application/json"},
            middlewares=(self._authenticate,),
            timeout=_REQUEST,
            trust_env=False,
        )

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            raise RuntimeError("KubeClient is used outside of its `async with`")
        return self._session

    async def _authenticate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        token = self.connection.token()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return await handler(request)

    # ---- requests

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
        """One request and its JSON answer ({} for an empty one).

        Raises:
            ApiError: the server refused; its class says what that means.
            Unreachable: there was no answer within `timeout` seconds.
        """
        data = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": content_type} if data is not None else None
        try:
            async with self.session.request(
                method,
                self.connection.server + path,
                params=params,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout, connect=5.0),
            ) as response:
                raw = await response.read()
                if response.status >= 400:
                    raise _failure(response, raw, f"{method} {path}")
                return _parse(raw)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self.connection.server, f"{method} {path}", error) from error

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
    ) -> Object:
        """The whole list object. `resource_version="0"` answers from the server's cache."""
        params = _selectors(label_selector, field_selector)
        if resource_version is not None:
            params["resourceVersion"] = resource_version
        return await self.request("GET", resource.path(namespace=namespace), params=params)

    async def create(
        self,
        resource: Resource,
        body: Object,
        *,
        namespace: str | None = None,
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

    async def watch(
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
        params = _selectors(label_selector, field_selector) | {
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(290, 580)),
        }
        path = resource.path(namespace=namespace)
        request = f"WATCH {path}"
        try:
            async with self.session.get(
                self.connection.server + path,
                params=params,
                # sock_read: a pooled connection that died half-open would take the request and stay silent.
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=5.0, sock_connect=5.0, sock_read=INACTIVITY
                ),
            ) as response:
                if response.status >= 400:
                    raise _failure(response, await response.read(), request)
                async for line in _lines(response.content):
                    event: Object = orjson.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise from_status(int(status.get("code", 500)), status, request=request)
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self.connection.server, request, error) from error


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split at newlines without aiohttp's limit on the length of a line (an object may have 1.5 MiB)."""
    pending: list[bytes] = []
    while True:
        # The time limit covers the read alone: a limit around a `yield` would fire in the consumer.
        async with asyncio.timeout(INACTIVITY):
            chunk = await stream.readany()
        if not chunk:
            return
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            whole = b"".join((*pending, line))
            pending.clear()
            if whole:
                yield whole
        if rest:
            pending.append(rest)


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    params: dict[str, str] = {}
    if label_selector:
        params["labelSelector"] = label_selector
    if field_selector:
        params["fieldSelector"] = field_selector
    return params


def _parse(raw: bytes) -> Object:
    if not raw:
        return {}
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {"text": raw.decode("utf-8", "replace")}
    return parsed if isinstance(parsed, dict) else {"value": parsed}


def _failure(response: aiohttp.ClientResponse, raw: bytes, request: str) -> Exception:
    body = _parse(raw)
    if body.get("kind") != "Status":
        text = str(body.get("text") or "").strip()[:500]
        body = {"message": text} if text else {}
    after = response.headers.get("Retry-After", "")
    return from_status(
        response.status,
        body,
        request=request,
        retry_after=float(after) if after.isdigit() else None,
    )


def _unreachable(server: str, request: str, error: BaseException) -> Unreachable:
    what = str(error) or type(error).__name__
    return Unreachable(f"{request}: no answer from {server}: {what}")
