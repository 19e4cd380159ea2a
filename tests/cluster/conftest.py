"""Two local clusters for the tests, one with QEMU and one without, each made when first needed.

They live beside the user's own clusters: in `$MACHINE_OPERATOR_TEST_DATA`, or in the XDG data home under names of
their own. Each run starts from nothing and leaves nothing, whatever happens; two runs at a time wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from machine_operator.local.locks import exclusive
from machine_operator.local.paths import cluster_paths
from tests.cluster.support import IMPATIENT, Cluster, Completed, Machine

_LOCK_LIMIT = 1800.0


@contextmanager
def fresh_cluster(name: str, *, qemu: bool) -> Iterator[Cluster]:
    """A cluster of the tests' own, not yet up, with no data; at the end it is down and its data gone."""
    base = os.environ.get("MACHINE_OPERATOR_TEST_DATA")
    paths = cluster_paths(name, data=Path(base) / name if base else None)
    lock = paths.data.with_name(f"{name}.lock")
    with exclusive(lock, on_wait=print, timeout=_LOCK_LIMIT):
        cluster = Cluster(paths, qemu=qemu)
        cluster.purge()
        try:
            yield cluster
        finally:
            cluster.purge()


@pytest.fixture(scope="session")
def qemu_cluster() -> Iterator[Cluster]:
    """The cluster with real guests."""
    with fresh_cluster("test", qemu=True) as cluster:
        cluster.up()
        yield cluster


@pytest.fixture(scope="session")
def hollow_cluster() -> Iterator[Cluster]:
    """The cluster whose VMIs turn Running without a guest."""
    with fresh_cluster("test-hollow", qemu=False) as cluster:
        cluster.up()
        yield cluster


@pytest.fixture(scope="module")
def spare_cluster() -> Iterator[Cluster]:
    """A cluster without guests that tests may break; the test brings it up."""
    with fresh_cluster("test-spare", qemu=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def impatient_cluster() -> Iterator[Cluster]:
    """A cluster without guests whose operator does not wait long, for tests that put things in its way."""
    with fresh_cluster("test-impatient", qemu=False) as cluster:
        # Only while it starts: the variables would reach every other cluster and test of the session.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in IMPATIENT.items():
                patch.setenv(name, value)
            cluster.up()
        yield cluster


@pytest.fixture
def cluster(qemu_cluster: Cluster) -> Cluster:
    """The cluster that the other fixtures are about; a module that needs no guests overrides this one."""
    return qemu_cluster


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., Completed]:
    """`kubectl(*args, input=None, check=True)` as the cluster's administrator."""
    return cluster.kubectl


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace."""
    with cluster.namespace(f"test-{uuid4().hex[:8]}") as name:
        yield name


@pytest.fixture
def machine(cluster: Cluster, namespace: str) -> Machine:
    """A machine `hello` of the smallest sizes, not yet applied."""
    return Machine(cluster, namespace)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows the clusters that it was about: they are gone when people read it."""
    report = yield
    if report.failed and call.when == "call":
        arguments: dict[str, Any] = getattr(item, "funcargs", {})
        clusters = {v.paths.name: v for v in arguments.values() if isinstance(v, Cluster)}
        for name, cluster in clusters.items():
            report.sections.append((f"cluster {name}", cluster.describe()))
    return report
