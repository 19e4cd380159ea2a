"""How often an org may ask: one budget for each org and scope, counted by the library `limits`.

Of that library's strategies the moving window comes nearest to a token bucket of `burst` tokens that fills at
`per_second`: with `burst` requests in a window of `burst / per_second` seconds it lets the same burst through, the same
mean rate for ever, and nothing that the bucket would refuse. It knows the moment at which the next request fits, which
is what clients are told. (A fixed window lets two bursts through around its edge; the sliding counter only estimates.)
The price: after a whole burst at once there is room again when that burst is a window old, not little by little.

Counted in this process, a budget is a ring of the latest moments: a storage of our own for `limits`, since the one that
comes with it starts a thread or a task again and again to look through all keys, and keeps some of them for ever. For
more than one replica the moments are in Redis, as `limits` puts them there: one script call for each check, with the
clock of the replica that asks.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from typing_extensions import override

from machine_operator.gateway import failures
from machine_operator.gateway.problems import Scope

__all__ = ["DEFAULT_RATES", "Rate", "RateLimiter"]

log = logging.getLogger(__name__)

_PATIENCE: Final = 0.5
"""Seconds in which Redis has to answer."""
_CONNECTIONS: Final = 32
"""To Redis, from one process. A check takes a fraction of a millisecond: more would only wait in Redis."""
_FEW: Final = 1024
"""Budgets that are not worth looking through."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one org may do in one scope.

    `limits` has windows of whole seconds, so both are met exactly where `burst / per_second` is a whole number. Else
    the window is the next longer one, and the burst what `per_second` gives in it: never a higher mean rate, but a
    burst of at least one second's worth.

    Attributes:
        per_second: requests a second in the long run, above 0.
        burst: requests at once, at least 1.

    Raises:
        ValueError: one of them is out of bounds.
    """

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_second) and self.per_second > 0 and self.burst >= 1):
            raise ValueError(
                f"a rate of {self.per_second} a second with a burst of {self.burst} lets nothing through: "
                "both have to be positive"
            )

    def item(self, scope: Scope) -> RateLimitItem:
        """The same for `limits`."""
        window = max(1, math.ceil(self.burst / self.per_second - 1e-9))
        amount = max(1, math.floor(self.per_second * window + 1e-9))
        return RateLimitItemPerSecond(amount, window, namespace=scope.value)


DEFAULT_RATES: Final[Mapping[Scope, Rate]] = {
    Scope.READ: Rate(100, 200),
    Scope.MUTATE: Rate(20, 40),
    Scope.SLEEP: Rate(2, 4),
}


class RateLimiter:
    """Says no to an org that asks too often.

    Args:
        storage: where `limits` counts.
        rates: of each scope; one that is missing has its default.
        backend: what the answers call the place where it counts.
        clock: the one that `storage` goes by, in seconds.
    """

    def __init__(
        self,
        storage: MemoryStorage | RedisStorage,
        *,
        rates: Mapping[Scope, Rate],
        backend: str,
        clock: Callable[[], float],
    ) -> None:
        rates = {**DEFAULT_RATES, **rates}
        self._items = {scope: rate.item(scope) for scope, rate in rates.items()}
        self._strategy = MovingWindowRateLimiter(storage)
        self._storage = storage
        self._backend = backend
        self._clock = clock
        self._pool: BlockingConnectionPool | None = None
        self._away = False

    @classmethod
    def open(
        cls,
        url: str | None,
        *,
        rates: Mapping[Scope, Rate],
        clock: Callable[[], float] = time.monotonic,
    ) -> RateLimiter:
        """A limiter that counts in this process, or for all replicas together.

        Nothing is connected yet, and a Redis that is away is no reason not to start.

        Args:
            url: None or `memory` for this process; `redis://…` or `rediss://…`.
            rates: what is not the default.
            clock: for counting in this process.

        Raises:
            ValueError: `url` is none of these. It is not repeated in the message: it may have a password in it.
        """
        if url is None or url == "memory":
            return cls(_Rings(clock), rates=rates, backend="memory", clock=clock)
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError(
                "the place where rates are counted has to be `memory`, redis://… or rediss://…"
            )
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            # A second try at once: the connection may be one from before a restart of Redis.
            retry=Retry(NoBackoff(), 1),
        )
        storage = RedisStorage(
            "async+redis://",  # where to is what the pool knows
            implementation="redispy",
            key_prefix="machine-operator",
            connection_pool=pool,  # type: ignore[arg-type]
        )
        limiter = cls(storage, rates=rates, backend="redis", clock=time.time)
        limiter._pool = pool
        return limiter

    async def check(self, org: str, scope: Scope) -> None:
        """Count one request of `org`.

        Raises:
            Coded: 429, and then it was not counted: after `retry_after_ms` it fits, unless others were faster; or 503,
                since the counters cannot be reached.
        """
        item = self._items[scope]
        if self._pool is not None:
            await self._check_remotely(org, item, scope)
        elif not await self._strategy.hit(item, org):
            raise await self._refusal(org, item, scope)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _check_remotely(self, org: str, item: RateLimitItem, scope: Scope) -> None:
        refusal: Exception | None = None
        try:
            async with asyncio.timeout(_PATIENCE):
                if not await self._strategy.hit(item, org):
                    refusal = await self._refusal(org, item, scope)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away:
                self._away = True
                log.warning(
                    "rates cannot be counted in Redis (%s): requests are answered with 503 until it is back",
                    type(error).__name__,  # the message may name host and user
                )
            raise failures.limiter_unavailable(scope, backend=self._backend) from error
        if self._away:
            self._away = False
            log.info("rates are counted in Redis again")
        if refusal is not None:
            raise refusal

    async def _refusal(self, org: str, item: RateLimitItem, scope: Scope) -> Exception:
        stats = await self._strategy.get_window_stats(item, org)
        # At the very moment that the window ends, the request does not fit yet; and moments are rounded, in Redis to a
        # tenth of a millisecond. So at least half a millisecond more.
        wait = math.floor((stats.reset_time - self._clock()) * 1000 + 0.5) + 1
        return failures.rate_limited(scope, retry_after_ms=max(1, wait))


class _Rings(MemoryStorage):
    """The moments of the latest requests in memory, at most as many for each key as its limit."""

    STORAGE_SCHEME = ["async+machine-operator"]  # noqa: RUF012 - the parent's stays the parent's

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._rings: dict[str, deque[float]] = {}
        self._expiries: dict[str, float] = {}
        self._enough = _FEW

    @override
    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if amount > limit:
            return False
        now = self._clock()
        ring = self._rings.get(key)
        if ring is None:
            if len(self._rings) >= self._enough:
                self._forget(now)
            ring = self._rings[key] = deque(maxlen=limit)
            self._expiries[key] = expiry
        displaced = len(ring) + amount - limit
        if displaced > 0 and ring[displaced - 1] >= now - expiry:
            return False
        for _ in range(amount):
            ring.append(now)
        return True

    @override
    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = self._clock()
        ring = self._rings.get(key, ())
        for past, moment in enumerate(ring):
            if moment >= now - expiry:
                return moment, len(ring) - past
        return now, 0

    @override
    async def clear(self, key: str) -> None:
        self._rings.pop(key, None)
        self._expiries.pop(key, None)

    @override
    async def reset(self) -> int:
        number = len(self._rings)
        self._rings.clear()
        self._expiries.clear()
        return number

    def _forget(self, now: float) -> None:
        """Drop budgets that are whole again. Each time the number has doubled: so it costs nothing to speak of."""
        expiries = self._expiries
        for key in [key for key, ring in self._rings.items() if ring[-1] < now - expiries[key]]:
            del self._rings[key], expiries[key]
        self._enough = max(_FEW, 2 * len(self._rings))
