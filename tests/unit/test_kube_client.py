"""The client against a real HTTP server on loopback: what goes out, and what every kind of answer becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from machine_operator.kube import client as client_module
from machine_operator.kube.client import KubeClient, RequestRecord
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import (
    ApiError,
    Conflict,
    Expired,
    Forbidden,
    NotFound,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from machine_operator.kube.records import describe
from machine_operator.kube.resources import MACHINES, SECRETS
from tests.support.apiserver import FakeApi
from tests.support.client import FakeClient, parse_request
from tests.support.faults import TimeOut
from tests.support.virtual import run_virtual

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, *, token: str | None = None) -> AsyncIterator[KubeClient]:
    """A client of a server that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        connection = Connection(server=f"http://{host}:{port}", token=lambda: token)
        async with KubeClient(connection) as client:
            yield client
    finally:
        await runner.cleanup()


def answering(
    status: int, body: Any, *, content_type: str = "application/json", **headers: str
) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=raw, content_type=content_type, headers=named)

    return handler


def streaming(*chunks: bytes, hold: bool = False, cut: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0)
        if hold:
            await asyncio.sleep(30)
        if cut and request.transport is not None:
            request.transport.close()
        return response

    return handler


def line(version: int, **more: Any) -> bytes:
    return orjson.dumps({"type": "MODIFIED", "object": {"v": version, **more}}) + b"\n"


async def watched(client: KubeClient) -> list[Any]:
    return [event["object"] async for event in client.watch(SECRETS, resource_version="5")]


# ---- requests


async def test_what_an_apply_sends() -> None:
    sent: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        sent.update(
            path=request.path,
            query=dict(request.query),
            headers=dict(request.headers),
            method=request.method,
            body=await request.json(),
        )
        return web.json_response({"kind": "Secret"})

    async with served(handler, token="t0ken") as client:
        answer = await client.apply(SECRETS, "a", {"data": {}}, manager="me", namespace="ns")
    assert answer == {"kind": "Secret"}
    assert (sent["method"], sent["path"]) == ("PATCH", "/api/v1/namespaces/ns/secrets/a")
    assert sent["query"] == {"fieldManager": "me", "force": "true"}
    assert sent["body"] == {"apiVersion": "v1", "kind": "Secret", "data": {}}
    assert sent["headers"]["Content-Type"] == "application/apply-patch+yaml"
    assert sent["headers"]["Authorization"] == "Bearer t0ken"
    assert sent["headers"]["User-Agent"].startswith("machine-operator/")


async def test_what_a_delete_sends() -> None:
    sent: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        sent.append((request.method, await request.json()))
        return web.json_response({})

    async with served(handler) as client:
        await client.delete(SECRETS, "a", namespace="ns", uid="u1", grace_seconds=0)
    options = {
        "propagationPolicy": "Background",
        "preconditions": {"uid": "u1"},
        "gracePeriodSeconds": 0,
    }
    assert sent == [("DELETE", options)]


async def test_patches_and_lists() -> None:
    seen: list[tuple[str, str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.path_qs, request.content_type))
        return web.json_response({"items": []})

    async with served(handler) as client:
        await client.merge_patch(MACHINES, "b", {}, namespace="ns", subresource="status")
        await client.merge_patch(SECRETS, "b", {}, namespace="ns", strategic=True)
        await client.json_patch(SECRETS, "b", [{"op": "test"}], namespace="ns")
        await client.replace(SECRETS, "b", {}, namespace="ns")
        await client.create(SECRETS, {}, namespace="ns")
        await client.list(SECRETS, label_selector="x,y", resource_version="0")
    root = "/api/v1/namespaces/ns/secrets"
    machine = "/apis/machines.dedaluslabs.ai/v1alpha1/namespaces/ns/machines/b/status"
    assert seen == [
        ("PATCH", machine, "application/merge-patch+json"),
        ("PATCH", f"{root}/b", "application/strategic-merge-patch+json"),
        ("PATCH", f"{root}/b", "application/json-patch+json"),
        ("PUT", f"{root}/b", "application/json"),
        ("POST", root, "application/json"),
        ("GET", "/api/v1/secrets?labelSelector=x,y&resourceVersion=0", "application/octet-stream"),
    ]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, {"kind": "Status", "message": 'secrets "a" not found'}, NotFound, "not found"),
        (
            409,
            {"kind": "Status", "reason": "Conflict", "message": "modified"},
            Conflict,
            "modified",
        ),
        (403, {"kind": "Status", "message": "exceeded quota: q"}, Forbidden, "exceeded quota: q"),
        (502, b"<html>Bad gateway</html>", ServerError, "<html>Bad gateway</html>"),
        (503, b"", ServerError, "503 without a reason"),
        (500, {"not": "a status"}, ServerError, "500 without a reason"),
    ],
)
async def test_failures(status: int, body: Any, kind: type[ApiError], message: str) -> None:
    async with served(answering(status, body)) as client:
        with pytest.raises(kind, match="GET /api/v1/namespaces/ns/secrets/a: ") as caught:
            await client.get(SECRETS, "a", namespace="ns")
    assert message in str(caught.value)


