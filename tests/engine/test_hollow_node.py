"""The node against a small API server: pods, VMIs and volumes, with guests that are only flags."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import ApiError, from_status
from machine_operator.kube.resources import Resource
from machine_operator.local.hollow.events import Events
from machine_operator.local.hollow.images import Images
from machine_operator.local.hollow.instances import Instances
from machine_operator.local.hollow.network import Addresses
from machine_operator.local.hollow.plan import PlanError
from machine_operator.local.hollow.pods import Pods
from machine_operator.local.hollow.provisioner import PROVISIONER, Provisioner
from machine_operator.local.hollow.rundir import GuestRecord, Outcome, RunDirectory
from machine_operator.local.hollow.volume_files import VolumeFiles
from tests.support.apply import merge
from tests.support.virtual import eventually

Object = dict[str, Any]

PODS, VMIS, CLAIMS, VOLUMES = (
    "pods",
    "virtualmachineinstances",
    "persistentvolumeclaims",
    "persistentvolumes",
)


class Server:
    """Objects by (plural, name), versions, and watches."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.log: list[str] = []
        self.refuse: list[Callable[[str, str], ApiError | None]] = []
        self._version = itertools.count(1)
        self._watches: list[tuple[str, asyncio.Queue[Object]]] = []

    def get(self, plural: str, name: str) -> Object | None:
        found = self.objects.get((plural, name))
        return copy.deepcopy(found) if found is not None else None

    def put(self, plural: str, item: Object) -> Object:
        key = (plural, item["metadata"]["name"])
        kind = "MODIFIED" if key in self.objects else "ADDED"
        item["metadata"]["resourceVersion"] = str(next(self._version))
        item["metadata"].setdefault("uid", f"uid-{item['metadata']['name']}")
        self.objects[key] = copy.deepcopy(item)
        self._tell(kind, plural, item)
        return copy.deepcopy(item)

    def edit(self, plural: str, name: str, change: Callable[[Object], Any]) -> None:
        item = copy.deepcopy(self.objects[(plural, name)])
        change(item)
        self.put(plural, item)

    def remove(self, plural: str, name: str) -> None:
        item = self.objects.pop((plural, name))
        item["metadata"]["resourceVersion"] = str(next(self._version))
        self._tell("DELETED", plural, item)

    def _tell(self, kind: str, plural: str, item: Object) -> None:
        for watched, queue in self._watches:
            if watched == plural:
                queue.put_nowait({"type": kind, "object": copy.deepcopy(item)})


class Client(KubeClient):
    """A client of the server; its watch loses nothing, since it starts with the list."""

    def __init__(self, server: Server) -> None:
        super().__init__(Connection(server="http://fake"))
        self._server = server

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Object:
        await asyncio.sleep(0)
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        parts = parts[2:] if parts[0] == "namespaces" else parts
        plural, name = parts[0], parts[1] if len(parts) > 1 else ""
        server = self._server
        for rule in server.refuse:
            error = rule(method, plural)
            if error is not None:
                raise error
        if method == "GET" and not name:
            items = [item for (kind, _), item in server.objects.items() if kind == plural]
            return {"items": copy.deepcopy(items), "metadata": {"resourceVersion": "0"}}
        if method != "GET":
            server.log.append(f"{method} {plural}/{name or body['metadata']['name']}")
        if method == "POST":
            return server.put(plural, copy.deepcopy(body))
        current = server.get(plural, name)
        if current is None:
            raise failure(404)
        return self._on_one(method, plural, current, body)

    def _on_one(self, method: str, plural: str, current: Object, body: Any) -> Object:
        server, name = self._server, current["metadata"]["name"]
        match method:
            case "PUT":
                if body["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"]:
                    raise failure(409)
                return server.put(plural, copy.deepcopy(body))
            case "PATCH":
                conditions = body.get("status", {}).pop("conditions", [])
                merge(current, copy.deepcopy(body))
                _merge_conditions(current, conditions)
                _fill_in(current)
                return server.put(plural, current)
            case "DELETE":
                server.remove(plural, name)
        return current

    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[Object]:
        queue: asyncio.Queue[Object] = asyncio.Queue()
        self._server._watches.append((resource.plural, queue))
        for (plural, _), item in list(self._server.objects.items()):
            if plural == resource.plural:
                yield {"type": "MODIFIED", "object": copy.deepcopy(item)}
        while True:
            yield await queue.get()


