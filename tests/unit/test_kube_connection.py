"""Connections from a kubeconfig: who we are, and that no key is left lying about."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest

from machine_operator.kube import connection as connection_module
from machine_operator.kube.connection import Connection, connect
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


# ---- tokens that do not live for ever


async def connected(directory: Path, user: dict[str, Any]) -> Connection:
    """A connection of a kubeconfig whose user is this one."""
    named = {"cluster": "c", "user": "u"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": named}],
    }
    file = directory / "config.yaml"
    file.write_text(json.dumps(config))
    return await connect(str(file))


def plugin(script: Path, count: Path) -> dict[str, Any]:
    """A user whose exec plugin gives t1, t2, ... with an expiry that is never reached."""
    version = "client.authentication.k8s.io/v1"
    status = '{"token":"t%d","expirationTimestamp":"2099-01-01T00:00:00Z"}'
    answer = f'{{"apiVersion":"{version}","kind":"ExecCredential","status":{status}}}'
    script.write_text(
        f"#!/bin/sh\necho x >> {count}\nprintf '{answer}' $(wc -l < {count})\n", encoding="utf-8"
    )
    return {"exec": {"apiVersion": version, "command": "sh", "args": [str(script)]}}


async def test_an_exec_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    user = plugin(tmp_path / "plugin", tmp_path / "count")
    connection = await connected(tmp_path, user)
    assert [connection.token(), connection.token()] == ["t1", "t1"]
    assert connection.renew is not None
    await connection.renew()
    assert connection.token() == "t2"


async def test_a_plugin_that_fails_leaves_the_old_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await connected(tmp_path, plugin(tmp_path / "plugin", tmp_path / "count"))
    (tmp_path / "plugin").write_text("echo sorry >&2; exit 3")
    assert connection.renew is not None
    with caplog.at_level(logging.WARNING):
        await connection.renew()
    assert connection.token() == "t1"
    assert "sorry" in caplog.text


async def test_a_plugin_that_waits_for_a_human_is_not_waited_for_but_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "_RENEWAL_LIMIT", 0.05)
    connection = await connected(tmp_path, plugin(tmp_path / "plugin", tmp_path / "count"))
    script, human = tmp_path / "plugin", tmp_path / "human"
    script.write_text(f"until [ -e {human} ]; do sleep 0.02; done\n" + script.read_text())
    assert connection.renew is not None
    for _ in range(2):
        await connection.renew()
    assert connection.token() == "t1"
    assert "Log in again" in caplog.text
    human.touch()
    deadline = asyncio.get_running_loop().time() + 10.0
    while connection.token() == "t1":
        assert asyncio.get_running_loop().time() < deadline, "the plugin's token never came"
        await connection.renew()
    assert connection.token() == "t2", "a second plugin ran beside the first one"


async def test_a_token_file_of_a_kubeconfig_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old")
    connection = await connected(tmp_path, {"tokenFile": str(tmp_path / "token")})
    assert connection.token() == "old"
    (tmp_path / "token").write_text("new")
    assert connection.renew is not None
    await connection.renew()
    assert connection.token() == "new"


async def test_a_projected_token_is_read_again_when_it_is_refused(
    tmp_path: Path, kubeconfigs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("old\n")
    (account / "ca.crt").write_text((kubeconfigs.parent / "pki" / "cluster-ca.crt").read_text())
    monkeypatch.setattr(connection_module, "_SERVICE_ACCOUNT", account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    connection = await connect()
    assert connection.server == "https://[fd00::1]:443"
    assert connection.token() == "old"
    (account / "token").write_text("new\n")
    assert connection.token() == "old", "within a minute the file is not read again by itself"
    assert connection.renew is not None
    await connection.renew()
    assert connection.token() == "new"


async def test_a_certificate_is_not_renewed(kubeconfigs: Path) -> None:
    assert (await connect(str(kubeconfigs / "admin.yaml"))).renew is None