async def test_when_to_come_back() -> None:
    body = {"kind": "Status", "message": "slow down"}
    async with served(answering(429, body, Retry_After="7")) as client:
        with pytest.raises(TooManyRequests) as caught:
            await client.get(SECRETS, "a", namespace="ns")
    assert caught.value.retry_after == 7.0


async def test_a_redirect_is_not_followed() -> None:
    """Who follows it carries our token to whoever is there."""
    async with served(answering(302, b"", Location="http://127.0.0.1:1/")) as client:
        with pytest.raises(ServerError, match="302"):
            await client.get(SECRETS, "a", namespace="ns")


async def test_what_has_no_place_in_a_url_is_quoted() -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, dict(request.query)))
        return web.json_response({})

    selector = "a in (b,c),d!=e+f&g=h/i"
    async with served(handler) as client:
        await client.get(SECRETS, "a?b#c d%zz\u00e9", namespace="ns")
        await client.list(SECRETS, label_selector=selector, continue_token="x==/+", limit=5)
    assert seen[0] == ("/api/v1/namespaces/ns/secrets/a?b#c d%zz\u00e9", {})
    assert seen[1][1] == {"labelSelector": selector, "continue": "x==/+", "limit": "5"}


async def test_an_empty_answer_is_an_empty_object() -> None:
    async with served(answering(200, b"")) as client:
        assert await client.request("PUT", "/x") == {}


async def test_no_server() -> None:
    async with KubeClient(Connection(server="http://127.0.0.1:1")) as client:
        with pytest.raises(Unreachable, match=r"no answer from http://127\.0\.0\.1:1"):
            await client.get(SECRETS, "a", namespace="ns")


async def test_a_server_that_never_answers() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with served(handler) as client:
        with pytest.raises(Unreachable):
            await client.request("GET", "/x", timeout=0.05)


async def test_a_client_needs_its_context() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = KubeClient(Connection(server="http://x")).session


# ---- watch


async def test_lines_are_found_wherever_the_chunks_end() -> None:
    raw = line(1) + line(2) + b"\n" + line(3)
    expected = [{"v": 1}, {"v": 2}, {"v": 3}]
    for size in (1, 7, len(raw) // 2, len(raw)):
        chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
        async with served(streaming(*chunks)) as client:
            assert await watched(client) == expected, size


async def test_a_line_of_a_megabyte_and_a_half() -> None:
    big = "x" * (1536 * 1024)
    async with served(streaming(line(1, big=big), line(2))) as client:
        first, second = await watched(client)
    assert (len(first["big"]), second) == (len(big), {"v": 2})


async def test_half_a_line_at_the_end_is_no_event() -> None:
    async with served(streaming(line(1), line(2)[:-9])) as client:
        assert await watched(client) == [{"v": 1}]


async def test_what_a_watch_asks_for() -> None:
    queries: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        queries.append(dict(request.query))
        return web.Response()

    async with served(handler) as client:
        assert await watched(client) == []
    query = queries[0]
    assert 290 <= int(query.pop("timeoutSeconds")) <= 580
    assert query == {"watch": "1", "resourceVersion": "5", "allowWatchBookmarks": "true"}


async def test_what_a_list_by_watch_asks_for() -> None:
    queries: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        queries.append(dict(request.query))
        return web.Response()

    async with served(handler) as client:
        assert [event async for event in client.watch_list(SECRETS, label_selector="x")] == []
    query = queries[0]
    assert 290 <= int(query.pop("timeoutSeconds")) <= 580
    assert query == {
        "watch": "1",
        "labelSelector": "x",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }


@pytest.mark.parametrize("raw", [b"<html>\n", b"[]\n", b"{}\n", b'{"type":"ERROR","object":1}\n'])
async def test_what_is_no_event_breaks_the_watch(raw: bytes) -> None:
    async with served(streaming(line(1), raw)) as client:
        with pytest.raises(Unreachable, match="no event"):
            await watched(client)


@pytest.mark.parametrize("inside", [True, False], ids=["in the stream", "as the answer"])
async def test_a_version_that_is_too_old(inside: bool) -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    event = orjson.dumps({"type": "ERROR", "object": status}) + b"\n"
    handler = streaming(line(1), event) if inside else answering(410, status)
    async with served(handler) as client:
        with pytest.raises(Expired, match="too old"):
            await watched(client)


async def test_a_cut_connection() -> None:
    async with served(streaming(line(1), cut=True)) as client:
        with pytest.raises(Unreachable):
            await watched(client)


async def test_silence_ends_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "INACTIVITY", 0.1)
    async with served(streaming(line(1), hold=True)) as client:
        stream = client.watch(SECRETS, resource_version="5")
        assert (await anext(stream))["object"] == {"v": 1}
        with pytest.raises(Unreachable):
            await asyncio.wait_for(anext(stream), 3.0)


