"""A local cluster without guests for the whole of these tests, and the published clients against its gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from machine_operator.local.logfiles import tail
from tests.cluster.conftest import fresh_cluster
from tests.cluster.support import Cluster
from tests.conformance.environments import client_python
from tests.conformance.support import GatewayProcess, make_key


@pytest.fixture(scope="session")
def rest_cluster() -> Iterator[Cluster]:
    """The cluster, its gateway included."""
    with fresh_cluster("test-rest", qemu=False) as cluster:
        cluster.up()
        yield cluster


@pytest.fixture(scope="session")
def real_cluster() -> Iterator[Cluster]:
    """A cluster with guests, as `make run` has it."""
    with fresh_cluster("test-rest-qemu", qemu=True) as cluster:
        cluster.up()
        yield cluster
        # What had to be started again has been lost for a moment, whether a test noticed or not.
        restarts = {
            name: component["restarts"] for name, component in cluster.state()["components"].items()
        }
        assert not any(restarts.values()), restarts


@pytest.fixture(scope="session")
def real_env(real_cluster: Cluster) -> dict[str, str]:
    """What its `local env` prints for DCS clients."""
    return _client_env(real_cluster)


@pytest.fixture(scope="session")
def rest_env(rest_cluster: Cluster) -> dict[str, str]:
    """What `local env` tells DCS clients: the base URL and an API key of the organisation `default`."""
    return _client_env(rest_cluster)


def _client_env(cluster: Cluster) -> dict[str, str]:
    told: dict[str, str] = json.loads(cluster.local("env", "--json").stdout)
    return {name: told[name] for name in ("DEDALUS_BASE_URL", "DEDALUS_API_KEY")}


@pytest.fixture(scope="session")
def base_url(rest_env: dict[str, str]) -> str:
    """Of the cluster's own gateway."""
    return rest_env["DEDALUS_BASE_URL"]


@pytest.fixture
def org(rest_cluster: Cluster) -> Iterator[str]:
    """An organisation that nobody has heard of. Its machines make room for those of other tests at the end."""
    name = f"org-{uuid4().hex[:8]}"
    yield name
    rest_cluster.kubectl(
        "delete", "machines", "--all", "--wait=false", "--namespace", name, check=False
    )


@pytest.fixture
def key(rest_cluster: Cluster, org: str) -> str:
    """An API key of it, which may do everything."""
    return make_key(rest_cluster, org)


@pytest.fixture(scope="session")
def sdk_010() -> Path:
    """The interpreter with dedalus-sdk 0.1.0."""
    return client_python("sdk-0.1.0")


@pytest.fixture(scope="session")
def sdk_060() -> Path:
    """The interpreter with dedalus-sdk 0.6.0."""
    return client_python("sdk-0.6.0")


@pytest.fixture
def gateways(rest_cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """`gateways(*options, database=…)` is one more gateway, which is not running yet; they end with the test."""
    made: list[GatewayProcess] = []

    def make(*options: str, database: str | None = None) -> GatewayProcess:
        name = f"gateway-{len(made)}"
        url = database or f"sqlite:///{tmp_path}/{name}.db"
        made.append(GatewayProcess(rest_cluster, tmp_path / f"{name}.log", url, options))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what the gateways said: they are gone when people read it."""
    report = yield
    if report.failed and call.when == "call":
        arguments: dict[str, Any] = getattr(item, "funcargs", {})
        cluster = arguments.get("rest_cluster") or arguments.get("real_cluster")
        logs = (
            sorted(arguments["tmp_path"].glob("gateway-*.log")) if "tmp_path" in arguments else []
        )
        if cluster is not None:
            logs.append(cluster.paths.logs / "gateway.log")
        for log in logs:
            if log.exists():
                report.sections.append((str(log.name), tail(log, lines=40)))
    return report
