"""From two processes to a usable cluster: start, put the objects there, wait for each thing that the next one needs.

The order is the one in which the pieces depend on each other: virt-api refuses to start without its RBAC; the
controller-manager discovers kinds only every half minute, so KubeVirt's must exist before it; webhooks may be
registered only when somebody answers them. A second start on the same data takes the same path: what is there
already is left, except for what names ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from machine_operator.api.crd import machine_crd
from machine_operator.controller.rbac import operator_rbac
from machine_operator.gateway.rbac import gateway_rbac
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import AlreadyExists, KubeError, NotFound
from machine_operator.local import manifests
from machine_operator.local.apikey import ensure_api_key
from machine_operator.local.certificates import key_pair
from machine_operator.local.hollow.rbac import objects as hollow_rbac
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.settings import ClusterSettings, write_json

__all__ = ["NODE", "Bringup", "BringupError"]

NODE = "hollow-0"

_LIMIT = 120.0
"""Seconds for any single wait; a busy machine with two cores has needed 30 for all of it."""

Object = dict[str, Any]

_PLURALS = {
    "Namespace": "namespaces",
    "ConfigMap": "configmaps",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "CustomResourceDefinition": "customresourcedefinitions",
    "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
    "ValidatingWebhookConfiguration": "validatingwebhookconfigurations",
    "APIService": "apiservices",
    "StorageClass": "storageclasses",
    "KubeVirt": "kubevirts",
}


class BringupError(Exception):
    """The cluster did not come up; the message says which piece, and where to look."""


class Bringup:
    """One start of the cluster.

    Args:
        start: starts a component by name (a no-op for one that is not part of this cluster).
        say: told in a few words what is being waited for.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        paths: ClusterPaths,
        *,
        start: Callable[[str], Awaitable[None]],
        say: Callable[[str], None],
    ) -> None:
        self.steps: dict[str, float] = {}
        self._settings = settings
        self._paths = paths
        self._start = start
        self._say = say
        admin = key_pair(paths.pki, "admin")
        connection = Connection.from_certificate(
            settings.server,
            ca=paths.pki / "cluster-ca.crt",
            certificate=admin.certificate,
            key=admin.key,
        )
        self._client = KubeClient(connection, user_agent="machine-operator-local")

    async def run(self) -> None:
        """Everything, in order.

        Raises:
            BringupError: a wait ran out of time.
        """
        async with self._client:
            with self._step("kube-apiserver"):
                await self._start("etcd")
                await self._start("kube-apiserver")
                await self._until("kube-apiserver to be ready", self._api_ready)
            objects = manifests.load_manifests(self._settings, self._paths)
            with self._step("roles and kinds"):
                await self._put(manifests.namespaces(self._settings, self._paths))
                await self._put(
                    [*objects.rbac(), *hollow_rbac(), *operator_rbac(), *gateway_rbac()]
                )
                await self._start("virt-api")
                await self._start("kube-scheduler")
                crds = [*objects.crds(), machine_crd()]
                await self._put(crds)
                names = [crd["metadata"]["name"] for crd in crds]
                await self._until("the kinds to be served", lambda: self._established(names))
            await self._start("kube-controller-manager")
            await self._start("virt-controller")
            async with self._beside(self._kubevirt()):
                await self._put([manifests.storage_class()])
                self._write_node_config()
                await self._start("hollow-node")
                with self._step("virt-api"):
                    await self._until("virt-api to listen", self._virt_api_listens)
                    await self._put([*objects.webhooks(), *objects.api_services()])
                    await self._until("the subresource API", self._subresources_available)
            with self._step("KubeVirt"):
                await self._until("KubeVirt to accept virtual machines", self._accepts_machines)
                await self._until("virt-controller to lead", self._virt_controller_leads)
            with self._step("node"):
                await self._until(f"node {NODE} to take machines", self._node_ready)
            with self._step("controller and gateway"):
                await self._start("controller")
                await self._start("gateway")
                if self._settings.gateway:
                    await ensure_api_key(self._client, self._paths)
                await self._until("the controller", self._controller_ready)
                await self._until("the gateway", self._gateway_ready)

    # ---- what is put there

    async def _put(self, objects: Iterable[Object]) -> None:
        for item in objects:
            await self._put_one(item)

    async def _put_one(self, item: Object) -> None:
        collection, name = _collection(item), item["metadata"]["name"]
        try:
            await self._retrying(lambda: self._client.request("POST", collection, body=item))
        except AlreadyExists:
            # A merge patch replaces lists; an apply would keep the port of the start before in a Service's.
            await self._retrying(
                lambda: self._client.request(
                    "PATCH",
                    f"{collection}/{name}",
                    body=item,
                    content_type="application/merge-patch+json",
                )
            )

    async def _retrying(self, call: Callable[[], Awaitable[Object]]) -> Object:
        """Right after its start the API server may not know a namespace or a kind yet."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return await call()
            except AlreadyExists:
                raise
            except KubeError as error:
                if (
                    not (error.retryable or isinstance(error, NotFound))
                    or time.monotonic() > deadline
                ):
                    raise BringupError(f"{error}") from error
                await asyncio.sleep(0.2)

    async def _kubevirt(self) -> None:
        """The KubeVirt object, and the status that virt-operator would have written.

        A create within 2 s after its kind was established is held back by the API server: hence beside the rest.
        """
        await self._put_one(manifests.kubevirt_cr())
        version = "v1.8.2"
        await self._client.request(
            "PATCH",
            "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt/status",
            body={
                "status": {
                    "phase": "Deployed",
                    "defaultArchitecture": "amd64",
                    "observedKubeVirtVersion": version,
                    "targetKubeVirtVersion": version,
                    "operatorVersion": version,
                }
            },
            content_type="application/merge-patch+json",
        )

    def _write_node_config(self) -> None:
        pki = self._paths.pki
        identities = {
            role: {"certificate": str(pair.certificate), "key": str(pair.key)}
            for role, pair in {
                "kubelet": key_pair(pki, "kubelet"),
                "virt_handler": key_pair(pki, "virt-handler"),
                "provisioner": key_pair(pki, "provisioner"),
            }.items()
        }
        write_json(
            self._paths.data / "node.json",
            {
                "name": NODE,
                "cluster": self._settings.name,
                "server": self._settings.server,
                "ca": str(pki / "cluster-ca.crt"),
                "identities": identities,
                "data": str(self._paths.node),
                "images": self._settings.images,
                "qemu": self._settings.qemu,
                **_capacity(qemu=self._settings.qemu),
                "network": self._settings.network,
            },
        )

    # ---- what is waited for

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.steps[name] = round(time.monotonic() - begun, 2)

    @asynccontextmanager
    async def _beside(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        task = asyncio.create_task(work)
        try:
            yield
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _until(self, what: str, check: Callable[[], Awaitable[str | None]]) -> None:
        """Wait until `check` returns None; else it says why not yet."""
        self._say(f"waiting for {what}")
        deadline = time.monotonic() + _LIMIT
        while True:
            try:
                why = await check()
            except (KubeError, aiohttp.ClientError, OSError, TimeoutError) as error:
                why = str(error)
            if why is None:
                return
            if time.monotonic() > deadline:
                raise BringupError(
                    f"gave up waiting for {what} after {_LIMIT:.0f} s: {why}. Logs: {self._paths.logs}"
                )
            await asyncio.sleep(0.1)

    async def _api_ready(self) -> str | None:
        answer = await self._client.request("GET", "/readyz", timeout=5)
        return None if answer.get("text") == "ok" else f"/readyz says {answer}"

    async def _established(self, names: list[str]) -> str | None:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        answer = await self._client.request("GET", path)
        done = {
            item["metadata"]["name"]
            for item in answer["items"]
            # `conditions` is null right after creation.
            for condition in item.get("status", {}).get("conditions") or []
            if condition["type"] == "Established" and condition["status"] == "True"
        }
        missing = [name for name in names if name not in done]
        return f"{len(missing)} to go, such as {missing[0]}" if missing else None

    async def _virt_api_listens(self) -> str | None:
        port = self._settings.ports["virt-api"]
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 5)
        writer.close()
        return None

    async def _subresources_available(self) -> str | None:
        name = "v1.subresources.kubevirt.io"
        path = f"/apis/apiregistration.k8s.io/v1/apiservices/{name}"
        conditions = (await self._client.request("GET", path)).get("status", {}).get("conditions")
        for condition in conditions or []:
            if condition["type"] == "Available":
                return None if condition["status"] == "True" else str(condition.get("message"))
        return "no Available condition yet"

    async def _accepts_machines(self) -> str | None:
        probe = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "probe"},
            "spec": {
                "runStrategy": "Halted",
                "template": {
                    "spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}, "volumes": []}
                },
            },
        }
        path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
        await self._client.request("POST", path, params={"dryRun": "All"}, body=probe)
        return None

    async def _virt_controller_leads(self) -> str | None:
        tls = ssl.create_default_context(cafile=str(self._paths.pki / "kubevirt-ca.crt"))
        url = f"https://127.0.0.1:{self._settings.ports['virt-controller']}/leader"
        async with self._client.session.get(url, ssl=tls) as response:
            text = (await response.text()).strip()
        return None if "true" in text else f"/leader says {text}"

    async def _node_ready(self) -> str | None:
        node = await self._client.request("GET", f"/api/v1/nodes/{NODE}")
        ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node.get("status", {}).get("conditions") or []
        )
        taints = [taint["key"] for taint in node["spec"].get("taints") or []]
        schedulable = node["metadata"].get("labels", {}).get("kubevirt.io/schedulable")
        if ready and not taints and schedulable == "true":
            return None
        return f"ready={ready}, taints={taints}, kubevirt.io/schedulable={schedulable}"

    async def _controller_ready(self) -> str | None:
        return await self._ready("controller") if self._settings.controller else None

    async def _gateway_ready(self) -> str | None:
        return await self._ready("gateway-metrics") if self._settings.gateway else None

    async def _ready(self, port: str) -> str | None:
        url = f"http://127.0.0.1:{self._settings.ports[port]}/readyz"
        async with self._client.session.get(url) as response:
            text = (await response.text()).strip()
        return None if response.status == 200 else f"/readyz says {response.status} {text}"


def _capacity(*, qemu: bool) -> dict[str, int]:
    """What the node offers. Guests idle most of the time, so processors are offered ten times over,
    which is KubeVirt's own default ratio; memory is real. Without QEMU nothing is used, so both are plenty.
    """
    if not qemu:
        return {"cpu": 1_000_000, "memory_mib": 2**30}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {"cpu": 10 * (os.cpu_count() or 1), "memory_mib": memory}


def _collection(item: Object) -> str:
    group_version, metadata = item["apiVersion"], item["metadata"]
    root = f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"
    namespace = metadata.get("namespace")
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{within}/{_PLURALS[item['kind']]}"