def _merge_conditions(item: Object, changed: list[Object]) -> None:
    known = {entry["type"]: entry for entry in item.setdefault("status", {}).get("conditions", [])}
    for entry in changed:
        merge(known.setdefault(entry["type"], {}), entry)
    item["status"]["conditions"] = list(known.values())


def _fill_in(item: Object) -> None:
    """As the API server does: fields that nobody wrote come back."""
    for status in item.get("status", {}).get("containerStatuses", []):
        status.setdefault("lastState", {})


def failure(code: int) -> ApiError:
    return from_status(code, {"message": f"failure {code}"})


class FakeGuest:
    """A guest that is there or not."""

    def __init__(self, world: World, uid: str) -> None:
        self.world, self.uid = world, uid
        self.ended, self.restarted = asyncio.Event(), asyncio.Event()
        self.graces: list[float] = []
        self.stalled = False
        self.outcome: Outcome | None = None
        self.record = GuestRecord(uid, "ns", "m", "127.77.0.9", (), world.data / "console.log")

    def shut_down(self, grace: Callable[[], float]) -> None:
        self.graces.append(grace())

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.world.directory(self.uid).write_outcome(outcome)
        self.ended.set()
        self.world.instances.look_at(self.uid)


@dataclass
class World:
    """Server, node and guests. It is its own launcher."""

    data: Path
    server: Server = field(default_factory=Server)
    running: dict[str, FakeGuest] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)
    refusal: str | None = None
    qemu: bool = True

    def __post_init__(self) -> None:
        self.client = Client(self.server)
        addresses = Addresses(IPv4Network("127.77.0.0/16"), free=lambda address, ports: True)
        events = Events(self.client, component="test", node="hollow-0")
        self.pods = Pods(
            self.client,
            node="hollow-0",
            images=Images(self.data / "images", real=False),
            addresses=addresses,
            events=events,
            mounts=False,
        )
        launcher: Any = self if self.qemu else None
        self.instances = Instances(
            self.client,
            node="hollow-0",
            launcher=launcher,
            addresses=addresses,
            pods=self.pods,
            events=events,
        )
        self.resized: list[tuple[Path, int]] = []
        self.provisioner = Provisioner(
            self.client,
            node="hollow-0",
            files=VolumeFiles(self.data / "volumes"),
            resize=self._resize,
            events=events,
        )

    async def _resize(self, path: Path, size: int) -> None:
        self.resized.append((path, size))

    # ---- as a launcher and its guests

    @property
    def guests(self) -> World:
        return self

    def get(self, uid: str) -> FakeGuest | None:
        return self.running.get(uid)

    def directory(self, uid: str) -> RunDirectory:
        path = self.data / "run" / uid
        path.mkdir(parents=True, exist_ok=True)
        return RunDirectory(path)

    def leftovers(self) -> list[str]:
        root = self.data / "run"
        return [path.name for path in root.iterdir()] if root.exists() else []

    def forget(self, uid: str) -> None:
        self.running.pop(uid, None)
        self.directory(uid).remove()

    async def launch(self, vmi: Object, pod: Object) -> FakeGuest:
        uid = vmi["metadata"]["uid"]
        self.launched.append(uid)
        if self.refusal is not None:
            raise PlanError(self.refusal)
        self.running[uid] = FakeGuest(self, uid)
        return self.running[uid]

    # ---- what a test does

    @asynccontextmanager
    async def node(self) -> AsyncIterator[None]:
        runs = [self.pods.run(), self.instances.run(), self.provisioner.run()]
        tasks = [asyncio.create_task(run) for run in runs]
        try:
            yield
            for task in tasks:
                assert not task.done(), task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def phase(self, name: str = "m") -> str:
        vmi = self.server.get(VMIS, name)
        return vmi["status"]["phase"] if vmi else ""

    def pod_phase(self, name: str = "m") -> str:
        pod = self.server.get(PODS, f"virt-launcher-{name}")
        return (pod or {}).get("status", {}).get("phase", "")

    async def until(self, holds: Callable[[], Any]) -> None:
        await eventually(holds, within=15, state=lambda: (self.server.log, self.server.objects))


