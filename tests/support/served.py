"""A tiny application on the gateway's HTTP server: within a test, or as a process of its own.

`python -m tests.support.served '{"head_seconds": 1}' DRAIN_SECONDS` serves until a signal comes; its first line is the
address.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from machine_operator.gateway.answers import answer_of
from machine_operator.gateway.bodies import read_body
from machine_operator.gateway.paths import PathRules
from machine_operator.gateway.problems import GatewayError
from machine_operator.gateway.serving.protocol import ConnectionLimits
from machine_operator.gateway.serving.server import serve

__all__ = ["Served", "resident", "serving"]

BODY_SECONDS = 0.5


@dataclass(slots=True)
class Served:
    """What a test knows of a server.

    Attributes:
        port: where it listens, on loopback.
        draining: ends it.
        seen: the requests that reached the application.
        gone: the requests whose client went away, or which were cut.
    """

    port: int = 0
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/ok", self._ok, methods=["GET", "POST", "DELETE"]),
            Route("/body", self._body, methods=["POST"]),
            Route("/stream", self._stream),
            Route("/flood", self._flood),
            Route("/wait", self._wait),
            Route("/things/{name:segment}", self._thing),
        ]
        app = Starlette(routes=routes, exception_handlers={GatewayError: _failure})
        app.router.redirect_slashes = False
        app.add_middleware(PathRules)
        return app

    async def _ok(self, request: Request) -> Response:
        self.seen.append(f"{request.method} {request.url.path}")
        return PlainTextResponse("fine")

    async def _thing(self, request: Request) -> Response:
        raw = request.scope["raw_path"].decode()
        return JSONResponse({"name": request.path_params["name"], "raw": raw})

    async def _body(self, request: Request) -> Response:
        self.seen.append("body")
        return PlainTextResponse(str(len(await read_body(request, seconds=BODY_SECONDS))))

    async def _stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: first\n\n"
            await self.draining.wait()
            yield b"data: last\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _flood(self, request: Request) -> Response:
        async def blocks() -> AsyncIterator[bytes]:
            try:
                for _ in range(16 * 1024):
                    yield bytes(64 * 1024)
            finally:
                self.gone.append("flood")

        return StreamingResponse(blocks())

    async def _wait(self, request: Request) -> Response:
        self.seen.append("wait")
        try:
            await asyncio.Event().wait()
        finally:
            self.gone.append("wait")
        return Response()


async def _failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return answer_of(error, request_id="")


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None, *, drain_seconds: float = 5
) -> AsyncIterator[Served]:
    """A server for as long as the block runs."""
    served = Served()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            served.app(),
            host="127.0.0.1",
            port=0,
            draining=served.draining,
            on_listening=address.set_result,
            drain_seconds=drain_seconds,
            limits=limits,
        )
    )
    try:
        served.port = int((await asyncio.wait_for(address, 10)).rpartition(":")[2])
        yield served
    finally:
        served.draining.set()
        await asyncio.wait_for(task, 20)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _main() -> None:
    served = Served()
    uvloop.run(
        serve(
            served.app(),
            host="127.0.0.1",
            port=0,
            draining=served.draining,
            on_listening=lambda address: print(address, flush=True),
            drain_seconds=float(sys.argv[2]),
            limits=ConnectionLimits(**json.loads(sys.argv[1])),
        )
    )
    print("ended", flush=True)


if __name__ == "__main__":
    _main()
