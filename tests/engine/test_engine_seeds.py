"""Seeds through the engine: certified host keys, what a newer operator does to older ones, with how many requests."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

from cryptography.hazmat.primitives import serialization

from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.names import child_names
from tests.support.apiserver import FakeApi
from tests.support.machines import DEFAULTS, KEY
from tests.support.virtual import run_virtual
from tests.support.world import World

AUTHORITY = Authority.generate()
SIGNING = {"engine": {"defaults": dataclasses.replace(DEFAULTS, host_authority=AUTHORITY)}}


def private_key(api: FakeApi) -> str:
    """In the only seed."""
    return base64.b64decode(api.find("secrets")["data"]["ssh-host-key"]).decode()


def certificate(api: FakeApi) -> serialization.SSHCertificate | None:
    """In the only seed; it is for the key that is there too."""
    data = api.find("secrets")["data"]
    config = json.loads(base64.b64decode(data["userdata"]).decode().removeprefix("#cloud-config\n"))
    found = [f for f in config["write_files"] if f["path"] == "/etc/ssh/machine_host_cert.pub"]
    if not found:
        return None
    read = serialization.load_ssh_public_identity(found[0]["content"].encode())
    assert isinstance(read, serialization.SSHCertificate)
    read.verify_cert_signature()
    assert raw(read.public_key()) == raw(
        serialization.load_ssh_public_key(base64.b64decode(data["ssh-host-key.pub"]))
    )
    return read


def raw(key: Any) -> bytes:
    found: bytes = key.public_bytes_raw()
    return found


def signer(authority: Authority) -> bytes:
    return raw(serialization.load_ssh_public_key(authority.public.encode()))


async def running(world: World) -> None:
    await world.phase("running", reason="DesiredStateReached")
    await world.quiet()


def test_a_new_machine_is_known_by_the_authority_and_costs_no_request_more() -> None:
    async def life(**client: Any) -> tuple[World, list[tuple[str, str]]]:
        world = World()
        async with world.operator(**client):
            world.create()
            await running(world)
        asked = [(r.verb, r.plural) for r in world.api.log if r.verb not in ("list", "watch")]
        return world, sorted(asked)

    async def scenario() -> None:
        _, without = await life()
        world, signed = await life(**SIGNING)
        assert signed == without
        assert [verb for verb, plural in signed if plural == "secrets"] == ["create"]
        found = certificate(world.api)
        assert found is not None
        vm = child_names(world.api.find("machines")["metadata"]["uid"]).vm
        assert found.valid_principals == [vm.encode()]
        assert found.type is serialization.SSHCertificateType.HOST
        assert raw(found.signature_key()) == signer(AUTHORITY)

    run_virtual(scenario())


def test_an_older_seed_gets_a_certificate_for_the_key_that_it_has() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            world.create()
            await running(world)
        key, vm = private_key(world.api), world.api.find("virtualmachines")
        assert certificate(world.api) is None
        async with world.operator(**SIGNING):
            await world.quiet()
            found = certificate(world.api)
            assert found is not None
            assert private_key(world.api) == key
            assert world.api.find("virtualmachines") == vm
            conditions = {c["type"]: c["status"] for c in world.status()["conditions"]}
            assert conditions["RestartPending"] == "False"
            assert world.status()["phase"] == "running"
            seed = world.api.find("secrets")
        async with world.operator(**SIGNING):
            await world.quiet()
            assert world.api.find("secrets") == seed, "the next process finds nothing to do"

    run_virtual(scenario())


def test_another_authority_signs_again() -> None:
    async def scenario() -> None:
        world, other = World(), Authority.generate()
        async with world.operator(**SIGNING):
            world.create()
            await running(world)
        key = private_key(world.api)
        defaults = dataclasses.replace(DEFAULTS, host_authority=other)
        async with world.operator(engine={"defaults": defaults}):
            await world.quiet()
            found = certificate(world.api)
            assert found is not None
            assert raw(found.signature_key()) == signer(other)
            assert private_key(world.api) == key

    run_virtual(scenario())


def test_a_stored_key_that_is_none_is_made_anew() -> None:
    """No guest can have shown it to anybody, and sshd would not start with it."""

    async def scenario() -> None:
        world = World()
        async with world.operator(**SIGNING):
            world.create()
            await running(world)

            def scribble(secret: dict[str, Any]) -> None:
                secret["data"]["ssh-host-key"] = base64.b64encode(b"nonsense").decode()

            world.api.edit("secrets", world.api.find("secrets")["metadata"]["name"], scribble)
            world.edit(ssh_authorized_keys=[KEY])
            await world.quiet()
            assert "PRIVATE KEY" in private_key(world.api)
            assert certificate(world.api) is not None

    run_virtual(scenario())