def launcher_pod(name: str = "m", image: str = "machine-guest:12") -> Object:
    labels = {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": f"uid-{name}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"virt-launcher-{name}", "namespace": "ns", "labels": labels},
        "spec": {
            "nodeName": "hollow-0",
            "containers": [
                {"name": "compute", "image": "virt-launcher"},
                {"name": "volumeroot", "image": image},
            ],
        },
        "status": {"phase": "Pending"},
    }


def vmi(name: str = "m", phase: str = "Scheduled") -> Object:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [{"name": "default"}]}},
        },
        "status": {"phase": phase},
    }


def deleted(item: Object, grace: int = 50) -> None:
    item["metadata"]["deletionTimestamp"] = "2026-11-25T15:00:00Z"
    item["metadata"]["deletionGracePeriodSeconds"] = grace


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def started(world: World) -> FakeGuest:
    world.server.put(PODS, launcher_pod())
    await world.until(lambda: world.pod_phase() == "Running")
    world.server.put(VMIS, vmi())
    await world.until(lambda: world.phase() == "Running")
    return world.running["uid-m"]


async def test_a_scheduled_vmi_runs(world: World) -> None:
    async with world.node():
        await started(world)
        found = world.server.get(VMIS, "m")
        assert found is not None
        assert found["status"]["interfaces"][0]["ipAddress"] == "127.77.0.9"
        assert world.launched == ["uid-m"]


@pytest.mark.parametrize(
    ("outcome", "phase"),
    [
        (Outcome.SHUTDOWN, "Succeeded"),
        (Outcome.KILLED, "Failed"),
        (Outcome.NODE_STOPPED, "Failed"),
        (Outcome.CRASHED, "Failed"),
        (Outcome.PANICKED, "Failed"),
    ],
)
async def test_how_a_guest_ends_is_the_final_phase(
    world: World, outcome: Outcome, phase: str
) -> None:
    async with world.node():
        guest = await started(world)
        guest.end(outcome)
        await world.until(lambda: world.phase() == phase)
        await world.until(lambda: world.pod_phase() == phase)


async def test_the_pod_goes_only_after_the_end_is_stored(world: World) -> None:
    async with world.node():
        guest = await started(world)
        world.server.edit(VMIS, "m", deleted)
        world.server.edit(PODS, "virt-launcher-m", deleted)
        await world.until(lambda: guest.graces)
        assert guest.graces[0] == 20.0
        assert world.server.get(PODS, "virt-launcher-m") is not None
        guest.end(Outcome.SHUTDOWN)
        await world.until(lambda: world.server.get(PODS, "virt-launcher-m") is None)
        order = [
            entry
            for entry in world.server.log
            if entry in ("PUT virtualmachineinstances/m", "DELETE pods/virt-launcher-m")
        ]
        assert order[-2:] == ["PUT virtualmachineinstances/m", "DELETE pods/virt-launcher-m"]
        assert world.phase() == "Succeeded"


async def test_a_deleted_pod_stops_its_guest_in_the_pods_time(world: World) -> None:
    async with world.node():
        guest = await started(world)
        world.server.edit(PODS, "virt-launcher-m", deleted)
        await world.until(lambda: guest.graces)
        assert guest.graces == [20.0]  # 50 s, less what is virt-launcher's own


