"""The rate limiter on a real Redis: one budget for all replicas, and what happens while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from machine_operator.gateway.limits import Rate, RateLimiter
from machine_operator.gateway.problems import Coded, Scope
from tests.support.redis_server import RedisServer, redis_server

RATES = {Scope.READ: Rate(10, 10), Scope.MUTATE: Rate(1, 2)}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def limiter(redis: RedisServer) -> AsyncIterator[RateLimiter]:
    opened = RateLimiter.open(redis.url, rates=RATES)
    try:
        yield opened
    finally:
        await opened.close()


async def refusal(limiter: RateLimiter, scope: Scope = Scope.READ, org: str = "acme") -> Coded:
    with pytest.raises(Coded) as caught:
        await limiter.check(org, scope)
    return caught.value


async def test_two_replicas_share_one_budget(redis: RedisServer) -> None:
    async with limiter(redis) as one, limiter(redis) as other:
        for replica in [one, other] * 5:
            await replica.check("acme", Scope.READ)
        for replica in (one, other):
            error = await refusal(replica)
            assert (error.status, error.error_code) == (429, "RATE_LIMITED")
            assert error.details == {"rate_limit_scope": "read_lifecycle_routes"}
        await one.check("other-org", Scope.READ)
        await other.check("acme", Scope.MUTATE)


async def test_after_the_wait_that_it_tells_the_request_fits(redis: RedisServer) -> None:
    async with limiter(redis) as one:
        for _ in range(10):
            await one.check("acme", Scope.READ)
        error = await refusal(one)
        assert error.retry_after_ms is not None
        assert 1 <= error.retry_after_ms <= 1001
        await asyncio.sleep(error.retry_after_ms / 1000)
        await one.check("acme", Scope.READ)


async def test_many_at_once_get_exactly_the_burst(redis: RedisServer) -> None:
    rates = {Scope.READ: Rate(10, 200)}
    one, other = (RateLimiter.open(redis.url, rates=rates) for _ in range(2))
    # Not all 500 at the same moment: on a busy computer those that come last would have waited for half a second.
    turns = asyncio.Semaphore(20)

    async def ask(limiter: RateLimiter) -> None:
        async with turns:
            await limiter.check("acme", Scope.READ)

    answers = await asyncio.gather(
        *(ask((one, other)[turn % 2]) for turn in range(500)), return_exceptions=True
    )
    await one.close()
    await other.close()
    assert sum(answer is None for answer in answers) == 200
    assert {answer.status for answer in answers if isinstance(answer, Coded)} == {429}


async def test_a_dead_redis_is_an_answer_at_once_and_a_new_one_is_used(redis: RedisServer) -> None:
    async with limiter(redis) as one:
        await one.check("acme", Scope.READ)
        redis.kill()
        began = time.monotonic()
        error = await refusal(one)
        assert time.monotonic() - began < 0.7
        assert (error.status, error.error_code) == (503, "DEPENDENCY_UNAVAILABLE")
        assert error.details["rate_limit_backend"] == "redis"
        redis.start()
        await one.check("acme", Scope.READ)


async def test_restart_between_two_requests_is_not_noticed(redis: RedisServer) -> None:
    async with limiter(redis) as one:
        await one.check("acme", Scope.READ)
        redis.kill()
        redis.start()
        await one.check("acme", Scope.READ)


async def test_a_silent_redis_is_an_answer_soon_and_no_later_answer_is_mistaken(
    redis: RedisServer,
) -> None:
    async with limiter(redis) as one:
        for _ in range(2):
            await one.check("acme", Scope.MUTATE)
        redis.freeze()
        began = time.monotonic()
        errors = await asyncio.gather(*(refusal(one, org=f"org-{n}") for n in range(100)))
        assert time.monotonic() - began < 2
        assert {error.status for error in errors} == {503}
        redis.thaw()
        # A late answer to one of the others would be taken for the answer to this one.
        await one.check("new-org", Scope.MUTATE)
        assert (await refusal(one, Scope.MUTATE)).status == 429


async def test_nobody_is_told_the_password(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = redis.url.replace("redis://", "redis://somebody:hunter2@")
    one = RateLimiter.open(url, rates={})
    error = await refusal(one)
    await one.close()
    assert error.status == 503
    assert "hunter2" not in caplog.text + str(error.body())
    assert "rates cannot be counted in Redis" in caplog.text
