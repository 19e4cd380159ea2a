"""The rate limiter that counts in its own process."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.gateway.limits import DEFAULT_RATES, Rate, RateLimiter
from machine_operator.gateway.problems import Coded, Scope


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def wait_for(limiter: RateLimiter, scope: Scope = Scope.READ, org: str = "acme") -> int:
    """Milliseconds that the limiter says to wait; 0 where it lets the request through."""
    try:
        await limiter.check(org, scope)
    except Coded as refusal:
        error = refusal
    else:
        return 0
    assert (error.status, error.error_code, error.retryable) == (429, "RATE_LIMITED", True)
    assert error.details == {"rate_limit_scope": scope.value}
    assert error.retry_after_ms is not None
    return error.retry_after_ms


@pytest.mark.parametrize(
    ("scope", "burst", "window"),
    [(Scope.READ, 200, 2000), (Scope.MUTATE, 40, 2000), (Scope.SLEEP, 4, 2000)],
)
async def test_defaults(scope: Scope, burst: int, window: int) -> None:
    limiter = RateLimiter.open(None, rates={}, clock=Hands())
    assert [await wait_for(limiter, scope) for _ in range(burst + 1)] == [0] * burst + [window + 1]


async def test_orgs_and_scopes_are_counted_apart() -> None:
    limiter = RateLimiter.open("memory", rates={scope: Rate(1, 1) for scope in Scope})
    for org in ("acme", "acme/1", "other"):
        for scope in Scope:
            assert await wait_for(limiter, scope, org) == 0
    assert await wait_for(limiter) > 0
    await limiter.close()


@settings(max_examples=300)
@given(
    rate=st.builds(Rate, st.sampled_from([0.5, 1, 2, 3, 10]), st.integers(1, 20)),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.3, 1.0, 2.5, 50.0]), max_size=60),
)
def test_like_a_bucket_but_never_more(rate: Rate, pauses: list[float]) -> None:
    """A bucket of that size would let through whatever is let through; and each wait is kept, and no shorter one."""

    async def scenario() -> None:
        clock = Hands()
        limiter = RateLimiter.open(None, rates={Scope.READ: rate}, clock=clock)
        item = rate.item(Scope.READ)
        size, speed = item.amount, item.amount / item.get_expiry()
        assert speed <= rate.per_second + 1e-9
        tokens, filled = float(size), clock.now
        for pause in pauses:
            clock.now += pause
            wait = await wait_for(limiter)
            assert wait == 0 or 1 <= wait <= item.get_expiry() * 1000 + 1
            if wait > 2:
                began = clock.now
                clock.now = began + (wait - 2) / 1000
                assert await wait_for(limiter) > 0
                clock.now = began
            if wait:
                clock.now += wait / 1000
                assert await wait_for(limiter) == 0
            tokens = min(size, tokens + (clock.now - filled) * speed) - 1
            filled = clock.now
            assert tokens >= -1e-6

    asyncio.run(scenario())


async def test_mean_rate_is_the_promised_one() -> None:
    clock = Hands()
    limiter = RateLimiter.open(None, rates={Scope.READ: Rate(100, 200)}, clock=clock)
    passed = 0
    for _ in range(20_000):
        clock.now += 0.001
        passed += await wait_for(limiter) == 0
    assert passed == pytest.approx(20 * 100 + 100, abs=110)


async def test_orgs_that_were_here_are_forgotten() -> None:
    clock = Hands()
    limiter = RateLimiter.open(None, rates={}, clock=clock)
    largest = 0
    for number in range(50_000):
        clock.now += 0.01
        await limiter.check(f"org-{number}", Scope.READ)
        largest = max(largest, len(limiter._storage._rings))  # type: ignore[union-attr]
    assert largest <= 1024


async def test_forgetting_lets_nobody_through() -> None:
    clock = Hands()
    limiter = RateLimiter.open(None, rates={Scope.READ: Rate(1, 3)}, clock=clock)
    for _ in range(3):
        assert await wait_for(limiter) == 0
    for number in range(5000):
        await limiter.check(f"org-{number}", Scope.READ)
    assert await wait_for(limiter) > 0


@pytest.mark.parametrize(
    ("rate", "amount", "window"),
    [
        (DEFAULT_RATES[Scope.READ], 200, 2),
        (Rate(2, 5), 6, 3),
        (Rate(10, 1), 10, 1),
        (Rate(0.1, 1), 1, 10),
        (Rate(0.3, 1), 1, 4),
        (Rate(0.1, 7), 7, 70),
    ],
)
def test_windows_of_whole_seconds(rate: Rate, amount: int, window: int) -> None:
    item = rate.item(Scope.READ)
    assert (item.amount, item.get_expiry()) == (amount, window)


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0)])
def test_rates_that_let_nothing_through(per_second: float, burst: int) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Rate(per_second, burst)


@pytest.mark.parametrize("url", ["", "http://user:hunter2@host", "rediss+cluster://hunter2@host"])
def test_other_places_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match="has to be") as caught:
        RateLimiter.open(url, rates={})
    assert "hunter2" not in str(caught.value)
