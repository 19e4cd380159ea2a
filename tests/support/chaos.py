"""What can happen to machines, as single steps of a schedule: people, gateways, guests, nodes, the cluster, the API
server, and the operator itself. Each step is harmless where it makes no sense, so that any list of them is a schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from machine_operator.kube.errors import ApiError
from tests.support.clock import wall_clock
from tests.support.faults import Answer, Cut, Delay, End, Garbage, Hold, Refuse, Repeat, TimeOut
from tests.support.fleet import Fleet
from tests.support.machines import KEY
from tests.support.world import World

__all__ = ["NAMES", "STEPS", "Stage", "heal"]

Object = dict[str, Any]

NAMES = ("box", "other")
GOOD, BAD = "registry.example/root:2", "registry.example/typo:1"
_AUTOSLEEP = ("never", "5m", "1m", "never")

_SCRIBBLES: tuple[Object, ...] = (
    {},
    {"phase": "running", "reason": "DesiredStateReached", "revision": "1"},
    {"phase": "sleeping", "reason": "Banana", "transitions": 1_000_000, "wake_count": 7},
    {"phase": "destroyed", "vm": {"name": "somebody-elses", "instance_uid": "x"}},
    {"phase": "failed", "reason": "CrashLoop", "backoff": {"failures": 50}},
    {"phase": "stopping", "conditions": [], "addresses": ["10.1.2.3"], "node": "nowhere"},
)


@dataclass(slots=True)
class Stage:
    """A world in which a schedule plays.

    Attributes:
        touches: when each machine was last used, as the model knows it.
        past: Machines as they were told, for late events.
    """

    world: World
    fleet: Fleet
    touches: dict[str, datetime | None] = field(default_factory=dict)
    past: list[Object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world.api.listeners.append(self._remember)
        self.world.kubevirt.bad_images.add(BAD)

    def _remember(self, kind: str, plural: str, body: Object) -> None:
        if plural == "machines" and kind != "DELETED":
            self.past = [*self.past[-40:], body]

    def machine(self, name: str) -> Object | None:
        """The Machine, unless it is gone."""
        stored = self.world.api.objects.get(("machines", "ns", name))
        return stored.body if stored else None

    def guest(self, name: str) -> str | None:
        """Name of the VM of a machine whose guest is up, or on its way."""
        if self.machine(name) is None:
            return None
        vm = self.world.vm_name(name)
        found = self.world.api.objects.get(("virtualmachineinstances", "ns", vm))
        up = found is not None and found.body["status"].get("phase") in ("Scheduled", "Running")
        return vm if up else None


Step = Callable[[Stage, str, int], None]
STEPS: dict[str, Step] = {}


def _step(function: Step) -> Step:
    STEPS[function.__name__.strip("_")] = function
    return function


def _on_machine(function: Step) -> Step:
    """A step for which the Machine has to be there."""

    def step(stage: Stage, name: str, n: int) -> None:
        if stage.machine(name) is not None:
            function(stage, name, n)

    STEPS[function.__name__.strip("_")] = step
    return function


def _on_guest(function: Callable[[Stage, str, int], None]) -> Step:
    """A step for which the guest has to be up; its name is that of the VM."""

    def step(stage: Stage, name: str, n: int) -> None:
        vm = stage.guest(name)
        if vm is not None:
            function(stage, vm, n)

    STEPS[function.__name__.strip("_")] = step
    return function


# ---- people


@_step
def _create(stage: Stage, name: str, n: int) -> None:
    if stage.machine(name) is None:
        state = "sleeping" if n % 4 == 3 else "running"
        stage.world.create(name, autosleep=_AUTOSLEEP[n % 4], desired_state=state)
        stage.touches[name] = None


@_on_machine
def _resize(stage: Stage, name: str, n: int) -> None:
    stage.world.edit(name, memory_mib=512 * (1 + n % 3), vcpu=0.25 * (1 + n % 5))


@_on_machine
def _grow(stage: Stage, name: str, n: int) -> None:
    machine = stage.machine(name)
    assert machine is not None
    stage.world.edit(name, storage_gib=machine["spec"]["storage_gib"] + n)


@_on_machine
def _image(stage: Stage, name: str, n: int) -> None:
    stage.world.edit(name, image=BAD if n % 3 == 0 else GOOD)


@_on_machine
def _keys(stage: Stage, name: str, n: int) -> None:
    stage.world.edit(name, ssh_authorized_keys=[KEY] * (n % 2))


@_on_machine
def _autosleep(stage: Stage, name: str, n: int) -> None:
    stage.world.edit(name, autosleep=_AUTOSLEEP[n % 4])


@_on_machine
def _state(stage: Stage, name: str, n: int) -> None:
    machine = stage.machine(name)
    assert machine is not None
    if machine["spec"].get("desired_state") != "destroyed":
        stage.world.edit(name, desired_state="sleeping" if n % 2 else "running")


@_on_machine
def _destroy(stage: Stage, name: str, n: int) -> None:
    if n == 0:
        stage.world.edit(name, desired_state="destroyed")


@_on_machine
def _delete(stage: Stage, name: str, n: int) -> None:
    stage.world.delete(name)


@_on_machine
def _pause(stage: Stage, name: str, n: int) -> None:
    stage.world.annotate(name, paused="true" if n % 2 else "false")


@_on_machine
def _scribble(stage: Stage, name: str, n: int) -> None:
    status = copy.deepcopy(_SCRIBBLES[n % len(_SCRIBBLES)])
    if n % 2:  # the gateways' part is left alone
        old = stage.world.status(name)
        status |= {key: old[key] for key in ("power_request", "activity") if key in old}
    else:
        stage.touches[name] = None
    stage.world.scribble(status, name)


# ---- gateways


@_on_machine
def _request(stage: Stage, name: str, n: int) -> None:
    stage.world.request_power("sleeping" if n % 2 else "running", name, sequence=None)


@_on_machine
def _touch(stage: Stage, name: str, n: int) -> None:
    stage.world.touch(name)
    stage.touches[name] = wall_clock()


@_on_machine
def _hold(stage: Stage, name: str, n: int) -> None:
    stage.world.hold(f"ssh-{n % 2}", 20.0 * n, name)


# ---- people with access to KubeVirt's objects


def _kubevirt(what: Callable[[World, str], None]) -> Step:
    def step(stage: Stage, name: str, n: int) -> None:
        if stage.machine(name) is None:
            return
        key = ("virtualmachines", "ns", stage.world.vm_name(name))
        if key in stage.world.api.objects:
            try:
                what(stage.world, name)
            except ApiError:
                return  # as people are told too

    return step


STEPS["delete_vm"] = _kubevirt(lambda world, name: world.delete_vm(name))
STEPS["orphan_vm"] = _kubevirt(lambda world, name: world.delete_vm(name, orphan=True))
STEPS["delete_vmi"] = _kubevirt(lambda world, name: world.delete_vmi(name))
STEPS["virtctl_stop"] = _kubevirt(lambda world, name: world.virtctl_stop(name))
STEPS["virtctl_start"] = _kubevirt(lambda world, name: world.virtctl_start(name))
STEPS["virtctl_restart"] = _kubevirt(lambda world, name: world.virtctl_restart(name))


# ---- guests


@_on_guest
def _power_off(stage: Stage, vm: str, n: int) -> None:
    stage.world.kubevirt.power_off(vm)


@_on_guest
def _crash(stage: Stage, vm: str, n: int) -> None:
    stage.world.kubevirt.crash(vm)


@_on_machine
def _crash_loop(stage: Stage, name: str, n: int) -> None:
    when = ("early", "late", None)[n % 3]
    stage.world.kubevirt.crash_loop(stage.world.vm_name(name), when)


@_on_machine
def _silence(stage: Stage, name: str, n: int) -> None:
    stage.world.kubevirt.silence(stage.world.vm_name(name), on=n % 2 == 0)


@_on_guest
def _io_error(stage: Stage, vm: str, n: int) -> None:
    stage.world.kubevirt.io_error(vm, on=n % 2 == 0)


@_on_machine
def _stubborn(stage: Stage, name: str, n: int) -> None:
    stage.world.kubevirt.guests.stubborn[stage.world.vm_name(name)] = 15.0 * n


# ---- nodes and the cluster


@_step
def _node(stage: Stage, name: str, n: int) -> None:
    kubevirt, node = stage.world.kubevirt, f"node-{1 + n % 2}"
    what = (kubevirt.lose_node, kubevirt.node_back, kubevirt.drain, kubevirt.node_back)[n // 2 % 4]
    what(node)


@_step
def _fence(stage: Stage, name: str, n: int) -> None:
    node = f"node-{1 + n % 2}"
    if node in stage.world.kubevirt.lost_nodes:
        stage.world.kubevirt.fence(node)


@_step
def _cluster(stage: Stage, name: str, n: int) -> None:
    kubevirt, on = stage.world.kubevirt, n % 2 == 0
    match n // 2 % 4:
        case 0:
            kubevirt.unschedulable = (
                "0/2 nodes are available: 2 Insufficient memory." if on else None
            )
        case 1:
            kubevirt.pod_quota = (
                "exceeded quota: team, requested: requests.memory=512Mi" if on else None
            )
        case 2:
            kubevirt.refuses = "policy: no machines on Sundays" if on else None
        case _:
            kubevirt.unbound = "no capacity left" if on else None


@_step
def _virt_api(stage: Stage, name: str, n: int) -> None:
    stage.world.kubevirt.virt_api_away = n % 2 == 0


# ---- the API server


@_step
def _outage(stage: Stage, name: str, n: int) -> None:
    stage.world.api.down = n % 2 == 0
    if stage.world.api.down:
        stage.world.api.break_watches()


@_step
def _cut(stage: Stage, name: str, n: int) -> None:
    if n % 2:
        stage.world.api.compact()
    stage.world.api.break_watches()


@_step
def _answers(stage: Stage, name: str, n: int) -> None:
    faults = (
        Answer(409, "Conflict"),
        Answer(429, "TooManyRequests", retry_after="1"),
        Answer(500, "InternalError"),
        Answer(503, "ServiceUnavailable", after=True),
        TimeOut(after=True),
        TimeOut(),
        Delay(2.0),
        Answer(409, "Conflict", after=True),
    )
    stage.fleet.trouble(faults[n % len(faults)], times=1 + n, reads=n % 3 == 0)


@_step
def _streams(stage: Stage, name: str, n: int) -> None:
    faults = (
        Repeat(1), Repeat(3), Hold(5.0), Hold(0.3), Cut(), End(), Refuse(410, "Expired"), Garbage()
    )  # fmt: skip
    stage.fleet.garble(faults[n % len(faults)], every=5 + n)


# ---- the operator


@_step
def _kill(stage: Stage, name: str, n: int) -> None:
    pause = (0.0, 1.0, 30.0)[n % 3]
    stage.fleet.soon(stage.fleet.kill(after=n % 2 == 0, pause=pause))


@_step
def _two(stage: Stage, name: str, n: int) -> None:
    if len(stage.fleet.running) < 2:
        stage.fleet.soon(stage.fleet.double(5.0 * n))


@_step
def _late_event(stage: Stage, name: str, n: int) -> None:
    """Events come late and twice; what was said about a Machine that is gone stays unsaid."""
    for process in stage.fleet.running:
        for old in stage.past[-1 - n :: 3]:
            stored = stage.machine(old["metadata"]["name"])
            if stored is not None and stored["metadata"]["uid"] == old["metadata"]["uid"]:
                process.engine.saw_machine(copy.deepcopy(old))


async def heal(stage: Stage) -> None:
    """All faults end: one operator, a well cluster, guests that answer, images that are there."""
    world, kubevirt = stage.world, stage.world.kubevirt
    world.api.down = False
    kubevirt.virt_api_away = False
    kubevirt.unschedulable = kubevirt.pod_quota = kubevirt.refuses = kubevirt.unbound = None
    for node in kubevirt.node_names:
        kubevirt.node_back(node)
    guests = kubevirt.guests
    for vm in {*guests.dying, *guests.silent, *guests.broken_disks}:
        kubevirt.crash_loop(vm, None)
        kubevirt.silence(vm, on=False)
        kubevirt.io_error(vm, on=False)
    guests.stubborn.clear()
    for name in NAMES:
        machine = stage.machine(name)
        if machine is None:
            continue
        world.annotate(name, paused=None) if _paused(machine) else None
        if machine["spec"].get("image") == BAD:
            world.edit(name, image=GOOD)
    await stage.fleet.recover()


def _paused(machine: Object) -> bool:
    annotations = machine["metadata"].get("annotations") or {}
    return any(key.endswith("/paused") for key in annotations)