async def test_an_evicted_pods_vmi_succeeds_and_only_then_the_pod_goes(world: World) -> None:
    async with world.node():
        guest = await started(world)
        world.server.edit(PODS, "virt-launcher-m", deleted)  # the VMI itself is not being deleted
        await world.until(lambda: guest.graces)
        assert world.pod_phase() == "Running"
        guest.end(Outcome.SHUTDOWN)
        await world.until(lambda: world.server.get(PODS, "virt-launcher-m") is None)
        assert world.phase() == "Succeeded"


def pause_of(world: World) -> str | None:
    conditions = (world.server.get(VMIS, "m") or {})["status"].get("conditions") or []
    return next((item["reason"] for item in conditions if item["type"] == "Paused"), None)


async def test_a_stalled_guest_is_a_paused_vmi(world: World) -> None:
    async with world.node():
        guest = await started(world)
        for stalled, reason in ((True, "PausedIOError"), (False, None)):
            guest.stalled = stalled
            world.instances.look_at("uid-m")
            await world.until(lambda reason=reason: pause_of(world) == reason)
        assert world.phase() == "Running"


async def test_a_pause_that_somebody_else_wrote_stays(world: World) -> None:
    paused = {"type": "Paused", "status": "True", "reason": "PausedIOError"}
    async with world.node():
        guest = await started(world)
        world.server.edit(VMIS, "m", lambda item: item["status"]["conditions"].append(paused))
        written = len(world.server.log)
        world.instances.look_at("uid-m")
        # A grace that was asked for shows that the change has been worked on.
        world.server.edit(VMIS, "m", deleted)
        await world.until(lambda: guest.graces)
        assert pause_of(world) == "PausedIOError"
        assert f"PUT {VMIS}/m" not in world.server.log[written:]
        guest.end(Outcome.SHUTDOWN)
        await world.until(lambda: world.phase() == "Succeeded")
        assert pause_of(world) == "PausedIOError"


async def test_a_vmi_that_never_ran_ends_at_once(world: World) -> None:
    async with world.node():
        world.refusal = "volume 'x' (hostDisk) is of a kind that cannot be attached"
        world.server.put(PODS, launcher_pod())
        world.server.put(VMIS, vmi())
        await world.until(lambda: world.launched)
        await world.until(lambda: "hostDisk" in str(world.server.get(VMIS, "m")))
        assert world.phase() == "Scheduled"
        world.server.edit(VMIS, "m", deleted)
        await world.until(lambda: world.phase() == "Succeeded")


async def test_a_refused_start_is_tried_again(world: World) -> None:
    async with world.node():
        world.refusal = "not now"
        world.server.put(PODS, launcher_pod())
        world.server.put(VMIS, vmi())
        await world.until(lambda: "not now" in str(world.server.get(VMIS, "m")))
        world.refusal = None
        await world.until(lambda: world.phase() == "Running")
        assert "not now" not in str(world.server.get(VMIS, "m"))


@pytest.mark.parametrize(("outcome", "phase"), [(None, "Failed"), (Outcome.SHUTDOWN, "Succeeded")])
async def test_running_without_a_guest_after_a_restart(
    world: World, outcome: Outcome | None, phase: str
) -> None:
    if outcome is not None:
        world.directory("uid-m").write_outcome(outcome)
    world.server.put(PODS, launcher_pod())
    world.server.put(VMIS, vmi(phase="Running"))
    async with world.node():
        await world.until(lambda: world.phase() == phase)
        assert world.launched == []


async def test_an_adopted_guest_goes_on(world: World) -> None:
    world.running["uid-m"] = FakeGuest(world, "uid-m")
    world.server.put(PODS, launcher_pod())
    world.server.put(VMIS, vmi())
    async with world.node():
        await world.until(lambda: world.phase() == "Running")
        assert world.launched == []


async def test_leftovers_are_ended_and_removed(world: World) -> None:
    guest = world.running["uid-old"] = FakeGuest(world, "uid-old")
    world.directory("uid-old")
    world.directory("uid-older")
    async with world.node():
        await world.until(lambda: guest.graces and world.leftovers() == ["uid-old"])
        guest.end(Outcome.SHUTDOWN)
        await world.until(lambda: world.leftovers() == [])


