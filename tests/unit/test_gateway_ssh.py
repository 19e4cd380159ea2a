"""Keys and certificates of SSH sessions, where the SSH gateway is, and who stands at its door."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import String

from machine_operator.gateway.settings import GatewaySettings, load_settings
from machine_operator.gateway.ssh.certificates import (
    Claim,
    PublicKeyError,
    SessionCertificates,
    read_public_key,
)
from machine_operator.gateway.ssh.door import Door
from machine_operator.gateway.ssh.endpoint import SshEndpoint, listen_address, ssh_endpoint
from machine_operator.kubevirt.authority import Authority

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SESSION = "ssh-" + "ab" * 16


def public(kind: str = "ssh-ed25519", **more: Any) -> str:
    return asyncssh.generate_private_key(kind, **more).export_public_key().decode().strip()


def token_key(kind: str = "sk-ssh-ed25519@openssh.com") -> str:
    """As of a security token: nobody has its private half here."""
    blob = String(kind) + String(os.urandom(32)) + String("ssh:")
    return f"{kind} {base64.b64encode(blob).decode()}"


KEYS = {
    "ed25519": public(),
    "p256": public("ecdsa-sha2-nistp256"),
    "p384": public("ecdsa-sha2-nistp384"),
    "p521": public("ecdsa-sha2-nistp521"),
    "rsa": public("ssh-rsa", key_size=2048),
    "token": token_key(),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_that_may_log_in(kind: str) -> None:
    key = KEYS[kind]
    assert read_public_key(key) == key
    assert read_public_key(f"  {key} me@home, my laptop \r\n") == key


BAD = {
    "empty": "",
    "blank": " \n",
    "junk": "not a key",
    "type only": "ssh-ed25519",
    "no key": "ssh-ed25519 AAAA",
    "cut": KEYS["ed25519"][:-6],
    "options": f'command="ls" {KEYS["ed25519"]}',
    "two lines": f"{KEYS['ed25519']}\n{KEYS['p256']}",
    "line in the comment": f"{KEYS['ed25519']} me\ncert-authority {KEYS['p256']}",
    "carriage return": f"{KEYS['ed25519']} me\rthem",
    "other type in front": "ssh-rsa " + KEYS["ed25519"].split()[1],
    "other curve in front": "ecdsa-sha2-nistp384 " + KEYS["p256"].split()[1],
    "more behind it": "ssh-ed25519 "
    + base64.b64encode(base64.b64decode(KEYS["ed25519"].split()[1]) + b"x").decode(),
    "short RSA": public("ssh-rsa", key_size=1024),
    "DSA": "ssh-dss AAAAB3NzaC1kc3MAAACBAP",
    "long": KEYS["ed25519"] + " " + "x" * 9000,
    "PEM": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----",
    "not ASCII": KEYS["ed25519"].replace("ssh-", "ssh\u2010"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_key(kind: str) -> None:
    with pytest.raises(PublicKeyError):
        read_public_key(BAD[kind])


def test_private_keys_are_not_repeated() -> None:
    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(PublicKeyError, match="is a private key") as error:
        read_public_key(private)
    assert private.splitlines()[1] not in str(error.value)


def test_certificates_are_no_keys() -> None:
    certificate = SessionCertificates(Authority.generate()).sign(
        KEYS["ed25519"], session=SESSION, username="root", since=NOW, until=NOW
    )
    with pytest.raises(PublicKeyError):
        read_public_key(certificate)


@pytest.mark.parametrize("kind", KEYS)
def test_what_a_certificate_says(kind: str) -> None:
    authority = Authority.generate()
    certificates = SessionCertificates(authority)
    until = NOW + timedelta(minutes=10)
    line = certificates.sign(KEYS[kind], session=SESSION, username="root", since=NOW, until=until)
    assert len(line.splitlines()) == 1
    made: Any = asyncssh.import_certificate(line)
    assert made.key.public_data == asyncssh.import_public_key(KEYS[kind]).public_data
    assert made.signing_key.export_public_key().decode().split()[:2] == authority.public.split()
    assert (made._key_id, made._serial) == (SESSION, 0xABABABABABABABAB)
    assert (made.principals, made._cert_type) == (["root"], 1)
    assert made._valid_after == (NOW - timedelta(seconds=60)).timestamp()
    assert made._valid_before == until.timestamp()
    assert made.options == {"permit-pty": True, "permit-port-forwarding": True}
    blob = base64.b64decode(line.split()[1])
    assert certificates.read(blob) == Claim(SESSION, "root")
    assert SessionCertificates(Authority.generate()).read(blob) is None


@pytest.mark.parametrize("principals", [[], ["root", "other"]])
def test_certificates_for_all_or_several_are_not_ours(principals: list[str]) -> None:
    authority = Authority.generate()
    signer = asyncssh.import_private_key(authority.private_bytes())
    made = signer.generate_user_certificate(
        asyncssh.import_public_key(KEYS["ed25519"]), SESSION, principals=principals
    )
    blob = base64.b64decode(made.export_certificate().split()[1])
    assert SessionCertificates(authority).read(blob) is None


@pytest.mark.parametrize(
    "blob",
    [b"", b"\0", b"\xff" * 100, String("ssh-rsa"), String("\u00e4"), String("x" * 60000)],
    ids=range(6),
)
def test_what_is_no_certificate(blob: bytes) -> None:
    assert SessionCertificates(Authority.generate()).read(blob) is None


def settings(**changed: Any) -> GatewaySettings:
    return replace(load_settings(flags={}, environ={})[0], **changed)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        (
            {"ssh_address": "127.0.0.1:2222"},
            SshEndpoint("127.0.0.1", 2222, ("127.0.0.1", "localhost")),
        ),
        (
            {"ssh_address": "10.0.0.1:22", "ssh_endpoint": "ssh.example.org:443"},
            SshEndpoint("ssh.example.org", 443, ("ssh.example.org", "10.0.0.1")),
        ),
        # Another deployment of the gateway serves it.
        (
            {"ssh_endpoint": "ssh.example.org:22"},
            SshEndpoint("ssh.example.org", 22, ("ssh.example.org",)),
        ),
        ({"ssh_address": "[::1]:2222"}, SshEndpoint("::1", 2222, ("::1", "localhost"))),
    ],
)
def test_endpoint(changed: Any, expected: SshEndpoint | None) -> None:
    assert ssh_endpoint(settings(**changed)) == expected


def test_endpoint_of_one_that_listens_everywhere() -> None:
    found = ssh_endpoint(settings(ssh_address="0.0.0.0:2222", public_url="https://api.example.org"))
    assert found is not None
    assert (found.host, found.port) == ("api.example.org", 2222)
    assert {"api.example.org", "localhost"} <= set(found.names)
    found = ssh_endpoint(settings(ssh_address=":2222"))
    assert found is not None
    assert found.host == "localhost"
    assert listen_address(settings(ssh_address=":2222")) == ("", 2222)


def test_host_pattern_is_one_word_for_both_ways_to_look_it_up() -> None:
    assert SshEndpoint("h.example", 2222, ()).host_pattern == "h.example,[h.example]:2222"


def test_door_lets_the_oldest_go() -> None:
    door: Door[str] = Door(places=2, per_second=100, at_once=100)
    assert door.come("a", now=0) is None
    assert door.come("b", now=0) is None
    assert door.come("c", now=0) == "a"
    door.leave("b")
    assert door.come("d", now=0) is None
    assert (list(door), len(door)) == (["c", "d"], 2)
    door.leave("nobody")


def test_door_lets_them_in_at_a_rate() -> None:
    door: Door[int] = Door(places=100, per_second=2, at_once=3)
    assert [door.come(number, now=10) for number in range(5)] == [None, None, None, 3, 4]
    assert [door.come(number, now=11) for number in range(5, 8)] == [None, None, 7]
    assert [door.come(number, now=1000) for number in range(8, 12)] == [None, None, None, 11]
