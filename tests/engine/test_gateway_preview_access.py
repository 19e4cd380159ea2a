"""Who gets into previews, and what of their requests the guest gets to see."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from machine_operator.gateway.keys import KEYS_NAMESPACE, new_key
from machine_operator.gateway.tokens import Tokens
from tests.support.clock import wall_clock
from tests.support.gateway import ORG
from tests.support.previews import DOMAIN, Site, host, preview_site, service
from tests.support.raw import says

KEY = b"k" * 32


async def echo(request: web.Request) -> web.StreamResponse:
    headers = {k.lower(): v for k, v in request.headers.items()}
    return web.json_response({"target": request.raw_path, "headers": headers})


def token_of(preview: object) -> str:
    assert isinstance(preview, dict)
    query = urlsplit(preview["url"]).query
    assert query.startswith("preview_token=")
    return query.removeprefix("preview_token=")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def cookie_of(answer: object) -> str:
    """What a browser sends back."""
    return str(answer.headers["Set-Cookie"]).partition(";")[0]  # type: ignore[attr-defined]


async def test_what_is_public_is_for_everybody(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        assert "preview_token" not in preview["url"]
        async with site.get(preview, "/?preview_token=mine") as answer:
            # Whatever that is, it is not ours.
            assert (await answer.json())["target"] == "/?preview_token=mine"


@pytest.mark.parametrize("visibility", ["private", "org"])
async def test_without_anything_nobody_gets_in(tmp_path: Path, visibility: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility=visibility)
        for by in ("host", "path"):
            async with site.get(preview, by=by) as answer:
                assert (answer.status, answer.content_type) == (401, "application/json")
                assert (await answer.json())["error_code"] == "AUTH_REQUIRED"
            async with site.get(preview, by=by, headers={"Accept": "text/html"}) as answer:
                assert (answer.status, answer.content_type) == (401, "text/html")
            async with site.get(preview, by=by, headers=bearer("dsk-none")) as answer:
                assert answer.status == 401


@pytest.mark.parametrize("by", ["host", "path"])
async def test_a_link_becomes_a_cookie(tmp_path: Path, by: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        token = token_of(preview)
        start = "" if by == "host" else f"/previews/{preview['preview_id']}"
        async with site.get(preview, f"/a?x=1&preview_token={token}&y=2", by=by) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, f"{start}/a?x=1&y=2")
            assert answer.headers["Cache-Control"] == "no-store"
            said = answer.headers["Set-Cookie"]
            assert "; HttpOnly" in said
            assert "; SameSite=Lax" in said
            assert f"; Path={start}/;" in said
            assert "Domain" not in said
            assert "Secure" not in said
            cookie = cookie_of(answer)
        sent = {"Cookie": f"theirs=1; {cookie}; more=2"}
        async with site.get(preview, "/a?x=1&y=2", by=by, headers=sent) as answer:
            assert answer.status == 200
            told = await answer.json()
        assert told["target"] == "/a?x=1&y=2"
        assert told["headers"]["cookie"] == "theirs=1; more=2"
        async with site.get(preview, by=by, headers={"Cookie": cookie}) as answer:
            assert "cookie" not in (await answer.json())["headers"]


async def test_over_https_the_cookie_is_the_hosts_own(tmp_path: Path) -> None:
    public = "https://api.test"
    async with preview_site(tmp_path, public_url=public) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        assert preview["url"].startswith(f"https://{preview['preview_id']}.{DOMAIN}/?")
        async with site.get(preview, f"/?preview_token={token_of(preview)}") as answer:
            said = answer.headers["Set-Cookie"]
            assert said.startswith(f"__Host-preview-{preview['preview_id']}=")
            assert "; Secure" in said
            cookie = cookie_of(answer)
        async with site.get(preview, headers={"Cookie": cookie}) as answer:
            assert answer.status == 200
            assert (await answer.json())["headers"]["x-forwarded-proto"] == "https"
        planted = cookie.removeprefix("__Host-")
        async with site.get(preview, headers={"Cookie": planted}) as answer:
            assert answer.status == 401


@pytest.mark.parametrize("target", ["//evil.test/x", "/\\evil.test", "//"])
async def test_no_link_leads_to_somebody_else(tmp_path: Path, target: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        line = f"GET {target}?preview_token={token_of(preview)} HTTP/1.1"
        said = await says(
            site.port, f"{line}\r\nHost: {host(preview)}\r\nConnection: close\r\n\r\n".encode()
        )
        assert said.startswith(b"HTTP/1.1 302")
        location = next(
            one for one in said.split(b"\r\n") if one.lower().startswith(b"location: ")
        ).partition(b": ")[2]
        assert location == b"/." + target.encode()


async def test_a_link_is_for_one_preview_and_one_hour(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port, service(echo) as other_port:
        preview = await site.preview(port, visibility="private")
        other = await site.preview(other_port, visibility="private")
        old = Tokens(KEY, clock=lambda: 1.0)
        stale = old.sign("preview", preview["preview_id"], seconds=3600)
        stale_cookie = old.sign("preview-cookie", preview["preview_id"], seconds=3600)
        forged = Tokens(b"x" * 32).sign("preview", preview["preview_id"], seconds=3600)
        artifact = Tokens(KEY).sign("artifact", preview["preview_id"], seconds=3600)
        for token in (token_of(other), stale, forged, artifact, "", "x", "%00%ff", "9" * 5000):
            async with site.get(preview, f"/?preview_token={token}") as answer:
                assert answer.status == 401, token
                assert "Set-Cookie" not in answer.headers
        name = f"preview-{preview['preview_id']}"
        for value in (token_of(preview), stale_cookie, "", "x"):
            async with site.get(preview, headers={"Cookie": f"{name}={value}"}) as answer:
                assert answer.status == 401, value
        async with site.get(other, f"/?preview_token={token_of(other)}") as answer:
            value = cookie_of(answer).partition("=")[2]
        async with site.get(preview, headers={"Cookie": f"{name}={value}"}) as answer:
            assert answer.status == 401


async def test_an_old_link_with_a_good_cookie_is_only_tidied(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        async with site.get(preview, f"/?preview_token={token_of(preview)}") as answer:
            cookie = cookie_of(answer)
        async with site.get(preview, "/?preview_token=old&x", headers={"Cookie": cookie}) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "/?x")
            assert "Set-Cookie" not in answer.headers


async def test_a_program_posts_with_a_link(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        target = f"/x?preview_token={token_of(preview)}"
        async with site.get(preview, target, method="POST", data=b"") as answer:
            assert (answer.status, (await answer.json())["target"]) == (200, "/x")


async def test_api_keys_get_in_and_are_not_passed_on(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        first, second = site.keys
        private = await site.preview(port, visibility="private")
        org = await site.preview(port, visibility="org")
        for preview, key, status in (
            (private, first, 200),
            (private, second, 403),
            (private, other_org(site), 404),
            (org, first, 200),
            (org, second, 200),
            (org, other_org(site), 404),
        ):
            for headers in (bearer(key), {"x-api-key": key}):
                async with site.get(preview, headers=headers) as answer:
                    assert answer.status == status
                    if status == 200:
                        told = (await answer.json())["headers"]
                        assert {"authorization", "x-api-key"}.isdisjoint(told)


async def test_a_key_that_may_only_read_gets_in_nowhere(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        reader = new_key(ORG, scopes=("machines:read",), now=wall_clock())
        meta = {**reader.secret["metadata"], "namespace": KEYS_NAMESPACE}
        site.replica.cluster.api.put("secrets", {**reader.secret, "metadata": meta})
        org = await site.preview(port, visibility="org")
        status, told = await wait_for_key(site, org, reader.token)
        assert (status, told["error_code"]) == (403, "AUTH_SCOPE_FORBIDDEN")
        status, shown = await site.api("GET", f"/previews/{org['preview_id']}", key=reader.token)
        assert (status, shown["url"]) == (200, f"http://{org['preview_id']}.{DOMAIN}/")


async def wait_for_key(site: Site, preview: object, key: str) -> tuple[int, dict[str, str]]:
    while True:
        async with site.get(preview, headers=bearer(key)) as answer:
            if answer.status != 401:
                return answer.status, await answer.json()


async def test_the_applications_own_credentials_are_passed_on(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        first = site.keys[0]
        public = await site.preview(port)
        for value in ("Basic dTpw", "Bearer eyJ.app", "Token x"):
            async with site.get(public, headers={"Authorization": value}) as answer:
                assert (await answer.json())["headers"]["authorization"] == value
        sent = {"Authorization": "Bearer eyJ.app", "x-api-key": first}
        async with site.get(public, headers=sent) as answer:
            told = (await answer.json())["headers"]
            assert told["authorization"] == "Bearer eyJ.app"
            assert "x-api-key" not in told
        private = await site.preview(port, visibility="private")
        async with site.get(private, headers=sent) as answer:
            assert (answer.status, (await answer.json())["headers"]["authorization"]) == (
                200,
                "Bearer eyJ.app",
            )
        async with site.get(public, headers=bearer(first)) as answer:
            assert "authorization" not in (await answer.json())["headers"]


async def test_with_a_cookie_only_own_pages_change_things(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        async with site.get(preview, f"/?preview_token={token_of(preview)}") as answer:
            cookie = {"Cookie": cookie_of(answer)}
        own = f"{preview['preview_id']}.{DOMAIN}"
        for method, origin, status in (
            ("POST", f"http://{own}", 200),
            ("POST", f"http://{own}:80", 200),
            ("POST", "null", 200),
            ("POST", f"http://pv-{'0' * 32}.{DOMAIN}", 403),
            ("DELETE", "http://evil.test", 403),
            ("GET", "http://evil.test", 200),
        ):
            headers = {**cookie, "Origin": origin}
            async with site.get(preview, method=method, headers=headers) as answer:
                assert answer.status == status, (method, origin)
        async with site.get(preview, method="POST", headers=cookie) as answer:
            assert answer.status == 200


def other_org(site: Site) -> str:
    return site.replica.cluster.tokens["other"]
