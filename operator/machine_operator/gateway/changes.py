"""What the gateway writes to Machines, each change guarded by the version that it was decided on.

A change that lost a race is decided again on what is there now: so an If-Match that holds is a promise, and two
changes at once are done one after the other. Nothing is written where nothing would change.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from machine_operator.api.machine import PowerRequest
from machine_operator.api.names import GROUP
from machine_operator.api.phases import DesiredState, Phase, Power
from machine_operator.gateway.failures import (
    from_kube,
    idempotency_reused,
    invalid_state,
    machine_not_found,
    revision_mismatch,
    runtime_unavailable,
)
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import GatewayError
from machine_operator.gateway.views import MachineView
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from machine_operator.kube.resources import MACHINES

__all__ = ["REQUEST_HASH_ANNOTATION", "Changes", "Guard", "NoNamespace", "match_guard"]

log = logging.getLogger(__name__)

REQUEST_HASH_ANNOTATION: Final = f"{GROUP}/request-hash"
"""On a Machine made with an Idempotency-Key: the hash of the request, so that its name is proof enough."""

_POWER_MANAGER: Final = "machine-operator-gateway-power"
"""Owns `status.power_request` and nothing else: an apply takes away what its manager owned and no longer names."""
_TRIES: Final = 8

Object = dict[str, Any]
Guard = Callable[[MachineView], None]
"""Raises where a change must not be made to what is there."""

_RUNNING, _SLEEPING, _DESTROYED = "running", "sleeping", "destroyed"
_OBSERVED: Final = {
    Phase.FAILED: "error",
    Phase.DESTROYING: _DESTROYED,
    Phase.DESTROYED: _DESTROYED,
    Phase.SLEEPING: _SLEEPING,
}


class NoNamespace(Exception):
    """The organisation's namespace is not there (any more)."""


