"""Previews and ports over the API: made, found, closed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from machine_operator.store.moments import utc_now
from tests.support.previews import DOMAIN, Site, preview_site

PORT = 8080


async def test_a_preview_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        status, made = await site.api("POST", "/previews", json={"port": PORT})
        assert status == 200
        url = made.pop("url")
        assert set(made) == {
            "preview_id",
            "machine_id",
            "status",
            "port",
            "protocol",
            "visibility",
            "created_at",
            "ready_at",
        }
        assert made["machine_id"] == site.machine
        assert (made["status"], made["port"]) == ("ready", PORT)
        assert (made["protocol"], made["visibility"]) == ("http", "private")
        assert made["created_at"].endswith("Z")
        id = made["preview_id"]
        assert url.startswith(f"http://{id}.{DOMAIN}/?preview_token=")
        assert await without_url(site, "GET", f"/previews/{id}") == made
        status, listed = await site.api("GET", "/previews")
        assert [one["preview_id"] for one in listed["items"]] == [id]
        status, closed = await site.api("DELETE", f"/previews/{id}")
        assert (status, closed) == (200, {**made, "status": "closed"})
        again = await site.api("DELETE", f"/previews/{id}")
        assert again == (200, closed)
        assert (await site.api("GET", f"/previews/{id}"))[1]["status"] == "closed"


async def without_url(site: Site, method: str, path: str) -> Any:
    status, body = await site.api(method, path)
    assert status == 200
    return {name: value for name, value in body.items() if name != "url"}


async def test_ports_are_previews_by_another_name(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        status, port = await site.api("POST", "/ports", json={"port": PORT, "protocol": "https"})
        assert status == 200
        assert "visibility" not in port
        assert "preview_id" not in port
        preview = await without_url(site, "GET", f"/previews/{port['port_id']}")
        assert (preview["preview_id"], preview["visibility"]) == (port["port_id"], "private")
        public = await site.preview(PORT)
        status, listed = await site.api("GET", "/ports")
        assert {one["port_id"] for one in listed["items"]} == {
            port["port_id"],
            public["preview_id"],
        }
        status, closed = await site.api("DELETE", f"/ports/{public['preview_id']}")
        assert (status, closed["status"], closed["port_id"]) == (
            200,
            "closed",
            public["preview_id"],
        )


async def test_the_same_again_is_the_one_that_is_there(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        made = await asyncio.gather(*(site.preview(PORT) for _ in range(8)))
        assert len({one["preview_id"] for one in made}) == 1
        ids = {made[0]["preview_id"]}
        for body in (
            {"visibility": "org"},
            {"visibility": "private"},
            {"protocol": "https"},
            {"visibility": "private", "key": site.keys[1]},
        ):
            first = await site.preview(PORT, **body)
            assert first["preview_id"] not in ids
            ids.add(first["preview_id"])
            assert (await site.preview(PORT, **body))["preview_id"] == first["preview_id"]
        assert (await site.preview(PORT + 1))["preview_id"] not in ids
        by_other = await site.preview(PORT, visibility="org", key=site.keys[1])
        assert by_other["preview_id"] in ids
        await site.api("DELETE", f"/previews/{made[0]['preview_id']}")
        assert (await site.preview(PORT))["preview_id"] not in ids


async def test_links_are_told_to_those_who_may_see(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        private = await site.preview(PORT, visibility="private")
        org = await site.preview(PORT, visibility="org")
        assert "preview_token" in private["url"]
        assert "preview_token" in org["url"]
        _, listed = await site.api("GET", "/previews", key=site.keys[1])
        told = {one["preview_id"]: "preview_token" in one["url"] for one in listed["items"]}
        assert told == {private["preview_id"]: False, org["preview_id"]: True}


async def test_with_a_key_it_is_made_once(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        sent: dict[str, Any] = {"json": {"port": PORT}, "headers": {"Idempotency-Key": "k"}}
        first = await site.api("POST", "/previews", **sent)
        assert await site.api("POST", "/previews", **sent) == first
        status, refused = await site.api(
            "POST", "/previews", json={"port": 1}, headers={"Idempotency-Key": "k"}
        )
        assert (status, refused["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
        status, refused = await site.api("POST", "/previews", key=site.keys[1], **sent)
        assert (status, refused["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({}, "body.port"),
        ({"port": 0}, "body.port"),
        ({"port": -1}, "body.port"),
        ({"port": 65536}, "body.port"),
        ({"port": 2**70}, "body.port"),
        ({"port": "80"}, "body.port"),
        ({"port": 80.5}, "body.port"),
        ({"port": True}, "body.port"),
        ({"port": None}, "body.port"),
        ({"port": 80, "protocol": "tcp"}, "body.protocol"),
        ({"port": 80, "protocol": None}, "body.protocol"),
        ({"port": 80, "visibility": "everybody"}, "body.visibility"),
        ({"port": 80, "name": "x"}, "body.name"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_told_where(
    tmp_path: Path, body: dict[str, Any], location: str
) -> None:
    async with preview_site(tmp_path) as site:
        for path in ("/previews", "/ports"):
            status, told = await site.api("POST", path, json=body)
            expected = "body.visibility" if path == "/ports" and "visibility" in body else location
            assert (status, [one["location"] for one in told["errors"]]) == (422, [expected])
        status, listed = await site.api("GET", "/previews")
        assert listed["items"] == []


@pytest.mark.parametrize("port", [1, 65535, 80.0])
async def test_any_port_will_do(tmp_path: Path, port: float) -> None:
    async with preview_site(tmp_path) as site:
        assert (await site.preview(port))["port"] == int(port)  # type: ignore[arg-type]


async def test_a_sleeping_machine_wakes_for_its_preview(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        await site.sleeps()
        made = await site.preview(PORT)
        assert made["status"] == "wake_in_progress"
        assert made["retry_after_ms"] > 0
        assert {"url", "ready_at"}.isdisjoint(made)
        path = f"/previews/{made['preview_id']}"
        assert (await site.api("GET", path))[1]["status"] == "wake_in_progress"
        assert (await site.preview(PORT))["preview_id"] == made["preview_id"]
        await site.runs()
        _, ready = await site.api("GET", path)
        assert ready["status"] == "ready"
        assert "retry_after_ms" not in ready
        assert "ready_at" in ready
        await site.sleeps()
        assert (await site.api("GET", path))[1] == ready  # and nothing wakes
        assert site.view.desired_state.value == "sleeping"


async def test_a_preview_is_ready_though_its_machine_sleeps_again(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        await site.sleeps()
        made = await site.preview(PORT)
        site.previews.clock = lambda: utc_now() + timedelta(minutes=11)
        _, shown = await site.api("GET", f"/previews/{made['preview_id']}")
        assert shown["status"] == "ready"


async def test_a_wake_that_fails(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        await site.sleeps()
        made = await site.preview(PORT)
        await site.is_in("failed", reason="CrashLoop", retryable=False)
        _, shown = await site.api("GET", f"/previews/{made['preview_id']}")
        assert (shown["status"], shown["error_code"]) == ("failed", "machine_not_routable")
        assert shown["error_message"]
        assert "url" not in shown
        # And it stays so, while another one may come to be.
        await site.runs()
        assert (await site.api("GET", f"/previews/{made['preview_id']}"))[1] == shown
        assert (await site.preview(PORT))["status"] == "ready"


async def test_nothing_is_made_for_a_machine_that_goes(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        await site.api("DELETE", "")
        status, refused = await site.api("POST", "/previews", json={"port": PORT})
        assert (status, refused["error_code"]) == (409, "INVALID_STATE")


async def test_other_organisations_know_nothing_of_it(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        made = await site.preview(PORT)
        other = site.replica.cluster.tokens["other"]
        for method, path in (
            ("GET", "/previews"),
            ("POST", "/previews"),
            ("GET", f"/previews/{made['preview_id']}"),
            ("DELETE", f"/ports/{made['preview_id']}"),
        ):
            status, _ = await site.api(method, path, key=other, json={"port": PORT})
            assert status == 404, (method, path)
        for id in ("pv-0", "x", "a%2Fb"):
            assert (await site.api("GET", f"/previews/{id}"))[0] == 404


async def test_pages(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        made = [(await site.preview(PORT + number))["preview_id"] for number in range(5)]
        found: list[str] = []
        path = "/previews?limit=2"
        while True:
            _, page = await site.api("GET", path)
            found += [one["preview_id"] for one in page["items"]]
            if "next_cursor" not in page:
                break
            path = f"/previews?limit=2&cursor={page['next_cursor']}"
        assert sorted(found) == sorted(made)


async def test_what_was_closed_is_forgotten_and_what_is_orphaned_closed(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        closed = await site.preview(PORT)
        await site.api("DELETE", f"/previews/{closed['preview_id']}")
        kept = await site.preview(PORT + 1)
        await site.previews.sweep()
        _, listed = await site.api("GET", "/previews")
        assert len(listed["items"]) == 2
        site.previews.clock = lambda: utc_now() + timedelta(days=2)
        await site.previews.sweep()
        _, listed = await site.api("GET", "/previews")
        assert [one["preview_id"] for one in listed["items"]] == [kept["preview_id"]]
        assert listed["items"][0]["status"] == "ready"
        site.replica.cluster.api.remove("machines", site.machine)
        await site.replica.caught_up()
        await site.previews.sweep()
        found = await site.previews.records.all()
        assert [(one.id, one.status.value) for one in found] == [(kept["preview_id"], "closed")]


async def test_a_preview_closed_elsewhere_is_noticed(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        made = await site.preview(PORT)
        with site.previews.visits.enter(made["preview_id"]) as visit:
            await site.previews.look()
            assert not visit.over
            await site.previews.records.close(made["preview_id"], utc_now())
            await site.previews.look()
            assert visit.over
