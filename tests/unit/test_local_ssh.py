"""Logging in to a machine of the local cluster: the key, its certificates, and how files are named to ssh."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from machine_operator.local.certificates import create_certificates
from machine_operator.local.ssh import _issue_certificate, _quoted

VM = "m-7f3a9c215b1e"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pki = tmp_path_factory.mktemp("cluster") / "pki"
    create_certificates(pki)
    return pki / "ssh-user-ca"


def test_the_certificate_is_for_one_machine_and_short_lived(
    tmp_path: Path, authority: Path
) -> None:
    _, issued = _issue_certificate(tmp_path, authority, vm=VM)
    certificate = serialization.load_ssh_public_identity(issued.read_bytes())
    assert isinstance(certificate, serialization.SSHCertificate)
    certificate.verify_cert_signature()
    assert certificate.valid_principals == [VM.encode()]
    assert certificate.type is serialization.SSHCertificateType.USER
    assert 0 < certificate.valid_before - time.time() <= 3600
    public = authority.with_name("ssh-user-ca.pub").read_bytes()
    assert certificate.signature_key().public_bytes_raw() == (  # type: ignore[union-attr]
        serialization.load_ssh_public_key(public).public_bytes_raw()  # type: ignore[union-attr]
    )


def test_logins_share_one_key_so_that_none_can_mix_it_with_anothers_certificate(
    tmp_path: Path, authority: Path
) -> None:
    identity, issued = _issue_certificate(tmp_path, authority, vm=VM)
    key, certificate = identity.read_bytes(), issued.read_bytes()
    other = _issue_certificate(tmp_path, authority, vm="m-other")
    assert other[1].read_bytes() != certificate
    assert issued.read_bytes() == certificate, "a login to another machine leaves it alone"
    assert _issue_certificate(tmp_path, authority, vm=VM) == (identity, issued)
    assert identity.read_bytes() == key == other[0].read_bytes()
    assert issued.read_bytes() != certificate
    for file in (identity, issued):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["identity", f"{VM}-cert.pub", "m-other-cert.pub"]


def test_a_path_with_a_space_and_a_percent_sign_reaches_ssh_as_it_is() -> None:
    assert _quoted(Path("/my data/50%/identity")) == '"/my data/50%%/identity"'