class Changes:
    """Writes Machines as the gateway.

    Args:
        client: the gateway's connection.
        machines: learns of each answer.
    """

    def __init__(self, client: KubeClient, machines: Machines) -> None:
        self._client = client
        self._machines = machines

    async def create(
        self, org: str, name: str, spec: Mapping[str, Any], *, request_hash: str | None
    ) -> MachineView:
        """A new machine; or the one that an earlier try of the same request has made.

        Raises:
            GatewayError: 409 where the name was made of the same key for another request.
            NoNamespace: somebody has deleted it.
        """
        metadata: Object = {"name": name}
        if request_hash is not None:
            metadata["annotations"] = {REQUEST_HASH_ANNOTATION: request_hash}
        body = {"metadata": metadata, "spec": dict(spec)}
        try:
            made = await self._client.create(MACHINES, body, namespace=org)
        except AlreadyExists:
            made = await self._ours(org, name, request_hash)
        except NotFound as error:
            raise NoNamespace from error
        except KubeError as error:
            raise _failed(error) from error
        return self._machines.learn(made)

    async def _ours(self, org: str, name: str, request_hash: str | None) -> Object:
        try:
            there = await self._client.get(MACHINES, name, namespace=org)
        except KubeError as error:
            raise _failed(error) from error
        kept = (there["metadata"].get("annotations") or {}).get(REQUEST_HASH_ANNOTATION)
        if request_hash is None or kept != request_hash:
            raise idempotency_reused(
                expected=str(kept or "")[:8], provided=str(request_hash or "")[:8]
            )
        return there

    async def resize(
        self, view: MachineView, changes: Mapping[str, Any], *, guard: Guard
    ) -> MachineView:
        """Change members of the spec."""

        async def act(view: MachineView) -> Object | None:
            _not_destroyed(view, DesiredState.RUNNING, expected=_RUNNING)
            spec = view.machine.spec
            if all(getattr(spec, member) == value for member, value in changes.items()):
                return None
            return await self._patch_spec(view, changes)

        return await self._settle(view, act, guard=guard)

    async def power(self, view: MachineView, to: Power, *, by: str, guard: Guard) -> MachineView:
        """Ask for sleep or for a wake-up."""
        target = DesiredState(to)
        expected = _SLEEPING if to is Power.RUNNING else _RUNNING

        async def act(view: MachineView) -> Object | None:
            _not_destroyed(view, target, expected=expected)
            if view.phase is Phase.FAILED:
                raise _invalid(view, target, expected=expected)
            if view.desired_state is target:
                return None
            return await self._request_power(view, to, by=by)

        return await self._settle(view, act, guard=guard)

    async def destroy(self, view: MachineView, *, guard: Guard) -> MachineView:
        """Ask for the end. The object stays for a while, so that the end can be read."""

        async def act(view: MachineView) -> Object | None:
            if view.desired_state is DesiredState.DESTROYED:
                return None
            return await self._patch_spec(view, {"desired_state": DesiredState.DESTROYED})

        return await self._settle(view, act, guard=guard)

    async def reboot(self, view: MachineView, *, force: bool, guard: Guard) -> MachineView:
        """Have KubeVirt stop the VM and start it again; `force` leaves the guest no time to shut down.

        Returns once the machine is seen on its way, or after a few seconds.
        """

        async def act(view: MachineView) -> Object | None:
            vm = view.machine.status.vm
            if view.phase is not Phase.RUNNING or vm is None:
                raise _invalid(view, DesiredState.RUNNING, expected=_RUNNING)
            path = (
                f"/apis/subresources.kubevirt.io/v1/namespaces/{view.org}"
                f"/virtualmachines/{vm.name}/restart"
            )
            options: Object = {"gracePeriodSeconds": 0} if force else {}
            try:
                # To "Accept: application/json" virt-api answers 406.
                await self._client.request("PUT", path, body=options, accept="*/*")
            except Conflict as error:
                raise _invalid(view, DesiredState.RUNNING, expected=_RUNNING) from error
            return None

        with self._machines.followed(view) as follower:
            settled = await self._settle(view, act, guard=guard)
            while (news := await follower.next(timeout=3.0)) is not None:
                settled = news
                if news.phase is not Phase.RUNNING:
                    break
        return settled

    # ---- one change

    async def _settle(
        self,
        view: MachineView,
        act: Callable[[MachineView], Awaitable[Object | None]],
        *,
        guard: Guard,
    ) -> MachineView:
        """Decide on what is there, write, and begin again where somebody was faster."""
        for _ in range(_TRIES):
            guard(view)
            try:
                written = await act(view)
            except Conflict:
                view = await self._read_again(view)
                continue
            except NotFound as error:
                raise machine_not_found(view.machine.metadata.name) from error
            except KubeError as error:
                raise _failed(error) from error
            return view if written is None else self._machines.learn(written)
        raise runtime_unavailable(retry_after_ms=250)

    async def _read_again(self, view: MachineView) -> MachineView:
        meta = view.machine.metadata
        try:
            there = await self._client.get(MACHINES, meta.name, namespace=meta.namespace)
        except NotFound as error:
            raise machine_not_found(meta.name) from error
        except KubeError as error:
            raise _failed(error) from error
        return self._machines.learn(there)

    async def _patch_spec(self, view: MachineView, changes: Mapping[str, Any]) -> Object:
        meta = view.machine.metadata
        body = {"metadata": _precondition(view), "spec": dict(changes)}
        return await self._client.merge_patch(MACHINES, meta.name, body, namespace=meta.namespace)

    async def _request_power(self, view: MachineView, to: Power, *, by: str) -> Object:
        machine = view.machine
        before = machine.status.power_request
        request = PowerRequest(
            state=to,
            by=by,
            at=datetime.now(UTC),
            sequence=(before.sequence if before else 0) + 1,
            spec_desired_state=machine.spec.desired_state,
        )
        return await self._client.apply(
            MACHINES,
            machine.metadata.name,
            {"metadata": _precondition(view), "status": {"power_request": request.to_dict()}},
            manager=_POWER_MANAGER,
            namespace=machine.metadata.namespace,
            subresource="status",
        )


def _failed(error: KubeError) -> GatewayError:
    """What the client is told; what it is not told goes to the log."""
    answer = from_kube(error)
    if answer.status >= 500:
        log.warning("%s", error)
    return answer


def match_guard(if_match: str | None) -> Guard:
    """Refuses what is not of the revision that a client has seen: `42`, `"42"`, `W/"42"`, a list of these, or `*`."""
    wanted = [] if if_match is None else [_bare_tag(tag) for tag in if_match.split(",")]

    def guard(view: MachineView) -> None:
        if wanted and "*" not in wanted and view.revision not in wanted:
            raise revision_mismatch(expected=view.revision, provided=wanted[0])

    return guard


def _bare_tag(tag: str) -> str:
    return tag.strip().removeprefix("W/").strip('"')[:64]


def _precondition(view: MachineView) -> Object:
    meta = view.machine.metadata
    return {"resourceVersion": str(view.version), "uid": meta.uid}


def _not_destroyed(view: MachineView, target: DesiredState, *, expected: str) -> None:
    if view.desired_state is DesiredState.DESTROYED:
        raise _invalid(view, target, expected=expected)


def _invalid(view: MachineView, target: DesiredState, *, expected: str) -> GatewayError:
    return invalid_state(
        current_desired=view.desired_state,
        current_observed=_OBSERVED.get(view.phase, _RUNNING),
        expected_observed=expected,
        target=target,
    )
