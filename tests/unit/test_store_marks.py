"""Write marks never fall. The class is collected a second time in tests/engine, on PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine_operator.store.database import Database
from machine_operator.store.marks import WriteMarks
from tests.support.store import sqlite_replicas


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path) as databases:
        yield databases


class TestMarks:
    async def test_each_org_has_its_own(self, replicas):
        marks = WriteMarks(replicas[0])
        assert await marks.of("acme") == 0
        await marks.raise_to("acme", 2**62)
        assert (await marks.of("acme"), await marks.of("other")) == (2**62, 0)

    async def test_the_highest_wins_in_whatever_order(self, replicas):
        here, there = map(WriteMarks, replicas)
        versions = list(range(1, 61))
        random.Random(5).shuffle(versions)
        await asyncio.gather(*((here, there)[v % 2].raise_to("acme", v) for v in versions))
        await here.raise_to("acme", 3)
        assert (await here.of("acme"), await there.of("acme")) == (60, 60)
