"""Two gateways on one cluster, with one database and one place to count: whichever is asked says the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.cluster.support import Cluster
from tests.conformance.support import Answer, GatewayProcess, Rest, make_key, revoke_key
from tests.support.postgresql import postgresql_server, postgresql_url
from tests.support.redis_server import redis_server

__all__ = ["postgresql_server", "postgresql_url"]

pytestmark = pytest.mark.cluster

ROUNDS = 200
RATES = tuple(
    f"--{scope}-{how}=10000" for scope in ("change", "read", "sleep") for how in ("rate", "burst")
)
LIMIT = 2.0
"""Seconds for which a revoked key may still be accepted."""

Pairs = Callable[..., tuple[GatewayProcess, GatewayProcess]]
Connect = Callable[[GatewayProcess, str], Awaitable[Rest]]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of the module's own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def pair(gateways: Callable[..., GatewayProcess], postgresql_url: str, redis_url: str) -> Pairs:
    """`pair(*options)` is two gateways that run."""

    def make(*options: str) -> tuple[GatewayProcess, GatewayProcess]:
        both = [gateways(f"--redis={redis_url}", *options, database=postgresql_url) for _ in "ab"]
        for gateway in both:
            gateway.start()
        for gateway in both:
            gateway.wait_ready()
        return both[0], both[1]

    return make


@pytest.fixture
async def clients() -> AsyncIterator[Connect]:
    """`await clients(gateway, key)` asks that gateway."""
    async with AsyncExitStack() as stack:

        async def connect(gateway: GatewayProcess, key: str) -> Rest:
            return await stack.enter_async_context(Rest.open(gateway.base, key))

        yield connect


async def test_what_one_writes_the_other_reads_at_once(pair: Pairs, clients: Connect, key: str):
    first, second = pair(*RATES)
    a, b = await clients(first, key), await clients(second, key)
    made = await a.create("read-back")
    machine_id = made.body["machine_id"]
    behind = 0
    for number in range(ROUNDS):
        writer, reader = (a, b) if number % 2 == 0 else (b, a)
        path, seconds = f"/v1/machines/{machine_id}", 60 + number
        wrote = await writer.call(
            "PATCH", path, {"autosleep": str(seconds)}, Idempotency_Key=f"round-{number}"
        )
        assert wrote.status in (200, 202), (number, wrote)
        read = await reader.call("GET", path)
        assert read.status == 200, (number, read)
        assert read.body["autosleep_seconds"] == seconds, number
        listed = await reader.call("GET", "/v1/machines")
        assert listed.body["items"][0]["autosleep_seconds"] == seconds, number
        seen, written = int(read.body["status"]["revision"]), int(wrote.body["status"]["revision"])
        behind += seen < written
    assert behind == 0
    gone = await a.call("DELETE", f"/v1/machines/{machine_id}")
    assert gone.status in (200, 202)
    after = await b.call("GET", f"/v1/machines/{machine_id}")
    assert after.body["desired_state"] == "destroyed"


async def test_a_create_that_went_to_both_is_one_machine(pair: Pairs, clients: Connect, key: str):
    first, second = pair(*RATES)
    a, b = await clients(first, key), await clients(second, key)
    made = await a.create("once")
    replay = await b.create("once")
    assert replay.identity == made.identity
    assert replay.headers["Idempotency-Replayed"] == "true"
    reused = await b.create("once", vcpu=2)
    assert (reused.status, reused.body["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")

    # At the same moment: one works, the other is told to wait, and then gets the same.
    for number in range(20):
        name = f"race-{number}"
        answers = await asyncio.gather(*(rest.create(name) for rest in (a, b, a, b)))
        settled = [await _settled(rest, name) for rest in (a, b)]
        done = {x.identity for x in [*answers, *settled] if x.status != 429}
        assert len(done) == 1, (name, answers)
        assert {x.status for x in answers} <= {202, 429}
    assert len(await b.ids()) == 21
    assert sorted(await a.ids()) == sorted(await b.ids())


async def _settled(rest: Rest, name: str) -> Answer:
    while True:
        answer = await rest.create(name)
        if answer.status != 429:
            return answer
        await asyncio.sleep(answer.body["retry_after_ms"] / 1000)


async def test_one_budget_for_both(pair: Pairs, clients: Connect, key: str):
    first, second = pair("--read-rate=1", "--read-burst=60")
    a, b = await clients(first, key), await clients(second, key)
    path = "/v1/machines"
    answers = [await rest.call("GET", path) for _ in range(40) for rest in (a, b)]
    allowed = sum(answer.status == 200 for answer in answers)
    # The window is a minute long: nothing comes back within this test.
    assert allowed == 60, [answer.status for answer in answers]
    for refused in (answers[-1], answers[-2]):
        assert (refused.status, refused.body["error_code"]) == (429, "RATE_LIMITED")
        assert refused.body["details"] == {"rate_limit_scope": "read_lifecycle_routes"}
        assert int(refused.headers["Retry-After-Ms"]) == refused.body["retry_after_ms"] > 0


async def test_a_revoked_key_is_refused_by_both(
    pair: Pairs, clients: Connect, rest_cluster: Cluster, org: str, key: str
):
    doomed = make_key(rest_cluster, org)
    first, second = pair(*RATES)
    asked = [await clients(gateway, doomed) for gateway in (first, second)]
    accepted = [await rest.call("GET", "/v1/machines") for rest in asked]
    assert [answer.status for answer in accepted] == [200, 200]

    revoking = asyncio.create_task(asyncio.to_thread(revoke_key, rest_cluster, doomed))
    revoked_at: float | None = None
    refused_at: list[float | None] = [None, None]
    while None in refused_at:
        for number, rest in enumerate(asked):
            answer = await rest.call("GET", "/v1/machines")
            if answer.status == 200:
                assert refused_at[number] is None, "refused once, a key stays refused"
                continue
            assert answer.body["error_code"] == "AUTH_INVALID"
            refused_at[number] = refused_at[number] or time.monotonic()
        if revoked_at is None and revoking.done():
            revoked_at = time.monotonic()
        late = time.monotonic() - revoked_at if revoked_at is not None else 0.0
        assert late < LIMIT, f"{late:.1f} s after it was revoked: {refused_at}"
    await revoking
    other = await clients(first, key)
    assert (await other.call("GET", "/v1/machines")).status == 200, "only that key"


async def test_one_dies_and_the_other_goes_on(pair: Pairs, clients: Connect, key: str):
    first, second = pair(*RATES)
    a, b = await clients(first, key), await clients(second, key)
    names = [f"handed-over-{number}" for number in range(60)]
    answers: dict[str, Answer] = {}
    enough = asyncio.Event()

    async def client(name: str) -> None:
        """As behind a load balancer: the first one until it fails, and then the other."""
        rest = a
        while name not in answers:
            try:
                answer = await rest.create(name)
            except aiohttp.ClientError:
                rest = b
                continue
            if answer.status in (200, 202):
                answers[name] = answer
                if len(answers) == 15:
                    enough.set()
            else:
                assert answer.status in (429, 503), answer
                await asyncio.sleep(answer.body["retry_after_ms"] / 1000)

    async def death() -> None:
        await enough.wait()
        await asyncio.to_thread(first.kill)

    await asyncio.gather(death(), *map(client, names))
    # 200: the other one took over what the dead one had made, and which ran by then.
    assert len({answer.body["machine_id"] for answer in answers.values()}) == len(names)
    assert len(await b.ids()) == len(names)
    for name in names:
        assert (await b.create(name)).identity == answers[name].identity

    # The dead one comes back, and knows all of it.
    await asyncio.to_thread(first.up)
    back = await clients(first, key)
    assert sorted(await back.ids()) == sorted(await b.ids())
    assert (await back.create(names[0])).identity == answers[names[0]].identity