async def test_silence_from_the_beginning_ends_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooled connection that died half-open takes the request and never answers."""
    monkeypatch.setattr(client_module, "INACTIVITY", 0.1)

    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with served(handler) as client:
        with pytest.raises(Unreachable):
            await asyncio.wait_for(watched(client), 3.0)


async def test_a_slow_consumer_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "INACTIVITY", 0.1)
    async with served(streaming(line(1), line(2))) as client:
        events: list[Any] = []
        async for event in client.watch(SECRETS, resource_version="5"):
            await asyncio.sleep(0.2)
            events.append(event)
    assert len(events) == 2


# ---- identity


class Logins:
    """Tokens t0, t1, ... of which the server takes the newest; a login takes a moment."""

    def __init__(self, *, good: int = 1) -> None:
        self.number, self.good, self.logins, self.asked = 0, good, 0, 0

    async def renew(self) -> None:
        self.logins += 1
        await asyncio.sleep(0.05)
        self.number = min(self.number + 1, self.good)

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if request.headers.get("Authorization") != f"Bearer t{self.good}":
            return web.json_response({"kind": "Status", "message": "who?"}, status=401)
        await request.read()
        return web.Response(body=line(1))

    @asynccontextmanager
    async def client(self, *, renews: bool = True) -> AsyncIterator[KubeClient]:
        async with served(self.handler) as plain:
            connection = Connection(
                server=plain.connection.server,
                token=lambda: f"t{self.number}",
                renew=self.renew if renews else None,
            )
            async with KubeClient(connection) as client:
                yield client


async def test_a_refused_token_is_renewed_once_for_all_requests() -> None:
    logins = Logins()
    async with logins.client() as client:
        body = {"data": {"a": "b"}}
        answers = await asyncio.gather(
            *(client.merge_patch(SECRETS, f"s{n}", body, namespace="ns") for n in range(20))
        )
        assert len(answers) == 20
        assert logins.logins == 1
        assert logins.asked <= 40
        await client.get(SECRETS, "a", namespace="ns")
        assert logins.logins == 1


async def test_a_watch_renews_its_token() -> None:
    logins = Logins()
    async with logins.client() as client:
        assert await watched(client) == [{"v": 1}]
    assert (logins.logins, logins.asked) == (1, 2)


async def test_other_users_of_a_session_renew_the_token_too() -> None:
    logins = Logins()
    async with (
        logins.client() as client,
        client.new_session() as session,
        session.get(client.connection.server + "/x") as response,
    ):
        assert response.status == 200
    assert (logins.logins, logins.asked) == (1, 2)


async def test_a_second_refusal_is_told() -> None:
    logins = Logins(good=2)
    async with logins.client() as client:
        with pytest.raises(Unauthorized, match=r"who\?"):
            await client.get(SECRETS, "a", namespace="ns")
    assert (logins.logins, logins.asked) == (1, 2)


@pytest.mark.parametrize("renews", [True, False], ids=["the same one again", "no way"])
async def test_where_there_is_no_other_token_nothing_is_repeated(renews: bool) -> None:
    logins = Logins(good=0)
    logins.handler = answering(401, {"kind": "Status", "message": "no"})  # type: ignore[method-assign]
    async with logins.client(renews=renews) as client:
        with pytest.raises(Unauthorized):
            await client.get(SECRETS, "a", namespace="ns")
        with pytest.raises(Unauthorized):
            await watched(client)
    assert logins.logins == (2 if renews else 0)


async def test_who_gives_up_waiting_for_a_login_leaves_it_to_the_others() -> None:
    logins = Logins()
    async with logins.client() as client:
        patient = asyncio.ensure_future(client.get(SECRETS, "a", namespace="ns"))
        hasty = asyncio.ensure_future(client.get(SECRETS, "b", namespace="ns"))
        deadline = asyncio.get_running_loop().time() + 5.0
        while logins.logins == 0:
            assert asyncio.get_running_loop().time() < deadline, "nobody logs in"
            await asyncio.sleep(0.001)
        hasty.cancel()
        assert "type" in await patient
    assert logins.logins == 1


# ---- what metrics are told


async def test_each_request_is_recorded() -> None:
    records: list[RequestRecord] = []
    api = FakeApi()
    client = FakeClient(api, on_request=records.append, latency=0.0)
    box = {"metadata": {"name": "box"}, "spec": {}}
    await client.create(MACHINES, box, namespace="ns")
    await client.apply(
        MACHINES, "box", {"status": {}}, namespace="ns", subresource="status", manager="m"
    )
    await client.merge_patch(MACHINES, "box", {}, namespace="ns")
    await client.get(MACHINES, "box", namespace="ns")
    await client.list(MACHINES)
    await anext(client.watch_list(MACHINES))
    await client.delete(MACHINES, "box", namespace="ns")
    client.faults.next(TimeOut())
    for expected in (Unreachable, NotFound):
        with pytest.raises(expected):
            await client.request(
                "PUT", MACHINES.path(namespace="ns", name="x"), body={}, timeout=0.01
            )
    assert [(r.verb, r.resource, r.code) for r in records] == [
        ("create", "machines", 200),
        ("apply", "machines/status", 200),
        ("patch", "machines", 200),
        ("get", "machines", 200),
        ("list", "machines", 200),
        ("watch", "machines", 200),
        ("delete", "machines", 200),
        ("update", "machines", 0),
        ("update", "machines", 404),
    ]
    assert all(0.0 <= r.seconds < 5.0 for r in records)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/namespaces", ("list", "namespaces")),
        ("GET", "/api/v1/namespaces/ns", ("get", "namespaces")),
        ("GET", "/api/v1/nodes/n", ("get", "nodes")),
        ("GET", "/api/v1/namespaces/ns/pods/p/log", ("get", "pods/log")),
        (
            "PUT",
            "/apis/g/v1/namespaces/ns/machines/m/portforward/22",
            ("update", "machines/portforward"),
        ),
        ("GET", "/apis/g/v1/things", ("list", "things")),
        ("GET", "/readyz", ("get", "")),
        ("GET", "/api", ("get", "")),
        ("GET", "/apis/g/v1", ("get", "")),
        ("GET", "", ("get", "")),
    ],
)
def test_what_a_path_asks_for(method: str, path: str, expected: tuple[str, str]) -> None:
    assert describe(method, path, "application/json") == expected


# ---- the fake of the engine's tests says what the server would have been told


def test_requests_of_the_fake_are_understood() -> None:
    request = parse_request(
        "PATCH",
        MACHINES.path(namespace="ns", name="box", subresource="status"),
        params={"fieldManager": "m"},
        body={},
        content_type="application/apply-patch+yaml",
    )
    assert str(request) == "apply machines/box/status"
    assert json.dumps(request.params) == '{"fieldManager": "m"}'


def test_the_fake_refuses_what_a_server_refuses() -> None:
    async def scenario() -> None:
        api = FakeApi()
        client = FakeClient(api)
        box = {"metadata": {"name": "box"}, "spec": {}}
        await client.create(MACHINES, box, namespace="ns")
        stale = {"metadata": {"finalizers": ["a/b"], "resourceVersion": "1"}}
        with pytest.raises(Conflict):
            await client.merge_patch(MACHINES, "box", stale, namespace="ns")
        with pytest.raises(Conflict):
            await client.delete(MACHINES, "box", namespace="ns", uid="other")
        with pytest.raises(NotFound):
            await client.get(MACHINES, "none", namespace="ns")
        lost = client.apply(
            MACHINES, "none", {"status": {}}, namespace="ns", subresource="status", manager="m"
        )
        with pytest.raises(NotFound):
            await lost
        api.compact()
        with pytest.raises(Expired):
            await anext(client.watch(MACHINES, resource_version="5"))

    run_virtual(scenario())


def test_the_fake_applies_as_a_server_does() -> None:
    async def scenario() -> None:
        api = FakeApi()
        client = FakeClient(api)
        owner = {"uid": "u", "name": "box"}
        both = {"metadata": {"labels": {"a": "1"}, "ownerReferences": [owner]}, "data": {"x": "1"}}
        await client.apply(SECRETS, "s", both, namespace="ns", manager="one")
        await client.apply(
            SECRETS, "s", {"data": {"x": "1", "y": "2"}}, namespace="ns", manager="two"
        )
        version = api.version
        await client.apply(SECRETS, "s", both, namespace="ns", manager="one")
        assert api.version == version, "an apply that changes nothing is no change"
        await client.apply(
            SECRETS, "s", {"metadata": {"labels": {"b": "1"}}}, namespace="ns", manager="one"
        )
        secret = api.find("secrets")
        assert secret["data"] == {"x": "1", "y": "2"}, "the other manager's field was taken away"
        assert secret["metadata"]["labels"] == {"b": "1"}
        assert "ownerReferences" not in secret["metadata"]

    run_virtual(scenario())
