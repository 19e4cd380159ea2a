"""The probes as kubelet and people see them, and the metrics page as Prometheus does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from machine_operator.telemetry.health import HealthServer


class Site:
    """A server whose checks say what a test has put there."""

    def __init__(self) -> None:
        self.why: dict[str, str | None] = {"loop": None, "watches": None, "cache": None}
        self.registry = CollectorRegistry()
        Counter("seen", "What was seen.", registry=self.registry).inc()
        self.server = HealthServer(
            "127.0.0.1:0",
            live={"loop": self.check("loop"), "watches": self.check("watches")},
            ready={"cache": self.check("cache")},
            registry=self.registry,
        )

    def check(self, name: str) -> Callable[[], str | None]:
        return lambda: self.why[name]

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{self.server.port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers) as response,
        ):
            return response.status, await response.text(), response.headers["Content-Type"]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with site.server:
        yield site


async def test_ok_is_all_it_says_where_all_is_well(site: Site) -> None:
    for path in ("/livez", "/readyz"):
        assert (await site.get(path))[:2] == (200, "ok")


async def test_verbose_prints_each_check(site: Site) -> None:
    status, text, _ = await site.get("/livez?verbose")
    assert (status, text) == (200, "[+]loop ok\n[+]watches ok\nlivez check passed\n")


async def test_a_failing_check_says_why(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "machine_operator")
    site.why["watches"] = "machines: nothing was heard for 200 s"
    expected = "[+]loop ok\n[-]watches failed: machines: nothing was heard for 200 s\n"
    for _ in range(2):
        status, text, _ = await site.get("/livez")
        assert (status, text) == (500, f"{expected}livez check failed\n")
    assert (await site.get("/readyz"))[0] == 200, "one probe's checks are the other's"
    site.why["watches"] = None
    assert (await site.get("/livez"))[0] == 200
    assert [record.getMessage() for record in caplog.records] == [
        "livez fails: watches: machines: nothing was heard for 200 s",
        "livez passes again",
    ]


async def test_a_check_can_be_excluded(site: Site) -> None:
    site.why["watches"] = "no"
    assert (await site.get("/livez?exclude=watches"))[:2] == (200, "ok")
    status, text, _ = await site.get("/livez?verbose&exclude=watches&exclude=nosuch")
    assert status == 200
    assert text == (
        "[+]loop ok\n[+]watches excluded: ok\n"
        "warn: no check to exclude is called nosuch\nlivez check passed\n"
    )


async def test_a_broken_check_is_a_failed_one(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    del site.why["cache"]
    status, text, _ = await site.get("/readyz")
    assert status == 500
    assert (
        text == "[-]cache failed: the check itself failed: KeyError('cache')\nreadyz check failed\n"
    )
    assert "the health check cache is broken" in caplog.text


@pytest.mark.parametrize(
    ("accept", "kind", "end"),
    [
        ("", "text/plain; version=0.0.4", "seen_total 1.0\n"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text", "# EOF\n"),
    ],
)
async def test_metrics_come_in_the_wanted_format(
    site: Site, accept: str, kind: str, end: str
) -> None:
    status, text, content_type = await site.get("/metrics", Accept=accept)
    assert status == 200
    assert content_type.startswith(kind)
    assert "seen_total 1.0" in text
    assert end in text


async def test_there_is_nothing_else(site: Site) -> None:
    for path in ("/", "/livez/loop", "/debug"):
        assert (await site.get(path))[0] == 404


@pytest.mark.parametrize("address", ["localhost", "1.2.3.4:", "x:http", ":70000"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address to listen on: write HOST:PORT"):
        HealthServer(address, live={}, ready={}, registry=CollectorRegistry())


async def test_a_port_that_is_taken_is_an_error(site: Site) -> None:
    taken = f"127.0.0.1:{site.server.port}"
    with pytest.raises(OSError, match="in use"):
        async with HealthServer(taken, live={}, ready={}, registry=site.registry):
            pass
