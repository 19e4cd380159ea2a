"""Connections from a kubeconfig: who we are, and that no key is left lying about."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from machine_operator.kube.connection import connect
from machine_operator.kube.errors import ConfigurationError
from machine_operator.local.certificates import create_certificates
from machine_operator.local.kubeconfig import write_kubeconfigs


@pytest.fixture(scope="module")
def kubeconfigs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cluster")
    create_certificates(root / "pki")
    write_kubeconfigs(
        root / "kubeconfigs", pki=root / "pki", server="https://127.0.0.1:6443", cluster="one"
    )
    return root / "kubeconfigs"


def entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def test_a_kubeconfig_with_embedded_keys_leaves_no_file(
    kubeconfigs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for identity in ("admin", "operator", "admin"):
        connection = await connect(str(kubeconfigs / f"{identity}.yaml"))
        assert connection.server == "https://127.0.0.1:6443"
        assert connection.namespace == "default"
        assert connection.tls is not None
        assert connection.token() is None
        assert entries(tmp_path) == []


async def test_a_missing_kubeconfig_says_where_it_was_looked_for(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigurationError, match=f"no usable kubeconfig at {missing}.*KUBECONFIG"):
        await connect(str(missing))


async def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("apiVersion: v1\nkind: Config\n")
    with pytest.raises(ConfigurationError, match="no usable kubeconfig"):
        await connect(str(file))


async def test_no_secret_shows_in_the_repr(kubeconfigs: Path) -> None:
    connection = await connect(str(kubeconfigs / "admin.yaml"))
    assert "tls" not in repr(connection)
    assert "token" not in repr(connection)
