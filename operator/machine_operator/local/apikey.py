"""The API key of the local cluster's gateway: made at the first start, kept in a file that only its owner reads."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from machine_operator.gateway.keys import KEYS_NAMESPACE, new_key, secret_name
from machine_operator.gateway.keys import key_id as id_of
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import NotFound
from machine_operator.kube.resources import SECRETS
from machine_operator.local.manifests import LOCAL_ORG
from machine_operator.local.paths import ClusterPaths

__all__ = ["ensure_api_key", "read_api_key"]


def read_api_key(paths: ClusterPaths) -> str | None:
    """The key, or None where none was made yet."""
    try:
        return paths.api_key.read_text().strip() or None
    except FileNotFoundError:
        return None


async def ensure_api_key(client: KubeClient, paths: ClusterPaths) -> None:
    """See to it that there is a key, in the file and in the cluster."""
    token = read_api_key(paths)
    known = id_of(token) if token is not None else None
    if known is not None and await _is_there(client, known):
        return
    key = new_key(LOCAL_ORG, now=datetime.now(UTC), description="local cluster")
    await client.create(SECRETS, key.secret, namespace=KEYS_NAMESPACE)
    descriptor = os.open(paths.api_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key.token}\n")


async def _is_there(client: KubeClient, key: str) -> bool:
    try:
        await client.get(SECRETS, secret_name(key), namespace=KEYS_NAMESPACE)
    except NotFound:
        return False
    return True