async def test_a_final_phase_is_never_touched(world: World) -> None:
    async with world.node():
        guest = await started(world)
        world.server.edit(VMIS, "m", lambda item: item["status"].update(phase="Failed"))
        await world.until(lambda: guest.graces)
        before = world.server.get(VMIS, "m")
        guest.end(Outcome.SHUTDOWN)
        await world.until(lambda: world.pod_phase() == "Failed")
        assert world.server.get(VMIS, "m") == before


async def test_a_lost_race_is_run_again_with_the_winners_object(world: World) -> None:
    lost: list[str] = []

    def rule(method: str, plural: str) -> ApiError | None:
        if method == "PUT" and plural == VMIS and not lost:
            lost.append(plural)
            world.server.edit(VMIS, "m", lambda item: item["metadata"].update(labels={"won": "1"}))
            return failure(409)
        return None

    world.server.refuse.append(rule)
    async with world.node():
        await started(world)
        found = world.server.get(VMIS, "m")
        assert found is not None
        assert found["metadata"]["labels"] == {"won": "1"}
        assert lost == [VMIS]


async def test_a_missing_image_is_told_and_the_vmi_is_not_started(world: World) -> None:
    async with world.node():
        world.server.put(PODS, launcher_pod(image="registry.invalid/x:1"))
        await world.until(lambda: "ErrImagePull" in str(world.server.get(PODS, "virt-launcher-m")))
        assert world.pod_phase() == "Pending"
        world.server.edit(PODS, "virt-launcher-m", deleted)
        await world.until(lambda: world.server.get(PODS, "virt-launcher-m") is None)


async def test_without_qemu_everything_just_happens(tmp_path: Path) -> None:
    world = World(tmp_path, qemu=False)
    async with world.node():
        world.server.put(PODS, launcher_pod())
        world.server.put(VMIS, vmi())
        await world.until(lambda: world.phase() == "Running")
        found = world.server.get(VMIS, "m")
        pod = world.server.get(PODS, "virt-launcher-m")
        assert found is not None
        assert pod is not None
        assert found["status"]["interfaces"][0]["ipAddress"] == pod["status"]["podIP"]
        world.server.edit(VMIS, "m", deleted)
        world.server.edit(PODS, "virt-launcher-m", deleted)
        await world.until(lambda: world.server.get(PODS, "virt-launcher-m") is None)
        assert world.phase() == "Succeeded"


async def test_the_steady_state_writes_nothing(world: World) -> None:
    async with world.node():
        await started(world)
        await world.until(lambda: "'type': 'Ready', 'status': 'True'" in str(world.server.objects))
        written = len(world.server.log)
        patches = world.server.log.count("PATCH pods/virt-launcher-m")
        assert patches <= 2, world.server.log
        world.instances.look_at("uid-m")
        world.pods.look_at_launcher("uid-m")
        await asyncio.sleep(0.3)  # the time in which it must do nothing
        assert world.server.log[written:] == []


# ---- volumes


def claim(size: str = "1Gi", **spec: Any) -> Object:
    annotations = {"volume.kubernetes.io/storage-provisioner": PROVISIONER}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "home", "namespace": "ns", "annotations": annotations},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def storage_class(policy: str = "Delete") -> Object:
    return {"metadata": {"name": "local"}, "provisioner": PROVISIONER, "reclaimPolicy": policy}


