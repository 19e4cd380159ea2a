"""Requests through previews: a real server, a real sshd as the guest, and real services in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from machine_operator.gateway.activity.uses import UseKind
from machine_operator.gateway.previews.limits import PreviewLimits
from machine_operator.gateway.views import MachineView
from tests.support.gateway import until
from tests.support.previews import (
    DOMAIN,
    body_of,
    host,
    prefix,
    preview_site,
    raw_service,
    self_signed,
    service,
)
from tests.support.raw import Line, says


async def echo(request: web.Request) -> web.StreamResponse:
    """All that came, as JSON."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[k.lower(), v] for k, v in request.headers.items()],
            "body": body.decode("latin-1"),
        }
    )


async def test_a_request_comes_as_it_was_sent(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        assert preview["status"] == "ready"
        assert preview["url"] == f"http://{preview['preview_id']}.{DOMAIN}/"
        async with site.get(preview, "/a/b?x=1&y=%20", headers={"X-Mine": "1"}) as answer:
            assert answer.status == 200
            told = await answer.json()
        headers = dict(told["headers"])
        assert (told["method"], told["target"]) == ("GET", "/a/b?x=1&y=%20")
        assert headers["x-mine"] == "1"
        assert headers["host"] == f"{preview['preview_id']}.{DOMAIN}"
        assert headers["x-forwarded-host"] == headers["host"]
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert "x-forwarded-prefix" not in headers


async def test_a_path_goes_through_byte_for_byte(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        for by in ("host", "path"):
            for target in ("/a%2Fb/%2e%2e/c", "//x//y/", "/%C3%A4?q=%26&&=", "/a;b=c/d+e"):
                head = (
                    f"GET {prefix(preview, by)}{target} HTTP/1.1\r\nHost: {host(preview, by)}\r\n"
                )
                said = await says(site.port, head.encode() + b"Connection: close\r\n\r\n")
                assert json.loads(body_of(said))["target"] == target, (by, target)


async def test_by_path_the_guest_is_told_the_prefix(tmp_path: Path) -> None:
    async with preview_site(tmp_path, domain=None) as site, service(echo) as port:
        preview = await site.preview(port)
        id = preview["preview_id"]
        assert preview["url"] == f"http://127.0.0.1:{site.port}/previews/{id}/"
        async with site.get(preview, "/x?y", by="path") as answer:
            told = await answer.json()
        assert told["target"] == "/x?y"
        assert dict(told["headers"])["x-forwarded-prefix"] == f"/previews/{id}"
        async with site.get(preview, "?y=1", by="path") as answer:
            assert (answer.status, answer.headers["location"]) == (307, f"/previews/{id}/?y=1")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_methods_and_bodies(tmp_path: Path, method: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with site.get(preview, method=method, data=b"\x00hello\xff") as answer:
            told = await answer.json()
        assert (told["method"], told["body"]) == (method, "\x00hello\xff")
        assert dict(told["headers"])["content-length"] == "7"


async def test_a_chunked_body_is_chunked_anew(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d," % number

    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with site.get(preview, method="POST", data=pieces()) as answer:
            told = await answer.json()
        assert told["body"] == "".join(f"{number}," for number in range(100))
        assert dict(told["headers"])["transfer-encoding"] == "chunked"


async def test_answers_come_as_they_are(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.Response(
            status=int(request.path[1:4]),
            body=b"x" * 10,
            headers={"X-A": "\u00e4".encode().decode("latin-1")},
        )
        answer.headers.add("Set-Cookie", "a=1")
        answer.headers.add("Set-Cookie", "b=2; Domain=example.com")
        answer.headers["Location"] = "http://localhost/there"
        answer.headers["Connection"] = "X-Hop, close"
        answer.headers["X-Hop"] = "1"
        answer.headers["Keep-Alive"] = "timeout=1"
        return answer

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        for status in (200, 201, 206, 302, 404, 418, 500, 503, 599):
            async with site.get(preview, f"/{status}") as answer:
                assert (answer.status, await answer.read()) == (status, b"x" * 10)
                assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2; Domain=example.com"]
                assert answer.headers["Location"] == "http://localhost/there"
                assert "X-Hop" not in answer.headers
                assert "Keep-Alive" not in answer.headers
                assert len(answer.headers.getall("Date")) == 1
                assert "Connection" not in answer.headers


async def test_head_and_bodiless_answers_leave_the_stream_in_order(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/304":
            return web.Response(status=304, headers={"ETag": '"x"'})
        if request.path == "/204":
            return web.Response(status=204)
        return web.Response(body=b"z" * 1000)

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        for _ in range(3):
            async with site.get(preview, method="HEAD") as answer:
                assert answer.headers["Content-Length"] == "1000"
                assert await answer.read() == b""
            async with site.get(preview, "/304", headers={"If-None-Match": '"x"'}) as answer:
                assert (answer.status, answer.headers["ETag"]) == (304, '"x"')
            async with site.get(preview, "/204") as answer:
                assert (answer.status, await answer.read()) == (204, b"")
            async with site.get(preview) as answer:
                assert len(await answer.read()) == 1000
        assert len(site.previews.pool) == 1


async def test_ranges_and_compression_pass(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(256)))

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/gzip":
            return web.Response(body=b"\x1f\x8b...", headers={"Content-Encoding": "gzip"})
        return web.FileResponse(file)

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with site.get(preview, headers={"Range": "bytes=10-19"}) as answer:
            assert (answer.status, await answer.read()) == (206, bytes(range(10, 20)))
            assert answer.headers["Content-Range"] == "bytes 10-19/256"
        async with site.get(preview, "/gzip", headers={"Accept-Encoding": "gzip"}) as answer:
            assert await answer.read() == b"\x1f\x8b..."
            assert answer.headers["Content-Encoding"] == "gzip"


async def test_interim_answers_and_trailers_are_left_out(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        writer.write(b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
        await writer.drain()

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert (answer.status, await answer.read()) == (200, b"abc")
            assert {"Link", "X-Sum", "Trailer"}.isdisjoint(answer.headers)


async def test_both_bodies_stream_at_the_same_time(tmp_path: Path) -> None:
    """Each piece of the answer is there before the next one of the request is sent."""

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for data in request.content.iter_any():
            await answer.write(data.upper())
        return answer

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(
            f"POST / HTTP/1.1\r\nHost: {host(preview, 'host')}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        await line.send(b"3\r\nabc\r\n")
        await line.until(b"ABC\r\n")
        await line.send(b"3\r\ndef\r\n")
        await line.until(b"DEF\r\n")
        await line.send(b"0\r\n\r\n")
        await line.until(b"0\r\n\r\n")
        await line.close()


async def test_a_body_of_many_mib_goes_both_ways(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        digest = hashlib.sha256()
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for data in request.content.iter_any():
            digest.update(data)
            await answer.write(data)
        await answer.write(digest.digest())
        return answer

    content = bytes(range(256)) * 4096 * 8

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with site.get(preview, method="POST", data=io.BytesIO(content)) as answer:
            came = await answer.read()
        assert came == content + hashlib.sha256(content).digest()


async def test_a_client_that_does_not_read_holds_the_guest_up(tmp_path: Path) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(f"GET / HTTP/1.1\r\nHost: {host(preview, 'host')}\r\n\r\n".encode())
        await line.until(b"\r\n\r\n")
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)
        # The buffers of four sockets, and a window of SSH.
        assert 0 < sent < 32 * 2**20
        await line.close()
        await until(lambda: len(site.previews.visits) == 0, state=lambda: len(site.previews.visits))


async def test_a_guest_that_does_not_read_holds_the_client_up(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.Event().wait()

    limits = PreviewLimits(body_seconds=3.0)
    async with preview_site(tmp_path, limits=limits) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(
            f"PUT / HTTP/1.1\r\nHost: {host(preview, 'host')}\r\nContent-Length: 1000000000\r\n\r\n".encode()
        )
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 2**20:
                line.writer.write(bytes(65536))
                async with asyncio.timeout(1):
                    await line.writer.drain()
                sent += 65536
        assert sent < 32 * 2**20
        assert b" 504 " in await line.until(b"\r\n\r\n")
        await until(lambda: len(site.previews.visits) == 0)
        await line.close()


async def test_the_guest_hears_when_a_client_goes_away(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        return web.Response()

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(f"GET / HTTP/1.1\r\nHost: {host(preview, 'host')}\r\n\r\n".encode())
        await until(lambda: len(site.previews.visits) == 1)
        await line.close()
        await asyncio.wait_for(gone.wait(), 5)
        await until(lambda: len(site.previews.visits) == 0)


async def test_streams_are_used_again(tmp_path: Path) -> None:
    peers = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text=await request.text())

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        for number in range(10):
            async with site.get(preview, method="POST", data=str(number)) as answer:
                assert await answer.text() == str(number)
        assert len(peers) == 1


async def test_a_look_is_repeated_where_the_stream_was_closed(tmp_path: Path) -> None:
    """A server that closes after an answer to which it has said nothing of that."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"\r\n\r\n")
        # The next one comes, and is dropped.

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        for _ in range(4):
            async with site.get(preview) as answer:
                assert (answer.status, await answer.read()) == (200, b"ok")
        assert requests == 4
        async with site.get(preview, method="DELETE") as answer:
            assert answer.status == 502


async def test_a_closed_port_is_said_to_be_one(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        async with service(echo) as port:
            pass
        preview = await site.preview(port)
        assert preview["status"] == "ready"
        async with site.get(preview) as answer:
            assert (answer.status, answer.content_type) == (502, "application/problem+json")
            assert (
                f"nothing listens at port {port}"
                in (await answer.json(content_type=None))["detail"]
            )
        async with site.get(preview, headers={"Accept": "text/html"}) as answer:
            assert (answer.status, answer.content_type) == (502, "text/html")
            assert "Bad Gateway" in await answer.text()


async def test_a_service_on_ipv6_alone_is_found(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(service(echo, host="::1"))
        except OSError:
            pytest.skip("there is no IPv6 here")
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert answer.status == 200


async def test_a_service_may_speak_tls(tmp_path: Path) -> None:
    context = self_signed(tmp_path)
    content = bytes(range(256)) * 8192

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read())

    async with preview_site(tmp_path) as site, service(handler, ssl_context=context) as port:
        preview = await site.preview(port, protocol="https")
        for _ in range(3):
            async with site.get(preview, method="POST", data=io.BytesIO(content)) as answer:
                assert (answer.status, await answer.read()) == (200, content)
        assert len(site.previews.pool) == 1
        other = await site.preview(port)
        async with site.get(other) as answer:
            assert answer.status in (400, 502)


async def test_tls_where_none_is_spoken(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, protocol="https")
        async with site.get(preview) as answer:
            assert answer.status == 502
            assert "TLS" in (await answer.json(content_type=None))["detail"]


async def test_a_guest_that_is_lost_cuts_the_answer(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"half")
        await asyncio.Event().wait()
        return answer

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert await answer.content.read(4) == b"half"
            site.sshd.cut()
            with pytest.raises(aiohttp.ClientPayloadError):
                await asyncio.wait_for(answer.read(), 10)
        # The next one finds a new connection.
        async with site.get(preview, timeout=aiohttp.ClientTimeout(10)) as answer:
            assert await answer.content.read(4) == b"half"


async def test_deleting_a_preview_cuts_who_is_in_it(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"half")
        await asyncio.Event().wait()
        return answer

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert await answer.content.read(4) == b"half"
            status, closed = await site.api("DELETE", f"/previews/{preview['preview_id']}")
            assert (status, closed["status"]) == (200, "closed")
            with pytest.raises(aiohttp.ClientPayloadError):
                await asyncio.wait_for(answer.read(), 10)
        async with site.get(preview) as answer:
            assert answer.status == 404


async def test_there_is_a_bound_on_requests_at_once(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    limits = PreviewLimits(visits_each=2)
    async with preview_site(tmp_path, limits=limits) as site, service(handler) as port:
        preview = await site.preview(port)
        first = [asyncio.ensure_future(site.get(preview).__aenter__()) for _ in range(2)]
        await until(lambda: len(site.previews.visits) == 2)
        async with site.get(preview) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        release.set()
        for one in first:
            answer = await one
            assert answer.status == 200
            answer.release()


async def test_idle_streams_are_closed(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert answer.status == 200
        assert len(site.previews.pool) == 1
        site.sshd.cut()
        await until(lambda: (site.previews.pool.sweep(), len(site.previews.pool))[1] == 0)


async def test_a_long_answer_keeps_the_machine_awake(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        held: list[str] = []
        use = site.access.use

        def used(view: MachineView, kind: UseKind) -> AbstractContextManager[None]:
            held.append(kind.value)
            return use(view, kind)

        site.access.use = used  # type: ignore[method-assign]
        going = asyncio.ensure_future(site.get(preview).__aenter__())
        await until(lambda: held == ["preview"])
        release.set()
        (await going).release()
        async with site.get(preview) as answer:
            assert answer.status == 200
        assert held == ["preview"]


async def test_what_is_no_preview_is_the_apis(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        id = preview["preview_id"]
        for name in (f"api.{DOMAIN}", DOMAIN, f"{id}.elsewhere.test", f"x{id}.{DOMAIN}"):
            async with site.client.get(
                f"http://127.0.0.1:{site.port}/v1/machines", headers={"Host": name}
            ) as answer:
                assert (answer.status, (await answer.json())["error_code"]) == (
                    401,
                    "AUTH_REQUIRED",
                )
        good = (
            f"{id}.{DOMAIN}",
            f"{id}.{DOMAIN}:8443",
            f"{id}.{DOMAIN}.",
            f"{id}.{DOMAIN}".upper(),
        )
        for name in good:
            async with site.client.get(
                f"http://127.0.0.1:{site.port}/", headers={"Host": name}
            ) as answer:
                assert answer.status == 200, name
        for name in (
            f"pv-0.{DOMAIN}",
            f"pv-{'0' * 32}.{DOMAIN}",
            f"pv-{id}.{DOMAIN}",
            f"pv-x.{id}.{DOMAIN}",
        ):
            async with site.client.get(
                f"http://127.0.0.1:{site.port}/", headers={"Host": name}
            ) as answer:
                assert answer.status == 404, name
        async with site.client.get(f"http://127.0.0.1:{site.port}/previews/nothing/") as answer:
            assert answer.status == 404
