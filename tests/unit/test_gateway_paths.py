"""Paths with encoded slashes, dots and control characters in them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match

from machine_operator.gateway.paths import PathRules, SegmentConvertor, split_path
from machine_operator.gateway.problems import Problem

NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@given(NAMES.filter(lambda name: name not in (".", "..")))
def test_any_name_is_one_segment(name: str) -> None:
    raw = f"/v1/machines/{quote(name, safe='')}".encode()
    assert split_path(raw) == ["", "v1", "machines", name]
    convertor = SegmentConvertor()
    shown = convertor.to_string(name)
    assert "/" not in shown
    assert convertor.convert(shown) == name


@pytest.mark.parametrize(
    ("raw", "status"),
    [(b"/a/..", 404), (b"/%2E./a", 404), (b"/a%00", 400), (b"/%1f", 400), (b"/%ff", 400)],
)
def test_paths_that_nobody_means_well_with(raw: bytes, status: int) -> None:
    with pytest.raises(Problem) as caught:
        split_path(raw)
    assert caught.value.status == status


async def test_fastapi_finds_the_route_and_its_document_shows_no_convertor() -> None:
    router = APIRouter(prefix="/v1")

    @router.get("/machines/{machine_id:segment}/status")
    async def status(machine_id: str) -> dict[str, str]:
        return {"machine_id": machine_id}

    app = FastAPI()
    app.include_router(router)
    app.add_middleware(PathRules)
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    path = "/v1/machines/a%2Fb/status"
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path.replace("%2F", "/"),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[1]["body"] == b'{"machine_id":"a/b"}'
    assert list(app.openapi()["paths"]) == ["/v1/machines/{machine_id}/status"]
    assert app.routes[-1].matches({**scope, "path": "/v1/machines/a/b/status"})[0] is Match.NONE