async def test_a_volume_from_claim_to_deletion(world: World) -> None:
    world.server.put("storageclasses", storage_class())
    name = "pvc-uid-home"
    image = world.data / "volumes" / name / "disk.img"
    async with world.node():
        world.server.put(CLAIMS, claim())
        await world.until(lambda: world.server.get(VOLUMES, name))
        volume = world.server.get(VOLUMES, name)
        assert volume is not None
        assert volume["spec"]["claimRef"]["uid"] == "uid-home"
        assert volume["spec"]["capacity"] == {"storage": "1Gi"}
        assert image.stat().st_size == 2**30

        def bind(item: Object) -> None:
            item["spec"]["volumeName"] = name
            item["status"] = {"phase": "Bound", "capacity": {"storage": "1Gi"}}

        world.server.edit(CLAIMS, "home", bind)
        world.server.edit(
            CLAIMS,
            "home",
            lambda item: item["spec"]["resources"]["requests"].update(storage="3Gi"),
        )
        await world.until(
            lambda: (
                (world.server.get(CLAIMS, "home") or {})["status"]["capacity"] == {"storage": "3Gi"}
            )
        )
        grown = world.server.get(VOLUMES, name)
        assert grown is not None
        assert grown["spec"]["capacity"] == {"storage": "3Gi"}
        assert world.resized == [(image, 3 * 2**30)]
        assert image.stat().st_size == 3 * 2**30

        world.server.remove(CLAIMS, "home")
        world.server.edit(VOLUMES, name, lambda item: item.update(status={"phase": "Released"}))
        await world.until(lambda: world.server.get(VOLUMES, name) is None)
        assert not image.exists()


async def test_a_claim_gets_one_volume_however_often_it_changes_before_it_is_bound(
    world: World,
) -> None:
    world.server.put("storageclasses", storage_class())
    async with world.node():
        world.server.put(CLAIMS, claim())
        await world.until(lambda: world.server.get(VOLUMES, "pvc-uid-home"))
        for number in range(3):
            world.server.edit(
                CLAIMS,
                "home",
                lambda item, number=number: item["metadata"].update(labels={"n": str(number)}),
            )
            world.server.edit(VOLUMES, "pvc-uid-home", lambda item: item.update(status={}))
        other = claim()
        other["metadata"]["name"] = "other"
        world.server.put(CLAIMS, other)
        await world.until(lambda: world.server.get(VOLUMES, "pvc-uid-other"))
        made = "POST persistentvolumes/pvc-uid-home"
        assert world.server.log.count(made) == 1
        # What somebody took away before it was bound is made again.
        world.server.remove(VOLUMES, "pvc-uid-home")
        await world.until(lambda: world.server.log.count(made) == 2)


async def test_a_retained_volume_keeps_its_data(world: World) -> None:
    world.server.put("storageclasses", storage_class("Retain"))
    async with world.node():
        world.server.put(CLAIMS, claim())
        await world.until(lambda: world.server.get(VOLUMES, "pvc-uid-home"))
        released = {"phase": "Released"}
        world.server.edit(VOLUMES, "pvc-uid-home", lambda item: item.update(status=released))
        # A second claim shows that the first change was worked on.
        other = claim()
        other["metadata"]["name"] = "other"
        world.server.put(CLAIMS, other)
        await world.until(lambda: world.server.get(VOLUMES, "pvc-uid-other"))
        assert (world.data / "volumes" / "pvc-uid-home" / "disk.img").exists()
        assert world.server.get(VOLUMES, "pvc-uid-home") is not None


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (claim("900Ti"), "ask for less"),
        (claim(dataSource={"kind": "VolumeSnapshot", "name": "x"}), "empty volumes only"),
    ],
)
async def test_a_claim_that_cannot_be_met_stays_pending_with_an_event(
    world: World, wanted: Object, sentence: str
) -> None:
    world.server.put("storageclasses", storage_class())
    async with world.node():
        world.server.put(CLAIMS, copy.deepcopy(wanted))
        await world.until(lambda: sentence in str(world.server.objects))
        assert not [key for key in world.server.objects if key[0] == VOLUMES]


async def test_other_provisioners_claims_are_left_alone(world: World) -> None:
    foreign = claim()
    foreign["metadata"]["annotations"] = {
        "volume.kubernetes.io/storage-provisioner": "ebs.csi.aws.com"
    }
    world.server.put("storageclasses", storage_class())
    async with world.node():
        world.server.put(CLAIMS, foreign)
        ours = claim()
        ours["metadata"]["name"] = "ours"
        world.server.put(CLAIMS, ours)
        await world.until(lambda: world.server.get(VOLUMES, "pvc-uid-ours"))
        assert world.server.get(VOLUMES, "pvc-uid-home") is None
