"""kill -9 of the gateway at random moments, while clients create machines and do not give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.cluster.support import Cluster, until
from tests.conformance.support import Answer, GatewayProcess, Rest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CREATES = 500
CLIENTS = 12
GIVE_UP = 150.0
"""Seconds in which all creates have to be done."""


async def test_killed_at_random_while_500_machines_are_made(
    rest_cluster: Cluster,
    org: str,
    key: str,
    gateways: Callable[..., GatewayProcess],
    record_property: Callable[[str, object], None],
):
    gateway = gateways(
        "--change-rate=100000", "--change-burst=100000", "--read-rate=100000", "--read-burst=100000"
    ).up()
    story = Story(gateway, key)
    # What becomes of machines is not the matter here: it would only take the processors from the gateway.
    with rest_cluster.frozen("controller"):
        await story.run()
        print(story)
        for name, number in story.figures().items():
            record_property(name, number)
        assert len(story.answers) == CREATES
        assert story.kills >= 6, f"too few to say anything: {story}"

        # After one more death, from what the store kept; whatever has become of the machines since.
        change = ("--type=merge", '--patch={"spec":{"autosleep":"1h"}}')
        changed = [story.answers[name].body["machine_id"] for name in sorted(story.answers)[:20]]
        rest_cluster.kubectl("patch", "--namespace", org, "machines", *changed, *change)
        gateway.kill()
        gateway.up()
        ids = {answer.body["machine_id"] for answer in story.answers.values()}
        assert len(ids) == CREATES, "no two keys share a machine"
        async with Rest.open(gateway.base, key) as rest:
            assert sorted(await rest.ids()) == sorted(ids), "what there is, is what was answered"
            await asyncio.gather(*(story.replay(rest, name) for name in story.answers))
        objects = rest_cluster.items("machines", namespace=org)
        names = sorted(item["metadata"]["name"] for item in objects)
        assert names == sorted(ids), "replays make nothing"
        assert gateway.complaints() == []
        rest_cluster.kubectl("delete", "machines", "--all", "--wait=false", "--namespace", org)
    until(lambda: not rest_cluster.items("machines", namespace=org), "the machines to be gone")


class Story:
    """Clients, 12 at a time, that repeat each create until it succeeds, and somebody who kills what answers them."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self.answers: dict[str, Answer] = {}
        self.kills = self.lost = 0
        self.refused: dict[int, int] = {}
        self.seconds = 0.0
        self._gateway = gateway
        self._key = key
        self._names = [f"create-{number:03}" for number in range(CREATES)]
        self._over, self._due, self._death_at = False, asyncio.Event(), 0
        self._turn = asyncio.Semaphore(CLIENTS)
        self._seed = random.randrange(2**32)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {number}" for name, number in self.figures().items())

    def figures(self) -> dict[str, object]:
        """What happened, for whoever reads the report."""
        return {
            "creates": len(self.answers),
            "kills": self.kills,
            "answers lost": self.lost,
            "refused": self.refused,
            "seconds": round(self.seconds, 1),
            "seed": self._seed,
        }

    async def replay(self, rest: Rest, name: str) -> None:
        """What was answered once is answered again."""
        async with self._turn:
            again = await rest.create(name)
        assert again.identity == self.answers[name].identity, name
        assert again.headers["Idempotency-Replayed"] == "true"

    async def run(self) -> None:
        """Until every create has succeeded; the gateway runs afterwards."""
        started = time.monotonic()
        killer = asyncio.create_task(self._kill_again_and_again())
        try:
            async with asyncio.timeout(GIVE_UP), Rest.open(self._gateway.base, self._key) as rest:
                await asyncio.gather(*(self._client(rest, name) for name in self._names))
        except TimeoutError as error:
            raise AssertionError(f"after {GIVE_UP:.0f} s: {self}") from error
        finally:
            self.seconds = time.monotonic() - started
            self._over = True
            self._due.set()
            await killer

    async def _client(self, rest: Rest, name: str) -> None:
        while name not in self.answers:
            try:
                async with self._turn:
                    answer = await rest.create(name)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.1)
                continue
            except aiohttp.ClientError:
                self.lost += 1
                continue
            if answer.status == 202:
                self.answers[name] = answer
                if len(self.answers) >= self._death_at:
                    self._due.set()
                continue
            # 429: a gateway that is dead by now had begun; 503: this one does not know everything yet.
            assert answer.status in (429, 503), f"{name}: {answer}"
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            await asyncio.sleep(answer.body["retry_after_ms"] / 1000)

    async def _kill_again_and_again(self) -> None:
        chance = random.Random(self._seed)
        # Asked again after each kill: while one went on, all may have been done.
        while not self._over:
            self._due.clear()
            self._death_at = len(self.answers) + chance.randrange(20, 60)
            await self._due.wait()
            if self._over:
                return
            await asyncio.sleep(chance.uniform(0.0, 0.03))
            await asyncio.to_thread(self._gateway.kill)
            self.kills += 1
            await asyncio.to_thread(self._gateway.up)
