"""The seam under `KubeClient`: what goes over the wire, and who carries it.

A transport takes one request in parts and brings the answer as bytes; it knows nothing of Kubernetes. The real one
is aiohttp. Tests put an API server in memory here, or a transport that wraps another one and breaks it.
Whatever the cause, where no answer came the error is `Unreachable`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import Unreachable

__all__ = ["AiohttpTransport", "Transport", "WireRequest", "WireResponse", "WireStream", "lines"]

_CONNECT = 5.0
_SAFE_IN_PATH = "/:@!$&'()*+,;=~%"


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One HTTP request.

    Attributes:
        path: absolute path at the server, without a query.
        timeout: seconds until the whole answer must be there; of a stream, how long it may be silent.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class WireResponse:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class WireStream:
    """An answer whose body is still coming, in chunks that end anywhere."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Transport(Protocol):
    """Carries requests to one server. Both ways raise `Unreachable` where no (whole) answer came."""

    async def open(self) -> None:
        """Get ready; called once, in the event loop of the requests."""

    async def close(self) -> None:
        """Let go of all connections."""

    async def send(self, request: WireRequest) -> WireResponse:
        """One request and its whole answer, whatever the status."""

    def stream(self, request: WireRequest) -> AbstractAsyncContextManager[WireStream]:
        """One request whose answer is read as it comes; leaving the context ends it."""


class AiohttpTransport:
    """The real one: one aiohttp session, made by `session` when the transport opens."""

    def __init__(
        self, connection: Connection, *, session: Callable[[], aiohttp.ClientSession]
    ) -> None:
        self._server = connection.server
        self._base = URL(connection.server)
        self._new_session = session
        self._session: aiohttp.ClientSession | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            raise RuntimeError("KubeClient is used outside of its `async with`")
        return self._session

    async def open(self) -> None:
        """Make the session."""
        self._session = self._new_session()

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: WireRequest) -> WireResponse:
        """See `Transport`."""
        try:
            async with self.session.request(
                request.method,
                _url(self._base, request),
                data=request.body,
                headers=request.headers,
                timeout=self._timeout(request.timeout),
                allow_redirects=False,
                middlewares=(),  # the client has signed it
            ) as response:
                return WireResponse(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(request, error) from error

    @asynccontextmanager
    async def stream(self, request: WireRequest) -> AsyncIterator[WireStream]:
        """See `Transport`."""
        try:
            async with self.session.request(
                request.method,
                _url(self._base, request),
                data=request.body,
                headers=request.headers,
                # sock_read covers the wait for the status line too: a pooled connection that died half-open takes
                # the request and stays silent. No limit surrounds a `yield`: it would fire in the consumer.
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT, sock_read=request.timeout
                ),
                allow_redirects=False,
                middlewares=(),  # the client has signed it
            ) as response:
                chunks = self._chunks(request, response.content)
                yield WireStream(response.status, response.headers, chunks)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(request, error) from error

    async def _chunks(
        self, request: WireRequest, content: aiohttp.StreamReader
    ) -> AsyncIterator[bytes]:
        while True:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unreachable(request, error) from error
            if not chunk:
                return
            yield chunk

    def _timeout(self, seconds: float) -> aiohttp.ClientTimeout:
        known = self._timeouts.get(seconds)
        if known is None:
            # Not `connect`, which would count the wait for a free connection of the pool: a busy client is not cut off.
            known = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT)
            self._timeouts[seconds] = known
        return known

    def _unreachable(self, request: WireRequest, error: BaseException) -> Unreachable:
        what = str(error) or type(error).__name__
        return Unreachable(
            f"{request.method} {request.path}: no answer from {self._server}: {what}"
        )


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split at newlines, whatever the length of a line (an object may have 1.5 MiB). Half a line at the end is
    none: the stream was cut there.
    """
    pending: list[bytes] = []
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            whole = b"".join((*pending, line)) if pending else line
            pending.clear()
            if whole:
                yield whole
        if rest:
            pending.append(rest)


def _url(server: URL, request: WireRequest) -> URL:
    # Quoted here, and said to be: parsing the whole of each URL costs ten times as much.
    path = server.raw_path.rstrip("/") + quote(request.path, safe=_SAFE_IN_PATH)
    queried = _queried(server, tuple(request.params.items()))
    return queried.with_path(path, encoded=True, keep_query=True)


@lru_cache(maxsize=64)
def _queried(server: URL, params: tuple[tuple[str, str], ...]) -> URL:
    return server.with_query(params) if params else server
