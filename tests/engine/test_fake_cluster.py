"""Tests of the tests: the simulated API server and KubeVirt are as strict, and as full of traps, as the real ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from machine_operator.kube.errors import ApiError, Conflict, Expired, Invalid
from tests.support.apiserver import FakeApi, Request
from tests.support.kubevirt import FakeKubeVirt
from tests.support.virtual import run_virtual

Object = dict[str, Any]
VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"
FORCE = {"fieldManager": "one", "force": "true"}


def cluster() -> tuple[FakeApi, FakeKubeVirt]:
    api = FakeApi()
    return api, FakeKubeVirt(api)


def claim(size: str = "1Gi") -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"metadata": {"name": "vm-home", "namespace": "ns"}, "spec": spec}


def vm(strategy: str = "RerunOnFailure") -> Object:
    domain = {"memory": {"guest": "512Mi"}, "cpu": {"sockets": 1}}
    volumes = [{"name": "root", "containerDisk": {"image": "image:1"}}]
    spec = {"domain": domain, "volumes": volumes, "terminationGracePeriodSeconds": 30}
    return {
        "metadata": {"name": "vm", "namespace": "ns"},
        "spec": {"runStrategy": strategy, "template": {"metadata": {}, "spec": spec}},
    }


async def running(api: FakeApi, strategy: str = "RerunOnFailure") -> None:
    api.put(CLAIMS, claim())
    api.put(VMS, vm(strategy))
    await asyncio.sleep(5.0)
    assert api.find(VMS)["status"]["printableStatus"] == "Running"
    assert api.find(VMS)["status"]["ready"] is True


def switch(api: FakeApi, strategy: str) -> None:
    api.edit(VMS, "vm", lambda obj: obj["spec"].update(runStrategy=strategy))


def apply(api: FakeApi, body: Object, *, name: str = "vm-home", **params: str) -> Object:
    return api.handle(Request("apply", CLAIMS, "ns", name, None, body, FORCE | params))


@pytest.mark.parametrize(("strategy", "again"), [("Always", True), ("RerunOnFailure", False)])
def test_a_guest_that_powers_itself_off(strategy: str, again: bool) -> None:
    async def scenario() -> None:
        api, kubevirt = cluster()
        await running(api, strategy)
        kubevirt.power_off("vm")
        await asyncio.sleep(10.0)
        assert len(kubevirt.starts) == 1 + again
        status = api.find(VMS)["status"]
        assert status["printableStatus"] == ("Running" if again else "Stopped")
        assert ("created" in status) == again, "absent means false"

    run_virtual(scenario())


def test_a_crash_asks_for_a_start_in_the_status() -> None:
    async def scenario() -> None:
        api, kubevirt = cluster()
        seen: list[Object] = []
        api.listeners.append(
            lambda kind, plural, body: seen.append(body) if plural == VMS else None
        )
        await running(api)
        kubevirt.crash("vm")
        await asyncio.sleep(10.0)
        requests = [(vm.get("status") or {}).get("stateChangeRequests") for vm in seen]
        assert [{"action": "Start"}] in requests
        assert len(kubevirt.starts) == 2
        assert "stateChangeRequests" not in api.find(VMS)["status"]

    run_virtual(scenario())


def test_switched_on_while_it_stops_stays_down() -> None:
    async def scenario() -> None:
        api, kubevirt = cluster()
        kubevirt.stop = 5.0
        await running(api)
        switch(api, "Halted")
        await asyncio.sleep(1.0)
        switch(api, "RerunOnFailure")
        await asyncio.sleep(600.0)
        assert len(kubevirt.starts) == 1
        assert api.find(VMS)["status"]["printableStatus"] == "Stopped"

    run_virtual(scenario())


def test_a_start_that_is_refused_is_not_tried_again() -> None:
    async def scenario() -> None:
        api, kubevirt = cluster()
        await running(api)
        switch(api, "Halted")
        await asyncio.sleep(10.0)
        kubevirt.refuses = "not now"
        told: list[str] = []
        api.listeners.append(lambda kind, plural, body: told.append(str(body)))
        switch(api, "RerunOnFailure")
        await asyncio.sleep(5.0)
        assert any("not now" in text for text in told)
        assert "not now" not in told[-1], "the next pass has nothing to do, and so no failure"
        kubevirt.refuses = None
        await asyncio.sleep(600.0)
        assert len(kubevirt.starts) == 1

    run_virtual(scenario())


def test_ends_before_it_is_up_are_held_back_ever_longer() -> None:
    async def scenario() -> None:
        api, kubevirt = cluster()
        kubevirt.crash_loop("vm", "early")
        api.put(CLAIMS, claim())
        api.put(VMS, vm())
        await asyncio.sleep(200.0)
        status = api.find(VMS)["status"]
        assert status["printableStatus"] == "CrashLoopBackOff"
        assert 3 <= status["startFailure"]["consecutiveFailCount"] <= 5
        kubevirt.crash_loop("vm", None)
        await asyncio.sleep(400.0)
        status = api.find(VMS)["status"]
        assert status["printableStatus"] == "Running"
        assert "startFailure" not in status

    run_virtual(scenario())


def test_a_changed_template_asks_for_a_restart() -> None:
    async def scenario() -> None:
        api, _ = cluster()
        await running(api)
        api.edit(VMS, "vm", lambda obj: obj["spec"]["template"]["spec"].update(hostname="another"))
        await asyncio.sleep(1.0)
        kinds = [c["type"] for c in api.find(VMS)["status"]["conditions"]]
        assert "RestartRequired" in kinds
        switch(api, "Halted")
        await asyncio.sleep(5.0)
        switch(api, "RerunOnFailure")
        await asyncio.sleep(5.0)
        kinds = [c["type"] for c in api.find(VMS)["status"]["conditions"]]
        assert "RestartRequired" not in kinds, "the next start clears it"

    run_virtual(scenario())


def test_fields_belong_to_who_applied_or_changed_them() -> None:
    async def scenario() -> None:
        api = FakeApi()
        apply(api, {"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": claim()["spec"]})
        other = {"metadata": {"labels": {"a": "2"}}}
        with pytest.raises(Conflict, match=r"metadata\.labels\.a"):
            apply(api, other, fieldManager="two", force="false")
        apply(api, other, fieldManager="two")
        owners = api.owners(CLAIMS, "vm-home")
        assert "metadata.labels.a" in owners["two"]
        assert "metadata.labels.a" not in owners["one"]
        apply(api, {"spec": claim()["spec"]})
        assert api.find(CLAIMS)["metadata"]["labels"] == {"a": "2"}, "only one's own is removed"

    run_virtual(scenario())


def test_an_apply_can_name_the_version_and_the_uid() -> None:
    async def scenario() -> None:
        api = FakeApi()
        meta = apply(api, claim())["metadata"]
        known = {"resourceVersion": meta["resourceVersion"], "labels": {"a": "1"}}
        apply(api, claim() | {"metadata": known})
        with pytest.raises(Conflict):
            apply(api, {"metadata": {"resourceVersion": meta["resourceVersion"]}})
        with pytest.raises(Conflict):
            apply(api, {"metadata": {"uid": "another"}})
        with pytest.raises(Conflict, match="no existing object"):
            apply(api, {"metadata": {"uid": meta["uid"]}}, name="gone")

    run_virtual(scenario())


def test_a_claim_without_a_volume_cannot_grow() -> None:
    async def scenario() -> None:
        api = FakeApi()
        apply(api, claim())
        with pytest.raises(Invalid, match="for bound claims"):
            apply(api, claim("2Gi"))
        api.edit(CLAIMS, "vm-home", lambda obj: obj.update(status={"phase": "Bound"}))
        apply(api, claim("2Gi"))
        with pytest.raises(Invalid, match="can not be less"):
            apply(api, claim("1Gi"))

    run_virtual(scenario())


def test_pages_are_of_one_moment_and_expire() -> None:
    async def scenario() -> None:
        api = FakeApi()
        for name in ("a", "b", "c"):
            api.put("secrets", {"metadata": {"name": name, "namespace": "ns"}})

        def page(**params: str) -> Object:
            return api.handle(Request("list", "secrets", None, None, None, None, params))

        first = page(limit="2")
        token = first["metadata"]["continue"]
        api.remove("secrets", "c")
        rest = page(**{"limit": "2", "continue": token})
        assert [item["metadata"]["name"] for item in first["items"] + rest["items"]] == [*"abc"]
        assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        api.compact()
        with pytest.raises(Expired):
            page(**{"limit": "2", "continue": token})
        with pytest.raises(ApiError, match="field label not supported"):
            page(fieldSelector="spec.nodeName=a")

    run_virtual(scenario())


def test_a_watch_list_tells_what_is_there_and_where_that_ends() -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.put("secrets", {"metadata": {"name": "a", "namespace": "ns"}})
        events = api.watch("secrets", since=None, initial=True)
        first, end = await anext(events), await anext(events)
        assert (first["type"], end["type"]) == ("ADDED", "BOOKMARK")
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        api.remove("secrets", "a")
        assert (await anext(events))["type"] == "DELETED"
        await events.aclose()  # type: ignore[attr-defined]

    run_virtual(scenario())
