"""The seed: what the guest gets, what its digest hangs on, and whom the machine knows and is known by."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from machine_operator.controller.hostkeys import certified, kept_host_key, new_host_key
from machine_operator.kubevirt import seed
from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.scripts import GuestScript, guest_scripts
from machine_operator.kubevirt.seed import HostKey, build_seed, seed_digest
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import vm_digests
from tests.support.machines import DEFAULTS, KEY, a_machine

VM = "m-7f3a9c215b1e"
HOST_KEY = HostKey(private="PRIVATE\n", public="ssh-ed25519 PUBLIC")
SSHD = "/etc/ssh/sshd_config.d/10-machine.conf"
AUTHORITY = Authority.generate()
TOLD = MachineDefaults(
    image="i", ssh_port=2222, ssh_user_ca="ssh-ed25519 CA", host_authority=AUTHORITY
)


def user_data(secret: dict[str, Any]) -> dict[str, Any]:
    text = base64.b64decode(secret["data"]["userdata"]).decode()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config == json.loads(text.removeprefix("#cloud-config\n"))
    assert isinstance(config, dict)
    return config


def files_of(
    machine: Any = None, defaults: MachineDefaults = DEFAULTS, key: HostKey = HOST_KEY
) -> dict[str, dict[str, str]]:
    config = user_data(build_seed(machine or a_machine(), defaults, key))
    files = {file["path"]: file for file in config["write_files"]}
    assert len(files) == len(config["write_files"])
    return files


def sshd_of(files: dict[str, dict[str, str]]) -> list[str]:
    return files[SSHD]["content"].splitlines()


def test_the_seed_is_cloud_config_with_the_host_key() -> None:
    secret = build_seed(a_machine(), DEFAULTS, HOST_KEY)
    config = user_data(secret)
    assert config["ssh_keys"] == {"ed25519_private": "PRIVATE\n", "ed25519_public": HOST_KEY.public}
    assert base64.b64decode(secret["data"]["ssh-host-key"]).decode() == "PRIVATE\n"
    assert config["hostname"] == "box"
    assert all(user["lock_passwd"] for user in config["users"])


def test_authorized_keys_lie_outside_of_the_home_disk() -> None:
    files = files_of(a_machine(spec={"ssh_authorized_keys": [KEY]}))
    assert files["/etc/ssh/authorized_keys.d/machine"]["content"] == f"{KEY}\n"
    assert not any(path.startswith(("/home", "/root")) for path in files)
    assert "AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u .ssh/authorized_keys" in sshd_of(files)


def test_authorities_and_port_are_optional() -> None:
    plain = json.dumps(user_data(build_seed(a_machine(), DEFAULTS, HOST_KEY)))
    for word in ("TrustedUserCAKeys", "AuthorizedPrincipals", "HostCertificate", "Port 2222"):
        assert word not in plain


def test_who_may_come_in_and_what_the_machine_shows() -> None:
    key = certified(new_host_key(), vm=VM, authority=AUTHORITY)
    files = files_of(defaults=TOLD, key=key)
    assert files["/etc/ssh/machine_user_ca.pub"]["content"] == "ssh-ed25519 CA\n"
    assert files["/etc/ssh/machine_principals"]["content"] == f"{VM}\n"
    assert files["/etc/ssh/machine_host_cert.pub"]["content"] == f"{key.certificate}\n"
    # sshd takes none of them from a file that others may write.
    assert all(file["permissions"] in ("0644", "0755") for file in files.values())
    assert {
        "Port 2222",
        "TrustedUserCAKeys /etc/ssh/machine_user_ca.pub",
        "AuthorizedPrincipalsFile /etc/ssh/machine_principals",
        "HostCertificate /etc/ssh/machine_host_cert.pub",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
    } <= set(sshd_of(files))


def test_sshd_gets_each_setting_once() -> None:
    names = [
        line.split()[0].lower()
        for line in sshd_of(
            files_of(defaults=TOLD, key=dataclasses.replace(HOST_KEY, certificate="c"))
        )
    ]
    assert len(names) == len(set(names))
    assert "subsystem" not in names, "sshd refuses a second one"


def test_the_programs_of_the_guest_are_installed() -> None:
    files = files_of()
    for script in guest_scripts():
        assert files[script.path]["content"] == script.content
        assert files[script.path]["permissions"] == "0755"


# ---- the digest


def test_key_and_certificate_are_no_part_of_the_digest() -> None:
    keys = [certified(new_host_key(), vm=VM, authority=AUTHORITY) for _ in range(2)]
    bodies = [build_seed(a_machine(), TOLD, key) for key in keys]
    assert bodies[0]["data"] != bodies[1]["data"]
    assert bodies[0]["metadata"] == bodies[1]["metadata"]


def test_scripts_authorities_and_principal_are_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, other = a_machine(), a_machine(uid="00000000-0000-4000-8000-000000000001")
    found = {
        seed_digest(machine, TOLD),
        seed_digest(machine, dataclasses.replace(TOLD, host_authority=None)),
        seed_digest(machine, dataclasses.replace(TOLD, host_authority=Authority.generate())),
        seed_digest(machine, dataclasses.replace(TOLD, ssh_user_ca="ssh-ed25519 OTHER")),
        seed_digest(other, TOLD),
    }
    script = GuestScript("new", "/usr/local/lib/machine/new-1", "#!/bin/sh\n")
    monkeypatch.setattr(seed, "guest_scripts", lambda: (*guest_scripts(), script))
    found.add(seed_digest(machine, TOLD))
    assert len(found) == 6


def test_the_principal_alone_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seed_digest(a_machine(), TOLD)
    monkeypatch.setattr(
        seed,
        "child_names",
        lambda uid: dataclasses.replace(child_names(uid), vm="m-other"),
    )
    assert seed_digest(a_machine(), TOLD) != before


def test_no_running_machine_waits_for_a_restart_because_of_it() -> None:
    """What is new in the seed comes with the next start; the digests of the VM tell nothing of it."""
    told = dataclasses.replace(TOLD, ssh_port=DEFAULTS.ssh_port, image=DEFAULTS.image)
    assert vm_digests(a_machine(), told, home="h") == vm_digests(a_machine(), DEFAULTS, home="h")


# ---- host keys


def test_a_private_key_is_never_printed() -> None:
    key = certified(new_host_key(), vm=VM, authority=AUTHORITY)
    assert "PRIVATE KEY" in key.private
    assert "PRIVATE" not in repr(key)
    assert key.public.startswith("ssh-ed25519 AAAA")
    assert "Authority" not in repr(TOLD)


def test_the_certificate_is_for_this_key_and_this_vm(tmp_path: Path) -> None:
    key = certified(new_host_key(), vm=VM, authority=AUTHORITY)
    for name, text in {
        "cert.pub": key.certificate,
        "key.pub": key.public,
        "ca.pub": AUTHORITY.public,
    }.items():
        (tmp_path / name).write_text(f"{text}\n")

    def keygen(*words: str) -> str:
        done = subprocess.run(
            ["ssh-keygen", *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    shown = keygen("-L", "-f", "cert.pub")
    prints = {name: keygen("-l", "-f", f"{name}.pub").split()[1] for name in ("key", "ca")}
    assert "ssh-ed25519-cert-v01@openssh.com host certificate" in shown
    assert f"Public key: ED25519-CERT {prints['key']}" in shown
    assert f"Signing CA: ED25519 {prints['ca']}" in shown
    assert "Valid: forever" in shown
    assert shown.split("Principals:")[1].split("Critical")[0].split() == [VM]


def test_without_an_authority_there_is_no_certificate() -> None:
    key = new_host_key()
    assert certified(key, vm=VM, authority=None) == key
    assert key.certificate == ""


def test_a_stored_key_is_kept_as_it_is() -> None:
    key = new_host_key()
    assert kept_host_key(key.private.encode()) == key


@pytest.mark.parametrize(
    "stored", [b"", b"SECRET", b"\xff\x00", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_not_kept(stored: bytes) -> None:
    assert kept_host_key(stored) is None
