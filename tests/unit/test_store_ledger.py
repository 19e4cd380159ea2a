"""The ledger: whatever is told, in whatever order and however often, segments of a machine and kind never overlap.

The class is collected a second time in tests/engine, on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from machine_operator.store.database import Database
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment, SegmentKind, Sizes
from tests.support.store import EPOCH, sqlite_replicas

SMALL, LARGE = Sizes(1000, 2048, 10), Sizes(2500, 4096, 20)


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path) as databases:
        yield databases


def at(minutes: float) -> datetime:
    return EPOCH + timedelta(minutes=minutes)


def told(segments: list[Segment]) -> list[tuple[float, float | None, Sizes]]:
    """Minutes of begin and end, and the sizes."""

    def minutes(moment: datetime) -> float:
        return (moment - EPOCH) / timedelta(minutes=1)

    return [
        (minutes(s.began_at), None if s.ended_at is None else minutes(s.ended_at), s.sizes)
        for s in segments
    ]


class TestLedger:
    @pytest.fixture
    def here(self, replicas: list[Database]) -> UsageLedger:
        return UsageLedger(replicas[0])

    @pytest.fixture
    def there(self, replicas: list[Database]) -> UsageLedger:
        return UsageLedger(replicas[1])

    async def begin(
        self,
        ledger: UsageLedger,
        minutes: float,
        *,
        ordinal: int,
        how: str = "open_segment",
        kind: SegmentKind = "awake",
        sizes: Sizes = SMALL,
        uid: str = "u1",
        org: str = "acme",
    ) -> bool:
        return await getattr(ledger, how)(
            uid,
            kind=kind,
            ordinal=ordinal,
            org=org,
            machine_id=f"dm-{uid}",
            sizes=sizes,
            at=at(minutes),
        )

    async def everything(
        self, ledger: UsageLedger, *, kind: SegmentKind = "awake"
    ) -> list[Segment]:
        return await ledger.segments("acme", kind=kind, begin=at(-1e6), end=at(1e6))

    async def test_a_segment_is_what_was_told(self, here, there):
        assert await self.begin(here, 0, ordinal=4)
        opened = Segment("u1", "awake", 4, "acme", "dm-u1", SMALL, EPOCH, None, EPOCH)
        assert await there.open_segments() == [opened]
        assert await there.touch(at(5)) == 1
        assert [s.end for s in await here.open_segments()] == [at(5)]
        assert await there.close_segment("u1", "awake", at(7))
        assert await here.open_segments() == []
        assert told(await self.everything(here)) == [(0, 7, SMALL)]

    async def test_the_same_news_twice_is_no_news(self, here, there):
        for how in ("open_segment", "resize"):
            news = [
                self.begin(ledger, 0, ordinal=1, how=how) for ledger in (here, there, here, there)
            ]
            assert sum(await asyncio.gather(*news)) == (how == "open_segment")
        closed = await asyncio.gather(
            *(each.close_segment("u1", "awake", at(3)) for each in (here, there, here))
        )
        assert sorted(closed) == [False, False, True]
        assert not await self.begin(there, 0, ordinal=1), "late news must not wake it again"
        assert told(await self.everything(here)) == [(0, 3, SMALL)]

    async def test_resize_leaves_no_gap_and_no_overlap(self, here, there):
        await self.begin(here, 0, ordinal=1)
        await here.touch(at(2))
        news = (self.begin(e, 5, ordinal=2, how="resize", sizes=LARGE) for e in (here, there))
        assert sum(await asyncio.gather(*news)) == 1
        assert told(await self.everything(here)) == [(0, 5, SMALL), (5, None, LARGE)]

    async def test_segment_that_ended_unseen_counts_until_it_was_seen(self, here):
        await self.begin(here, 0, ordinal=1)
        await here.touch(at(2))
        await self.begin(here, 60, ordinal=2, sizes=LARGE)
        assert told(await self.everything(here)) == [(0, 2, SMALL), (60, None, LARGE)]

    async def test_late_close_does_not_close_the_next_one(self, here, there):
        await self.begin(here, 0, ordinal=1)
        await here.close_segment("u1", "awake", at(5))
        await self.begin(here, 6, ordinal=2)
        assert not await there.close_segment("u1", "awake", at(5))
        assert not await there.close_segment("u1", "awake", at(7), up_to=1)
        assert told(await self.everything(here)) == [(0, 5, SMALL), (6, None, SMALL)]

    async def test_end_by_a_clock_that_is_behind_ends_what_is_meant(self, here):
        await self.begin(here, 6, ordinal=2)
        assert await here.close_segment("u1", "awake", at(5), up_to=2)
        assert told(await self.everything(here)) == [(6, 6, SMALL)]

    async def test_clock_that_goes_back_makes_no_overlap(self, here):
        await self.begin(here, 10, ordinal=1)
        await here.close_segment("u1", "awake", at(20))
        await self.begin(here, 15, ordinal=2)
        await self.begin(here, 12, ordinal=3, how="resize", sizes=LARGE)
        assert told(await self.everything(here))[0] == (10, 20, SMALL)
        assert told(await here.open_segments()) == [(20, None, LARGE)]

    async def test_kinds_and_machines_are_apart(self, here):
        await self.begin(here, 0, ordinal=1)
        await self.begin(here, 0, ordinal=1, kind="storage")
        await self.begin(here, 0, ordinal=1, uid="u2")
        await here.close_segment("u1", "awake", at(1))
        still = {(s.machine_uid, s.kind) for s in await here.open_segments()}
        assert still == {("u1", "storage"), ("u2", "awake")}

    async def test_touch_goes_forward_only_and_where_asked(self, here, there):
        for uid in ("u1", "u2", "u3"):
            await self.begin(here, 0, ordinal=1, uid=uid)
        await here.close_segment("u3", "awake", at(0.5))
        assert await here.touch(at(4), machine_uids={"u1", "u3", "nobody"}) == 1
        assert await here.touch(at(9), machine_uids=()) == 0
        assert await here.touch(at(3)) == 1
        assert [s.seen_at for s in await here.open_segments()] == [at(4), at(3)]
        await asyncio.gather(*((here, there)[n % 2].touch(at(5 + n)) for n in range(10)))
        assert [s.seen_at for s in await here.open_segments()] == [at(14), at(14)]

    async def test_segments_of_a_period_overlap_it(self, here):
        for ordinal, (begin, end) in enumerate(((0, 10), (10, 20), (20, 30)), start=1):
            await self.begin(here, begin, ordinal=ordinal)
            await here.close_segment("u1", "awake", at(end))
        await self.begin(here, 12, ordinal=1, uid="u2")
        await here.touch(at(14))
        await self.begin(here, 0, ordinal=1, uid="u3", org="other")

        async def found(begin: float, end: float, **more: str) -> list[tuple[str, int]]:
            segments = await here.segments(
                "acme", kind="awake", begin=at(begin), end=at(end), **more
            )
            return [(s.machine_uid, s.ordinal) for s in segments]

        assert await found(10, 20) == [("u1", 2), ("u2", 1)]
        assert await found(9.999, 20.001) == [("u1", 1), ("u1", 2), ("u1", 3), ("u2", 1)]
        assert await found(14, 15) == [("u1", 2)], "it was not seen for longer"
        assert await found(0, 99, machine_id="dm-u2") == [("u2", 1)]
        assert [s.machine_uid for s in await here.open_segments(org="other")] == ["u3"]

    async def test_prune_spares_what_is_open_or_recent(self, here, there):
        for ordinal in range(1, 8):
            await self.begin(here, ordinal, ordinal=ordinal)
            await here.close_segment("u1", "awake", at(ordinal + 1))
        await self.begin(here, 0, ordinal=1, uid="u2")
        assert sum(await asyncio.gather(*(e.prune(at(5), batch=2) for e in (here, there)))) == 3
        assert [b for b, _, _ in told(await self.everything(here))] == [4, 5, 6, 7, 0]
        assert len(await here.open_segments()) == 1

    async def test_any_order_of_news_from_two_replicas_leaves_a_clean_ledger(self, here, there):
        chance = random.Random(11)
        for round_ in range(6):
            uid = f"u{round_}"
            news = []
            for ordinal in range(1, 7):
                for ledger in (here, there):
                    how = chance.choice(("open_segment", "resize"))
                    news.append(self.begin(ledger, 10 * ordinal, ordinal=ordinal, how=how, uid=uid))
                    news.append(ledger.close_segment(uid, "awake", at(10 * ordinal + 7)))
                    news.append(ledger.touch(at(10 * ordinal + 3), machine_uids=[uid]))
            chance.shuffle(news)
            await asyncio.gather(*news)
        by_machine: dict[str, list[Segment]] = {}
        for segment in await self.everything(here):
            by_machine.setdefault(segment.machine_uid, []).append(segment)
        assert len(by_machine) == 6
        for segments in by_machine.values():
            assert segments[-1].ordinal == 6
            assert all(s.began_at <= s.end for s in segments)
            assert all(s.ended_at is not None for s in segments[:-1])
            assert all(a.end <= b.began_at for a, b in pairwise(segments)), told(segments)
