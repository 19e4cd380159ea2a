"""The small parts of previews: places for visitors, memory for messages, idle streams, the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from machine_operator.gateway.previews import pool as preview_pool
from machine_operator.gateway.previews.pages import failure_answer, waiting_answer, wants_page
from machine_operator.gateway.previews.pool import StreamPool
from machine_operator.gateway.previews.sockets import Bridge, SocketBudget
from machine_operator.gateway.previews.visits import Visits
from machine_operator.gateway.problems import Coded, Problem
from machine_operator.store.previews import PreviewRecords, PreviewStatus
from tests.support.previews import open_database

NOW = datetime(2026, 3, 1, tzinfo=UTC)


# ---- visits


def test_visits_are_bounded_each_and_in_all() -> None:
    visits = Visits(most=3, most_each=2)
    with visits.enter("a"), visits.enter("a"), visits.enter("b"):
        assert len(visits) == 3
        for name in ("a", "c"):
            with pytest.raises(Coded), visits.enter(name):
                pass
    assert (len(visits), visits.previews) == (0, [])


def test_a_visit_is_cut_whenever_there_is_something_to_cut() -> None:
    visits, cut = Visits(most=9, most_each=9), []
    with visits.enter("a") as first, visits.enter("a") as second, visits.enter("b") as other:
        first.ended_by(lambda: cut.append(1))
        visits.cut("a")
        assert cut == [1]
        second.ended_by(lambda: cut.append(2))
        assert cut == [1, 2]
        assert (first.over, second.over, other.over) == (True, True, False)


# ---- idle streams


class Stream:
    """One that does nothing."""

    def __init__(self) -> None:
        self.usable, self.closed = True, False

    def close(self) -> None:
        self.usable, self.closed = False, True

    async def read(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None: ...


GUEST: Any = SimpleNamespace(target=SimpleNamespace(machine_uid="m"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    streams: list[Stream] = []

    async def open_stream(guest: Any, port: int, *, tls: bool) -> Stream:
        streams.append(Stream())
        return streams[-1]

    monkeypatch.setattr(preview_pool, "open_stream", open_stream)
    return streams


async def test_the_latest_stream_is_taken_first(opened: list[Stream]) -> None:
    pool = StreamPool(idle_seconds=60)
    one, two = Stream(), Stream()
    for stream in (one, two):
        pool.give(GUEST, 80, stream, tls=False)
    assert await pool.take(GUEST, 80, tls=False, twice=True) == (two, True)
    assert await pool.take(GUEST, 80, tls=True, twice=True) == (opened[0], False)
    assert await pool.take(GUEST, 81, tls=False, twice=True) == (opened[1], False)
    assert await pool.take(GUEST, 80, tls=False, twice=True, new=True) == (opened[2], False)
    assert await pool.take(GUEST, 80, tls=False, twice=True) == (one, True)
    assert len(pool) == 0


async def test_what_may_be_sent_once_only_takes_no_old_stream(
    opened: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, now = StreamPool(idle_seconds=60), 100.0
    monkeypatch.setattr(preview_pool, "_now", lambda: now)
    stream = Stream()
    pool.give(GUEST, 80, stream, tls=False)
    now += 0.5
    assert (await pool.take(GUEST, 80, tls=False, twice=False))[1]
    pool.give(GUEST, 80, stream, tls=False)
    now += 2.0
    assert await pool.take(GUEST, 80, tls=False, twice=False) == (opened[0], False)
    assert await pool.take(GUEST, 80, tls=False, twice=True) == (stream, True)


async def test_streams_that_are_closed_or_old_go(
    opened: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, now = StreamPool(idle_seconds=60), 100.0
    monkeypatch.setattr(preview_pool, "_now", lambda: now)
    old, closed, new = Stream(), Stream(), Stream()
    pool.give(GUEST, 80, old, tls=False)
    pool.give(GUEST, 80, closed, tls=False)
    now += 50
    pool.give(GUEST, 80, new, tls=False)
    closed.usable = False
    now += 20
    pool.sweep()
    assert (old.closed, closed.closed, new.closed, len(pool)) == (True, True, False, 1)
    pool.close()
    assert (new.closed, len(pool)) == (True, 0)


async def test_idle_streams_are_bounded() -> None:
    pool, streams = StreamPool(idle_seconds=60), [Stream() for _ in range(100)]
    for stream in streams:
        pool.give(GUEST, 80, stream, tls=False)
    assert len(pool) == sum(not stream.closed for stream in streams) == 32


# ---- messages


async def test_long_messages_that_never_end_are_bounded() -> None:
    budget, sent = SocketBudget(limit=2**20), []

    class Endless(Stream):
        """A text message of 8 MiB without its last byte."""

        def __init__(self) -> None:
            super().__init__()
            self.pieces = [b"\x81\x7f" + (8 * 2**20).to_bytes(8), *[b"x" * 65536] * 127]

        async def read(self) -> bytes:
            return self.pieces.pop(0) if self.pieces else b""

    protocol = ClientProtocol(parse_uri("ws://guest/"), state=OPEN, max_size=16 * 2**20)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Future()

    stream = Endless()
    await Bridge(protocol, stream, receive=receive, send=send, budget=budget).run()
    assert [message["code"] for message in sent] == [1013]
    assert stream.pieces
    assert stream.closed
    assert budget.take(2**20)


# ---- pages


def asks(**headers: str) -> dict[str, Any]:
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"type": "http", "method": "GET", "headers": raw}


def test_who_is_shown_a_page() -> None:
    html = "text/html,*/*;q=0.8"
    assert wants_page(asks(accept=html))
    assert wants_page(asks(accept="*/*", sec_fetch_mode="navigate"))
    assert not wants_page(asks(accept=html, sec_fetch_mode="cors"))
    assert not wants_page(asks(accept="*/*"))
    assert not wants_page(asks(accept=html, x_preview_check="1"))
    assert not wants_page(asks(accept=html) | {"method": "POST"})
    assert not wants_page({"type": "websocket", "headers": []})


def test_pages_say_nothing_that_is_not_text() -> None:
    problem = Problem(502, "<script>alert(1)</script>")
    _, headers, body = failure_answer(problem, page=True, request_id="x")
    assert b"<script>" not in body
    assert dict(headers)[b"content-length"] == b"%d" % len(body)
    status, headers, body = waiting_answer()
    assert (status, dict(headers)[b"content-length"]) == (503, b"%d" % len(body))
    assert b"default-src 'none'" in dict(headers)[b"content-security-policy"]


# ---- the database


def row(id: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": id,
        "org": "ns",
        "machine_id": "m",
        "machine_uid": "u",
        "created_by": "ada",
        "created_at": NOW,
        "status": "ready",
        "port": 80,
        "protocol": "http",
        "visibility": "private",
        **changed,
    }


async def test_what_is_like_an_open_one_is_that_one(tmp_path: Path) -> None:
    async with open_database(tmp_path) as database:
        records = PreviewRecords(database)
        assert (await records.claim(row("a"))).id == "a"
        assert (await records.claim(row("b"))).id == "a"
        for number, other in enumerate(
            (
                {"port": 81},
                {"protocol": "https"},
                {"visibility": "org"},
                {"created_by": "bob"},
                {"machine_uid": "v"},
            )
        ):
            assert (await records.claim(row(f"c{number}", **other))).id == f"c{number}"
        assert (await records.claim(row("d", visibility="org", created_by="bob"))).id == "c2"
        assert await records.close("a", NOW) is not None
        assert await records.close("a", NOW) is None
        assert (await records.claim(row("e"))).id == "e"
        # The repetition of a request finds what it made, though it is closed.
        again = await records.claim(row("a"))
        assert (again.id, again.status) == ("a", PreviewStatus.CLOSED)


async def test_two_at_the_same_moment_get_the_same(tmp_path: Path) -> None:
    async with open_database(tmp_path) as database:
        records = PreviewRecords(database)
        made = await asyncio.gather(*(records.claim(row(f"p{n}")) for n in range(10)))
        assert len({one.id for one in made}) == 1


async def test_open_ones_are_found_in_turn_and_old_ones_go(tmp_path: Path) -> None:
    async with open_database(tmp_path) as database:
        records = PreviewRecords(database)
        for number in range(5):
            await records.claim(row(f"p{number}", port=number))
        await records.close("p3", NOW)
        await records.settle("p2", PreviewStatus.FAILED)  # it was not waking
        assert [one.id for one in await records.open_after("p0")] == ["p1", "p2", "p4"]
        assert await records.open_among(["p0", "p3", "nothing"]) == {"p0"}
        assert await records.sweep(NOW) == 0
        assert await records.sweep(NOW + timedelta(seconds=1)) == 1
        assert await records.find(records.table.c.id == "p3") is None
