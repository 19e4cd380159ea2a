"""The floor: a bare loop that creates for each Machine what the operator creates, over the same client.

    bare       a disk, a seed and a VM for each Machine, and nothing else: no caches, no queue, no status
    --writes   the same with the writes that the Machine's contract asks for: finalizer, a first status, and a
               status with Ready=True once its VMI is; so the difference to the operator is the engine alone

The children are the project's own, from the same builders.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import uvloop
from feed import Object, follow, is_ready, until_terminated

from machine_operator.api.machine import Machine, read_machine
from machine_operator.api.names import FINALIZER, NAME_LABEL
from machine_operator.controller.hostkeys import new_host_key
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import KubeError
from machine_operator.kube.resources import (
    MACHINES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
)
from machine_operator.kubevirt.home import build_home
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.seed import build_seed
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import build_vm
from machine_operator.lifecycle.observation import RunStrategy

_AT_A_TIME = 32
"""As many as the operator works on."""

_NOW = "2026-01-01T00:00:00Z"

_CONDITIONS = (
    "Ready",
    "Reconciling",
    "Stalled",
    "Awake",
    "Scheduled",
    "StorageReady",
    "GuestReachable",
    "RestartPending",
)


class Floor:
    """The loop."""

    def __init__(
        self, client: KubeClient, *, defaults: MachineDefaults, writes: bool, ready: Path
    ) -> None:
        self._client = client
        self._file = ready
        self._defaults = defaults
        self._writes = writes
        self._seen: dict[tuple[str, str], Machine] = {}
        self._ready: set[tuple[str, str]] = set()
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            machines = follow(self._client, MACHINES, self._take_machine, listed=self._file.touch)
            group.create_task(machines)
            if self._writes:
                kind = VIRTUAL_MACHINE_INSTANCES
                group.create_task(follow(self._client, kind, self._take_instance))

    def _take_machine(self, event: str, item: Object) -> None:
        key = item["metadata"]["namespace"], item["metadata"]["name"]
        if event == "ADDED" and key not in self._seen:
            machine = read_machine({**MACHINES_TYPE, **item})
            self._seen[key] = machine
            self._spawn(machine)

    def _take_instance(self, event: str, item: Object) -> None:
        key = item["metadata"]["namespace"], item["metadata"]["labels"][NAME_LABEL]
        if event != "DELETED" and key not in self._ready and is_ready(item) and key in self._seen:
            self._ready.add(key)
            self._spawn(self._seen[key], ready=True)

    def _spawn(self, machine: Machine, *, ready: bool = False) -> None:
        task = asyncio.create_task(self._serve(machine, ready=ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, machine: Machine, *, ready: bool) -> None:
        try:
            if ready:  # at once: behind the creates that wait, the floor would be no floor
                await self._report(machine, ready=True)
                return
            async with self._slots:
                await self._create(machine)
        except KubeError as error:
            # A lost machine is counted by who looks for it; here it only says why.
            print(f"{machine.metadata.name}: {error}", file=sys.stderr, flush=True)

    async def _create(self, machine: Machine) -> None:
        meta, client = machine.metadata, self._client
        if self._writes:
            finalizers = {"finalizers": [FINALIZER], "resourceVersion": meta.resourceVersion}
            body = {"metadata": finalizers}
            await client.merge_patch(MACHINES, meta.name, body, namespace=meta.namespace)
        seed = build_seed(machine, self._defaults, new_host_key())
        home = child_names(meta.uid).home
        vm = build_vm(machine, self._defaults, home=home, run_strategy=RunStrategy.ON)
        for kind, child in (
            (PERSISTENT_VOLUME_CLAIMS, build_home(machine, name=home)),
            (SECRETS, seed),
            (VIRTUAL_MACHINES, vm),
        ):
            await client.create(kind, child, namespace=meta.namespace)
        key = meta.namespace, meta.name
        if self._writes and key not in self._ready:
            await self._report(machine, ready=False)

    async def _report(self, machine: Machine, *, ready: bool) -> None:
        meta = machine.metadata
        body = {"metadata": {"uid": meta.uid}, "status": _status(machine, ready=ready)}
        await self._client.apply(
            MACHINES,
            meta.name,
            body,
            namespace=meta.namespace,
            subresource="status",
            manager="bench-floor",
        )


MACHINES_TYPE = {"apiVersion": MACHINES.api_version, "kind": MACHINES.kind}
"""What items of a list lack."""


def _status(machine: Machine, *, ready: bool) -> Object:
    """A status of the size of the operator's."""
    names = child_names(machine.metadata.uid)
    return {
        "phase": "running" if ready else "starting",
        "reason": "DesiredStateReached" if ready else "Starting",
        "retryable": True,
        "revision": "3" if ready else "2",
        "transitions": 2 if ready else 1,
        "last_transition_at": _NOW,
        "last_progress_at": _NOW,
        "observedGeneration": machine.metadata.generation,
        "desired_power": {"state": "running", "why": "spec.desired_state asks for it."},
        "vm": {"name": names.vm, "home_claim": names.home},
        "conditions": [
            {
                "type": kind,
                "status": "True" if ready and kind == "Ready" else "False",
                "reason": "Measured",
                "message": "What the operator says here is about as long as this.",
                "lastTransitionTime": _NOW,
                "observedGeneration": machine.metadata.generation,
            }
            for kind in _CONDITIONS
        ],
    }


async def _main(arguments: argparse.Namespace) -> None:
    defaults = MachineDefaults(image=arguments.image, ssh_user_ca=arguments.ssh_user_ca.read_text())
    async with KubeClient(await connect(arguments.kubeconfig), user_agent="bench-floor") as client:
        floor = Floor(client, defaults=defaults, writes=arguments.writes, ready=arguments.ready)
        await until_terminated(floor.run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Create the children of machines, bare.")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--ssh-user-ca", type=Path, required=True)
    parser.add_argument("--writes", action="store_true", help="also what the contract asks for")
    parser.add_argument("--ready", type=Path, required=True, help="made once it works")
    uvloop.run(_main(parser.parse_args()))
