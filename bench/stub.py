"""In place of virt-controller and the node: a process that answers each VM that should run with a single write.

It creates the VirtualMachineInstance running and ready from the beginning (the kind has no status subresource), and
deletes it where the VM should be off or is gone. Everything else that KubeVirt does is left out, so that the
operator is measured and not KubeVirt. It works alike for all arms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

import uvloop
from feed import Object, follow, until_terminated

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import AlreadyExists, KubeError, NotFound
from machine_operator.kube.resources import VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES

_AT_A_TIME = 48

_STATUS = {
    "phase": "Running",
    "nodeName": "stub",
    "interfaces": [{"name": "default", "ipAddress": "10.0.0.1", "ipAddresses": ["10.0.0.1"]}],
    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": None}],
}

_ON = ("Always", "RerunOnFailure")

_Key = tuple[str, str]


class Stub:
    """Keeps, for each VM, the VMI that it should have."""

    def __init__(self, client: KubeClient, *, ready: Path) -> None:
        self._client = client
        self._ready = ready
        self._wanted: dict[_Key, Object | None] = {}
        self._present: set[_Key] = set()
        self._busy: set[_Key] = set()
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        answer = await self._client.list(VIRTUAL_MACHINE_INSTANCES)
        self._present = {_key(item) for item in answer.get("items") or []}
        await follow(self._client, VIRTUAL_MACHINES, self._take, listed=self._ready.touch)

    def _take(self, event: str, vm: Object) -> None:
        key = _key(vm)
        gone = event == "DELETED" or "deletionTimestamp" in vm["metadata"]
        runs = not gone and vm["spec"].get("runStrategy") in _ON
        self._wanted[key] = _instance(vm) if runs else None
        if key not in self._busy and runs != (key in self._present):
            self._busy.add(key)
            task = asyncio.create_task(self._answer(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, key: _Key) -> None:
        """Write until what is there is what is wanted: it can have changed while we wrote."""
        while (self._wanted[key] is not None) != (key in self._present):
            async with self._slots:
                try:
                    await self._write(key, self._wanted[key])
                except KubeError as error:
                    print(f"VMI {key[0]}/{key[1]}: {error}", file=sys.stderr, flush=True)
                    await asyncio.sleep(0.2)
        self._busy.discard(key)
        if self._wanted[key] is None:
            del self._wanted[key]
        else:
            self._wanted[key] = {}  # it is there; its content is no longer needed

    async def _write(self, key: _Key, body: Object | None) -> None:
        namespace, name = key
        if body is not None:
            with contextlib.suppress(AlreadyExists):
                await self._client.create(VIRTUAL_MACHINE_INSTANCES, body, namespace=namespace)
            self._present.add(key)
            return
        with contextlib.suppress(NotFound):
            await self._client.delete(VIRTUAL_MACHINE_INSTANCES, name, namespace=namespace)
        self._present.discard(key)


def _key(item: Object) -> _Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _instance(vm: Object) -> Object:
    meta, template = vm["metadata"], vm["spec"]["template"]
    owner = {
        "apiVersion": VIRTUAL_MACHINES.api_version,
        "kind": VIRTUAL_MACHINES.kind,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": template["metadata"].get("labels") or {},
            "annotations": template["metadata"].get("annotations") or {},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
        "status": _STATUS,
    }


async def _main(kubeconfig: str, ready: Path) -> None:
    async with KubeClient(await connect(kubeconfig), user_agent="bench-stub") as client:
        await until_terminated(Stub(client, ready=ready).run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer virtual machines with instances.")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--ready", type=Path, required=True, help="made once it works")
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.kubeconfig, arguments.ready))
