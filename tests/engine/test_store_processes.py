"""One SQLite file, several processes: they migrate it once, and each key has one winner among them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from machine_operator.store.database import Database
from machine_operator.store.marks import WriteMarks

PROCESSES, KEYS = 3, 60

WORKER = """
import asyncio, json, sys
from machine_operator.store.database import Database
from machine_operator.store.idempotency import IdempotencyRecords, Started

async def main(url, keys):
    database = await Database.open(url)
    records = IdempotencyRecords(database)

    async def use(n):
        found = await records.begin(
            org="acme", method="POST", path="/v1/machines", key=f"k-{n}", request_hash="h",
            lease_seconds=600,
        )
        if isinstance(found, Started):
            await records.finish(found, status=200, body=b"done", mark=("acme", n))
            return n

    won = await asyncio.gather(*map(use, range(1, keys + 1)))
    await database.close()
    print(json.dumps([n for n in won if n is not None]))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_processes_share_a_file(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/store.db"
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, url, str(KEYS)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    try:
        ends = await asyncio.wait_for(asyncio.gather(*(w.communicate() for w in workers)), 60)
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
    assert [w.returncode for w in workers] == [0] * PROCESSES, [err.decode() for _, err in ends]
    won = [n for out, _ in ends for n in json.loads(out)]
    assert sorted(won) == list(range(1, KEYS + 1))
    database = await Database.open(url)
    assert await WriteMarks(database).of("acme") == KEYS
    await database.close()
