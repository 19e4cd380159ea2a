"""kill -9 of the gateway at random moments, while clients create machines and do not give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.cluster.support import Cluster
from tests.conformance.support import Answer, GatewayProcess, Rest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CREATES = 500
CLIENTS = 12
GIVE_UP = 120.0
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
    # What a machine becomes is not the matter here: it would only take the processors from the gateway.
    with rest_cluster.frozen("virt-controller"):
        await story.run()
        print(story)
        for name, number in story.figures().items():
            record_property(name, number)
        assert len(story.answers) == CREATES
        assert story.kills >= 8, f"too few to say anything: {story}"

        async with Rest.open(gateway.base, key) as rest:
            ids = {answer.body["machine_id"] for answer in story.answers.values()}
            assert len(ids) == CREATES, "no two keys share a machine"
            assert sorted(await rest.ids()) == sorted(ids), "what there is, is what was answered"
        objects = rest_cluster.items("machines", namespace=org)
        assert sorted(item["metadata"]["name"] for item in objects) == sorted(ids)

        # And after one more death, from what the store kept.
        gateway.kill()
        gateway.up()
        async with Rest.open(gateway.base, key) as rest:
            for name, first in story.answers.items():
                replay = await rest.create(name)
                assert replay.identity == first.identity, name
                assert replay.headers["Idempotency-Replayed"] == "true"
            assert len(await rest.ids()) == CREATES, "replays make nothing"
        assert gateway.complaints() == []
        rest_cluster.kubectl("delete", "machines", "--all", "--wait=false", "--namespace", org)


class Story:
    """Clients that repeat each create until it succeeds, and somebody who kills what answers them."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self.answers: dict[str, Answer] = {}
        self.kills = self.lost = 0
        self.refused: dict[int, int] = {}
        self.seconds = 0.0
        self._gateway = gateway
        self._key = key
        self._names = [f"create-{number:03}" for number in range(CREATES)]
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

    async def run(self) -> None:
        """Until every create has succeeded; the gateway runs afterwards."""
        started = time.monotonic()
        killer = asyncio.create_task(self._kill_again_and_again())
        try:
            async with asyncio.timeout(GIVE_UP), Rest.open(self._gateway.base, self._key) as rest:
                await asyncio.gather(*(self._client(rest) for _ in range(CLIENTS)))
        except TimeoutError as error:
            raise AssertionError(f"after {GIVE_UP:.0f} s: {self}") from error
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
            self.seconds = time.monotonic() - started
        await asyncio.to_thread(self._gateway.stop)
        await asyncio.to_thread(self._gateway.up)

    async def _client(self, rest: Rest) -> None:
        while self._names:
            name = self._names.pop()
            while name not in self.answers:
                try:
                    answer = await rest.create(name)
                except aiohttp.ClientError:
                    self.lost += 1
                    await asyncio.sleep(0.05)
                    continue
                if answer.status == 202:
                    self.answers[name] = answer
                    continue
                assert answer.status in (401, 429, 503), f"{name}: {answer}"
                assert answer.status != 401 or answer.body["retryable"], f"{name}: {answer}"
                self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
                await asyncio.sleep(answer.body.get("retry_after_ms", 50) / 1000)

    async def _kill_again_and_again(self) -> None:
        chance = random.Random(self._seed)
        while True:
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            await asyncio.to_thread(self._gateway.kill)
            self.kills += 1
            # Up to its first answer, so that the next death meets it at work.
            await asyncio.to_thread(self._gateway.up)
