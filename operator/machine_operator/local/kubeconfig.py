"""Kubeconfig files for the identities of a local cluster."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import yaml

from machine_operator.local.certificates import CLIENTS, key_pair

__all__ = ["write_kubeconfigs"]


def write_kubeconfigs(directory: Path, *, pki: Path, server: str, cluster: str) -> None:
    """One file per identity, self-contained (certificates inside), readable by the owner only."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = _inline(pki / "cluster-ca.crt")
    for name in CLIENTS:
        pair = key_pair(pki, name)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster,
            "clusters": [
                {
                    "name": cluster,
                    "cluster": {"server": server, "certificate-authority-data": authority},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": _inline(pair.certificate),
                        "client-key-data": _inline(pair.key),
                    },
                }
            ],
            "contexts": [
                {
                    "name": cluster,
                    "context": {"cluster": cluster, "user": name, "namespace": "default"},
                }
            ],
        }
        path = directory / f"{name}.yaml"
        draft = path.with_suffix(".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(content, file, sort_keys=False)
        draft.rename(path)


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
