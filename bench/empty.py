"""The floor under the gateway: its own server and its own ways with failures, and a route that answers nothing."""

from __future__ import annotations

import argparse
import asyncio
import gc
from pathlib import Path

import uvloop
from fastapi import FastAPI
from starlette.responses import Response

from machine_operator.gateway import answers
from machine_operator.gateway.serving.server import serve

__all__ = ["PATH"]

PATH = "/v1/nothing"


async def _nothing() -> Response:
    return Response()


def _app() -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_api_route(PATH, _nothing, methods=["GET"])
    answers.install(app)
    return app


async def _main(port: int, ready: Path) -> None:
    def listening(_: object) -> None:
        ready.touch()

    await serve(
        _app(), host="127.0.0.1", port=port, draining=asyncio.Event(), on_listening=listening
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve an empty route.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    arguments = parser.parse_args()
    # As the gateway does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_main(arguments.port, arguments.ready))
