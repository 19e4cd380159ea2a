"""One round: a fresh plane, the stub, one arm, a warm-up that is not counted, and a load of Machines at one rate."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arms import Arm, load, machines, start_arm, start_stub
from audit import AuditLog, by_kind
from clusters import BenchError
from figures import percentile
from plane import Plane

from machine_operator.api.names import UID_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import (
    MACHINES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINES,
)

__all__ = ["WARM_UP", "Planes", "Round", "run_round", "warm_up"]

WARM_UP = 30
"""Machines that a warm-up makes, and leaves there."""

_WARM_RATE = 10.0
_AFTERWARDS = 2.0
"""Seconds after the last one is ready in which late work is still counted."""

_LOSS_LIMIT = 300.0
"""Seconds after the last create until what is missing is lost; at 150/s most of the work is done after it."""


@dataclass(frozen=True, slots=True)
class Planes:
    """How to get planes."""

    directory: Path
    binaries: Path
    template: Path

    def new(self, name: str) -> Plane:
        """A fresh one."""
        return Plane(self.directory / name, binaries=self.binaries, template=self.template)


@dataclass(frozen=True, slots=True)
class Round:
    """What came out. Times are in seconds, sizes in MiB.

    Attributes:
        p50, p99, longest: from create to Ready.
        per_second: ready ones, from the first create to the last Ready.
        wrong_children: how many children of any kind were missing or too many.
        writes: by the measured process, per machine.
        written: all of them by verb and resource.
        cpu: processor milliseconds per machine: of the measured process under "arm", and of the others.
        rss: the most that the measured process has had.
        late: the longest that the load itself was late with a create.
        others: how many processors were used by processes that do not belong to the round. A figure from a machine
            with something else to do proves little.
    """

    arm: str
    rate: float
    machines: int
    p50: float
    p99: float
    longest: float
    per_second: float
    lost: int
    wrong_children: int
    writes: float
    written: dict[str, int]
    cpu: dict[str, float]
    rss: float
    late: float
    others: float
    failures: list[str]

    def to_json(self) -> dict[str, Any]:
        """For the raw data."""
        return asdict(self)


def run_round(planes: Planes, arm: Arm, *, rate: float, seconds: float) -> Round:
    """Offer `rate` machines per second for so many seconds to one arm."""
    with planes.new("round") as plane:
        stub, measured = start_stub(plane), start_arm(plane, arm)
        processes = {"arm": measured, "stub": stub}
        processes |= {name: plane.process(name) for name in ("kube-apiserver", "etcd")}
        warm_up(plane, end=arm.end)
        log = AuditLog(plane.audit)
        before = {name: p.processor_seconds for name, p in processes.items()}
        begun, busy = time.monotonic(), _busy_seconds()
        count = round(rate * seconds)
        taken = load(
            plane.kubeconfig("admin"),
            machines(count),
            scratch=plane.paths.data,
            namespace="load",
            rate=rate,
            end=arm.end,
            limit=_LOSS_LIMIT,
        )
        if not taken.latencies:
            why = taken.failures[0] if taken.failures else f"see {measured.log}"
            raise BenchError(f"{arm} at {rate}/s: nothing became ready: {why}")
        time.sleep(_AFTERWARDS)
        used = {name: p.processor_seconds - before[name] for name, p in processes.items()}
        used["load"] = taken.cpu
        others = _busy_seconds() - busy - sum(used.values())
        others /= time.monotonic() - begun
        writes = log.writes(namespace="load")
        return Round(
            arm=str(arm),
            rate=rate,
            machines=count,
            p50=percentile(taken.latencies, 50),
            p99=percentile(taken.latencies, 99),
            longest=max(taken.latencies),
            per_second=taken.per_second,
            lost=taken.lost,
            wrong_children=asyncio.run(_wrong_children(plane, "load", expected=count)),
            writes=len(writes) / count,
            written=by_kind(writes),
            cpu={name: 1000 * value / count for name, value in used.items()},
            rss=measured.resident_mib("VmHWM"),
            late=taken.late,
            others=max(0.0, others),
            failures=taken.failures[:3],
        )


def warm_up(plane: Plane, *, end: str = "machine-ready") -> None:
    """Let everybody have done everything once: connections, code paths, the API server's schemas.

    Raises:
        BenchError: a machine was not ready in time.
    """
    taken = load(
        plane.kubeconfig("admin"),
        machines(WARM_UP, prefix="w"),
        scratch=plane.paths.data,
        namespace="warm-up",
        rate=_WARM_RATE,
        end=end,
        limit=60.0,
    )
    if taken.lost:
        raise BenchError(f"{taken.lost} of {WARM_UP} machines were not ready at the warm-up")


async def _wrong_children(plane: Plane, namespace: str, *, expected: int) -> int:
    """How many children are missing or too many: each Machine must have one of each kind."""
    wrong = 0
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        listed = await client.list(MACHINES, namespace=namespace)
        uids = [item["metadata"]["uid"] for item in listed["items"]]
        wrong += abs(expected - len(uids))
        for kind in (PERSISTENT_VOLUME_CLAIMS, SECRETS, VIRTUAL_MACHINES):
            found = await client.list(kind, namespace=namespace, label_selector=UID_LABEL)
            counts = Counter(item["metadata"]["labels"][UID_LABEL] for item in found["items"])
            wrong += sum(abs(counts.pop(uid, 0) - 1) for uid in uids) + counts.total()
    return wrong


def _busy_seconds() -> float:
    """What all processes of the machine have used so far, in seconds of one processor."""
    user, nice, system, _idle, _wait, irq, soft, steal = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
