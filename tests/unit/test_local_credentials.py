"""What a local cluster signs with: made once, also for a cluster that was made before there was any of it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from machine_operator.config.options import public_key
from machine_operator.gateway.credentials import load_credentials
from machine_operator.local.certificates import create_certificates
from machine_operator.local.components import components
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.settings import PORTS, ClusterSettings

USES = ("user", "host", "session")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cluster") / "pki"
    create_certificates(directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_gateway_can_use_them(pki: Path) -> None:
    credentials = load_credentials(pki)
    publics = {
        credentials.user_authority.public,
        credentials.host_authority.public,
        credentials.session_authority.public,
    }
    assert len(publics) == 3
    for use in USES:
        assert (
            public_key()
            .parse(str(pki / f"ssh-{use}-ca.pub"))
            .line.startswith(getattr(credentials, f"{use}_authority").public)
        )


def test_secrets_are_for_their_owner_alone(pki: Path) -> None:
    secret = [*(pki / f"ssh-{use}-ca" for use in USES), pki / "token-key", *pki.glob("*.key")]
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert (pki / "token-key").stat().st_size == 32


def test_a_second_start_changes_nothing(pki: Path) -> None:
    before = contents(pki)
    create_certificates(pki)
    assert contents(pki) == before


def test_an_older_cluster_gets_what_it_lacks_and_keeps_the_rest(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    create_certificates(pki)
    for name in ("ssh-host-ca", "ssh-host-ca.pub", "ssh-session-ca", "ssh-session-ca.pub"):
        (pki / name).unlink()
    (pki / "token-key").unlink()
    # Killed between the two files of one authority.
    (pki / "ssh-user-ca.pub").unlink()
    before = contents(pki)
    create_certificates(pki)
    after = contents(pki)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 6
    load_credentials(pki)


def test_controller_and_gateway_are_told(tmp_path: Path) -> None:
    paths = ClusterPaths(name="c", data=tmp_path)
    ports = {name: 20000 + at for at, name in enumerate(PORTS)}
    settings = ClusterSettings(name="c", ports=ports, binaries="/b", images="/i", ssh_port=2222)
    found = components(settings, paths)
    assert f"--ssh-host-ca={paths.pki}/ssh-host-ca" in found["controller"].command
    assert {
        f"--credentials={paths.pki}",
        "--guest-port=2222",
        f"--artifacts=file://{tmp_path}/artifacts",
        f"--ssh-address=127.0.0.1:{ports['gateway-ssh']}",
        f"--preview-domain=previews.localhost:{ports['gateway']}",
    } <= set(found["gateway"].command)
