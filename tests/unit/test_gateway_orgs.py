"""Orgs: made whole, by several at once, never taken from somebody; and what the gateway may do for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.api.names import GROUP
from machine_operator.gateway import orgs as module
from machine_operator.gateway.orgs import (
    ORG_LABEL,
    TEMPLATE_KINDS,
    Orgs,
    TemplateError,
    load_template,
    org_fault,
)
from machine_operator.gateway.problems import Coded
from machine_operator.gateway.rbac import gateway_own_rules, gateway_rbac, gateway_rules
from machine_operator.kube.errors import ApiError, Unreachable
from tests.support.apiserver import FakeApi, Request, failure
from tests.support.client import FakeClient
from tests.support.virtual import run_virtual

Object = dict[str, Any]

POLICY = "machine-operator-default-deny"
QUOTA = """\
apiVersion: v1
kind: ResourceQuota
metadata: {name: machines}
spec: {hard: {count/machines.machines.dedaluslabs.ai: "5"}}
"""


class Place:
    """A cluster and one or more replicas."""

    def __init__(self) -> None:
        self.api = FakeApi()

    def replica(self, *, create: bool = True, template: Path | None = None) -> Orgs:
        return Orgs(FakeClient(self.api), create=create, template=template)

    def put(self, name: str, **labels: str) -> None:
        self.api.put("namespaces", {"metadata": {"name": name, "labels": labels}})

    def names(self, plural: str) -> list[str]:
        found = [item["metadata"] for item in self.api.all(plural)]
        return sorted("/".join(filter(None, (m.get("namespace"), m["name"]))) for m in found)


def play(scenario: Callable[[Place], Coroutine[Any, Any, None]]) -> None:
    run_virtual(scenario(Place()))


async def refusal(orgs: Orgs, org: str) -> Coded:
    with pytest.raises(Coded) as caught:
        await orgs.ensure(org)
    return caught.value


# ---- making


def test_the_first_use_makes_an_org_and_the_second_asks_nobody() -> None:
    async def scenario(place: Place) -> None:
        orgs = place.replica()
        await orgs.ensure("acme")
        namespace = place.api.find("namespaces", "acme")
        assert namespace["metadata"]["labels"][ORG_LABEL] == "acme"
        policy = place.api.find("networkpolicies", POLICY)
        assert policy["metadata"]["namespace"] == "acme"
        assert policy["spec"] == {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}]}],
        }
        asked = len(place.api.log)
        await orgs.ensure("acme")
        assert len(place.api.log) == asked
        # Another replica, and this one after a hint, find everything there.
        await place.replica().ensure("acme")
        orgs.forget("acme")
        orgs.forget("never-seen")
        await orgs.ensure("acme")
        assert place.api.writes() == ["create namespaces", "create networkpolicies"]

    play(scenario)


def test_the_template_is_put_in_and_may_replace_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "org.yaml"
    own = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {POLICY}}}\n"
    path.write_text(f"{QUOTA}---\n{own}spec: {{podSelector: {{}}}}\n---\n")

    async def scenario(place: Place) -> None:
        await place.replica(template=path).ensure("acme")
        assert place.names("resourcequotas") == ["acme/machines"]
        assert place.api.find("networkpolicies", POLICY)["spec"] == {"podSelector": {}}

    play(scenario)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_half_made_org_is_completed(tmp_path: Path, lost: int) -> None:
    """The first replica dies at each of its writes; the next one does the rest."""
    path = tmp_path / "org.yaml"
    path.write_text(QUOTA)

    async def scenario(place: Place) -> None:
        left = lost - 1

        def die(request: Request) -> ApiError | None:
            nonlocal left
            if request.verb == "create":
                left -= 1
                if left < 0:
                    raise Unreachable("gone")
            return None

        place.api.refuse.append(die)
        first = place.replica(template=path)
        with pytest.raises(Unreachable):
            await first.ensure("acme")
        place.api.refuse.clear()
        made = len(place.api.all("namespaces")) + len(place.api.all("networkpolicies"))
        assert made == lost - 1
        second = place.replica(template=path)
        await second.ensure("acme")
        await first.ensure("acme")
        assert place.names("namespaces") == ["acme"]
        assert place.names("networkpolicies") == [f"acme/{POLICY}"]
        assert place.names("resourcequotas") == ["acme/machines"]

    play(scenario)


def test_many_at_once_on_two_replicas_make_one_org() -> None:
    async def scenario(place: Place) -> None:
        replicas = [place.replica(), place.replica()]
        await asyncio.gather(*(replicas[i % 2].ensure("acme") for i in range(40)))
        assert place.names("namespaces") == ["acme"]
        assert place.names("networkpolicies") == [f"acme/{POLICY}"]
        # Both tried, each once: the second met AlreadyExists.
        assert place.api.writes().count("create namespaces") == 2
        assert len(place.api.writes()) <= 4

    play(scenario)


def test_two_replicas_that_complete_an_org_at_once_both_succeed() -> None:
    async def scenario(place: Place) -> None:
        place.put("acme", **{ORG_LABEL: "acme"})
        await asyncio.gather(*(place.replica().ensure("acme") for _ in range(2)))
        assert place.api.writes() == ["create networkpolicies"] * 2
        assert place.names("networkpolicies") == [f"acme/{POLICY}"]

    play(scenario)


def test_orgs_do_not_wait_for_each_other() -> None:
    async def scenario(place: Place) -> None:
        orgs, loop = place.replica(), asyncio.get_running_loop()
        await orgs.ensure("acme")
        one = loop.time()
        await asyncio.gather(*(orgs.ensure(f"org-{i}") for i in range(50)))
        assert loop.time() - one < 2 * one
        assert len(place.names("namespaces")) == 51

    play(scenario)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)
    monkeypatch.setattr(module, "_MOST_TOLD", 3)

    async def scenario(place: Place) -> None:
        orgs, closed = place.replica(), place.replica(create=False)
        for number in range(10):
            await orgs.ensure(f"org-{number}")
            assert (await refusal(closed, f"no-{number}")).status == 403
        assert list(orgs._ready) == ["org-7", "org-8", "org-9"]
        assert len(closed._told) <= 3
        assert not orgs._locks

    play(scenario)


# ---- refusing


def test_somebody_elses_namespace_is_not_taken_until_it_is_handed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(place: Place) -> None:
        place.put("prod")
        place.put("shared", **{ORG_LABEL: "other"})
        orgs = place.replica()
        for name in ("prod", "prod", "shared"):
            error = await refusal(orgs, name)
            assert (error.status, error.error_code) == (403, "AUTH_ORG_MISMATCH")
            assert name not in str(error.body())
        assert place.api.writes() == []
        place.api.edit(
            "namespaces", "prod", lambda obj: obj["metadata"]["labels"].update({ORG_LABEL: "prod"})
        )
        await orgs.ensure("prod")
        assert place.names("networkpolicies") == [f"prod/{POLICY}"]

    play(scenario)
    told = [record.getMessage() for record in caplog.records]
    commands = [f"kubectl label namespace {name} {ORG_LABEL}={name}" for name in ("prod", "shared")]
    assert [text.rpartition(": ")[2] for text in told] == commands


def test_where_orgs_are_not_made_only_labelled_namespaces_are_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(place: Place) -> None:
        orgs = place.replica(create=False)
        place.put("there", **{ORG_LABEL: "there"})
        await orgs.ensure("there")
        error = await refusal(orgs, "acme")
        assert (error.status, error.error_code, error.retryable) == (403, "ORG_NOT_ADMITTED", False)
        assert place.api.writes() == []

    play(scenario)
    assert "kubectl create namespace acme && kubectl label namespace acme" in caplog.text


def test_an_org_that_is_being_removed_is_waited_for() -> None:
    async def scenario(place: Place) -> None:
        place.put("acme", **{ORG_LABEL: "acme"})
        dying = {"deletionTimestamp": "2026-03-01T10:00:00Z", "finalizers": ["x/y"]}
        place.api.edit("namespaces", "acme", lambda obj: obj["metadata"].update(dying))
        error = await refusal(place.replica(), "acme")
        assert (error.status, error.retryable) == (503, True)
        assert place.api.writes() == []

    play(scenario)


def test_what_the_server_does_not_accept_of_the_template_is_a_503_and_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "org.yaml"
    path.write_text(QUOTA)

    async def scenario(place: Place) -> None:
        def strict(request: Request) -> ApiError | None:
            bad = request.verb == "create" and request.plural == "resourcequotas"
            return failure(422, "Invalid", "spec.hard: what is that?") if bad else None

        place.api.refuse.append(strict)
        error = await refusal(place.replica(template=path), "acme")
        assert error.status == 503
        assert "hard" not in str(error.body())

    play(scenario)
    assert "ResourceQuota machines cannot be made" in caplog.text
    assert "what is that?" in caplog.text


@pytest.mark.parametrize(
    "org", ["", "Acme", "-acme", "acme-", "a.b", "a/b", "a\n", "ä", "a" * 64, "kube-system"]
)
def test_what_can_be_no_org_never_reaches_the_server(org: str) -> None:
    async def scenario(place: Place) -> None:
        error = await refusal(place.replica(), org)
        assert error.error_code == "ORG_NOT_ADMITTED"
        assert place.api.log == []

    play(scenario)


@given(st.text(max_size=70))
def test_an_org_is_always_a_safe_path_segment(name: str) -> None:
    if org_fault(name) is None:
        assert name.isascii()
        assert name.replace("-", "").isalnum()
        assert name == name.lower()
        assert 0 < len(name) <= 63
        assert not name.startswith("kube-")


def test_ordinary_names_are_orgs() -> None:
    names = ["a", "0", "a" * 63, "acme-2", "kubernetes", "7d1f7b52-1f6e-4b0c-9f51-0c6f0a4b4a55"]
    assert [org_fault(name) for name in names] == [None] * len(names)


# ---- templates


def test_a_template_is_a_list_or_documents(tmp_path: Path) -> None:
    path = tmp_path / "org.yaml"
    path.write_text("")
    assert load_template(path) == []
    path.write_text(QUOTA)
    single = load_template(path)
    assert [item["kind"] for item in single] == ["ResourceQuota"]
    path.write_text("- " + QUOTA.replace("\n", "\n  ").rstrip() + "\n")
    assert load_template(path) == single


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("just text", "object 1 .*no Kubernetes object"),
        (f"{QUOTA}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: x}}\n", "object 2.*Secret"),
        (QUOTA.replace("v1", "v2"), r"ResourceQuota \(v2\) is not allowed; .*ResourceQuota \(v1\)"),
        (QUOTA.replace("name:", "nom:"), "no metadata.name"),
        ("apiVersion: v1\nkind: LimitRange\n", "no metadata.name"),
        (QUOTA.replace("{name: machines}", "{name: m, namespace: x}"), "leave that out"),
        (f"{QUOTA}---\n{QUOTA}", "object 2.*machines is there twice"),
    ],
)
def test_a_template_that_is_wrong_is_told_at_the_start(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "org.yaml"
    path.write_text(text)
    with pytest.raises(TemplateError, match=why):
        Orgs(FakeClient(FakeApi()), create=True, template=path)


def test_a_template_that_is_not_there_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"none\.yaml"):
        load_template(tmp_path / "none.yaml")


# ---- rights


def verbs(rules: list[Object]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                name = f"{resource}.{group}" if group else resource
                found.setdefault(name, set()).update(rule["verbs"])
    return found


def test_the_gateway_has_the_rights_that_it_uses_and_no_others() -> None:
    assert verbs(gateway_rules()) == {
        f"machines.{GROUP}": {"get", "list", "watch", "create", "patch", "delete"},
        f"machines/status.{GROUP}": {"patch"},
        "namespaces": {"get", "create"},
        "resourcequotas": {"get", "create"},
        "limitranges": {"get", "create"},
        "networkpolicies.networking.k8s.io": {"get", "create"},
        "virtualmachines/restart.subresources.kubevirt.io": {"update"},
        "virtualmachineinstances/portforward.subresources.kubevirt.io": {"get"},
    }
    # Secrets only where the keys are; and who can make no key can give nobody access.
    assert verbs(gateway_own_rules()) == {"secrets": {"get", "list", "watch", "patch"}}
    assert "*" not in str(gateway_rbac())


def test_whatever_a_template_may_have_the_gateway_may_make() -> None:
    allowed = verbs(gateway_rules())
    for kind in TEMPLATE_KINDS:
        name = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
        assert allowed[name] == {"get", "create"}


def test_the_bindings_bind_the_rules_to_the_account() -> None:
    objects = {item["kind"]: item for item in gateway_rbac()}
    account = objects["ServiceAccount"]["metadata"]
    assert account == {"name": "machine-operator-gateway", "namespace": "machine-operator"}
    for kind, namespace in (("ClusterRole", None), ("Role", "machine-operator")):
        role, binding = objects[kind], objects[f"{kind}Binding"]
        assert role["metadata"].get("namespace") == namespace
        assert binding["metadata"].get("namespace") == namespace
        assert binding["roleRef"]["kind"] == kind
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
