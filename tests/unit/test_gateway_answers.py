"""Whatever goes wrong in the application, the answer has the format, the id, and nothing from inside."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Header
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from machine_operator.gateway import answers, failures
from machine_operator.gateway.answers import LastResort, RequestIds, answer_of, request_id_of
from tests.support.asgi import call

_SECRET = "the inner word"


class _Thing(BaseModel):
    size: int


def _router() -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/things")
    async def things(
        request: Request,
        limit: int = 1,
        last_event_id: Annotated[int | None, Header()] = None,
        idempotency_key: Annotated[int | None, Header()] = None,
    ) -> Response:
        return PlainTextResponse(request_id_of(request.scope))

    @router.post("/things")
    async def make(thing: _Thing) -> None:
        return None

    @router.delete("/things/{number}")
    async def drop(number: int) -> None:
        raise failures.revision_mismatch(expected="2", provided="1")

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError(_SECRET)

    @router.get("/broken-off")
    async def broken_off() -> Response:
        async def half() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError(_SECRET)

        return StreamingResponse(half())

    @router.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"X-Spout": "here"})

    @router.get("/left")
    async def left() -> None:
        raise ClientDisconnect

    return router


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    app.include_router(_router())
    answers.install(app)
    return app


async def test_a_failure_is_answered_in_its_format(app: FastAPI) -> None:
    answer = await call(app, "DELETE", "/v1/things/1", headers={"X-Request-Id": "mine"})
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers.getlist("x-request-id") == ["mine"]
    assert answer.json() == failures.revision_mismatch(expected="2", provided="1").body()


async def test_what_starlette_refuses_is_a_problem(app: FastAPI) -> None:
    nowhere = await call(app, "GET", "/nowhere")
    assert (nowhere.status, nowhere.json()["status"]) == (404, 404)
    assert nowhere.headers["content-type"] == "application/problem+json"

    put = await call(app, "PUT", "/v1/things")
    assert put.status == 405
    assert put.headers["allow"] == "GET, POST"  # of two routes; Starlette itself names the first

    one = await call(app, "GET", "/v1/things/5")
    assert (one.status, one.headers["allow"]) == (405, "DELETE")

    teapot = await call(app, "GET", "/v1/teapot")
    assert (teapot.status, teapot.headers["x-spout"]) == (418, "here")
    assert teapot.json()["detail"] == "short and stout"


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "location", "message"),
    [
        ("GET", "/v1/things?limit=x", {}, b"", "query.limit", "must be a whole number"),
        ("DELETE", "/v1/things/x", {}, b"", "path.number", "must be a whole number"),
        (
            "GET",
            "/v1/things",
            {"Idempotency-Key": "x"},
            b"",
            "header.Idempotency-Key",
            "must be a whole number",
        ),
        (
            "GET",
            "/v1/things",
            {"Last-Event-ID": "x"},
            b"",
            "header.Last-Event-ID",
            "must be a whole number",
        ),
        ("POST", "/v1/things", {"Content-Type": "application/json"}, b"{}", "body.size", None),
    ],
)
async def test_what_fastapi_finds_wrong_is_422_with_a_location(
    app: FastAPI,
    *,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes,
    location: str,
    message: str | None,
) -> None:
    answer = await call(app, method, target, headers=headers, body=body)
    assert answer.status == 422, answer.body
    (fault,) = answer.json()["errors"]
    assert fault["location"] == location
    assert fault["message"] == (message or "is required")


async def test_the_unforeseen_is_logged_under_the_id_and_not_told(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await call(app, "GET", "/v1/broken", headers={"X-Request-Id": "abc"})
    assert answer.status == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.getlist("x-request-id") == ["abc"]
    assert "abc" in answer.json()["detail"]
    assert _SECRET.encode() not in answer.body
    assert b"RuntimeError" not in answer.body
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    assert record.exc_info is not None
    told: dict[str, Any] = record.__dict__["fields"]
    assert told == {"request_id": "abc", "method": "GET", "path": "/v1/broken"}


async def test_an_answer_that_breaks_half_way_breaks_the_connection(app: FastAPI) -> None:
    with pytest.raises(RuntimeError, match=_SECRET):
        await call(app, "GET", "/v1/broken-off")


async def test_a_client_that_has_left_is_no_failure(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(IndexError):  # nothing was answered
        await call(app, "GET", "/v1/left")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_failure_in_a_middleware_is_answered_too() -> None:
    def refuse(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            raise failures.too_large(10)

        return middleware

    app = FastAPI()
    app.add_middleware(refuse)
    answers.install(app)
    answer = await call(app, "POST", "/anything", body=b"x" * 11)
    assert (answer.status, answer.json()["title"]) == (413, answer.json()["title"])
    assert answer.headers["x-request-id"]


# --- request ids


@pytest.mark.parametrize("offered", ["a", "~!#" * 10, "x" * 128])
async def test_a_usable_id_is_kept(app: FastAPI, offered: str) -> None:
    answer = await call(app, "GET", "/v1/things", headers={"X-Request-Id": offered})
    assert answer.headers.getlist("x-request-id") == [offered]
    assert answer.body.decode() == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "a b", "a\tb", "é", "a\x7f"])
async def test_another_id_is_replaced(app: FastAPI, offered: str | None) -> None:
    headers = {} if offered is None else {"X-Request-Id": offered}
    answer = await call(app, "GET", "/v1/things", headers=headers)
    made = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made), made
    assert answer.body.decode() == made


async def test_ids_are_made_by_what_was_given() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request_id_of(scope))
        await PlainTextResponse("")(scope, receive, send)

    wrapped = RequestIds(app, new_id=lambda: "one")
    answer = await call(wrapped, "GET", "/")
    assert seen == ["one"]
    assert answer.headers["x-request-id"] == "one"


async def test_what_is_no_request_passes_through() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError("nothing is to be received here")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is to be sent here")

    await RequestIds(LastResort(app))({"type": "lifespan"}, receive, send)
    assert seen == [{"type": "lifespan"}]
    assert request_id_of(seen[0]) == ""


def test_an_answer_says_how_long_to_wait() -> None:
    answer = answer_of(failures.key_in_flight(), request_id="r")
    assert answer.headers["retry-after-ms"] == "250"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == "r"
