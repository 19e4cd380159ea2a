"""How to reach one kube-apiserver: address, TLS, and who we are.

Kubeconfig files (contexts, exec plugins, OIDC) and the in-cluster service account are read by the official
`kubernetes` package; what it finds is kept here as a small immutable value. A token that lives in a file is read
again each minute, since kubelet rotates projected tokens.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from machine_operator.kube.errors import ConfigurationError

__all__ = ["Connection", "connect"]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_LIFE = 60.0


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server and an identity.

    Attributes:
        server: base URL without a trailing slash.
        tls: client context (CA, and the client certificate where there is one); None for plain http.
        token: returns the bearer token to use now, or None where the certificate is the identity.
        namespace: the namespace of the context.
    """

    server: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    token: Callable[[], str | None] = field(default=lambda: None, repr=False)
    namespace: str = "default"

    @classmethod
    def from_certificate(cls, server: str, *, ca: Path, certificate: Path, key: Path) -> Connection:
        """A connection whose identity is a client certificate."""
        tls = ssl.create_default_context(cafile=str(ca))
        tls.load_cert_chain(certificate, key)
        return cls(server=server, tls=tls)


class _TokenFile:
    """A bearer token in a file, read again when a minute has passed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = float("-inf")
        self._token = ""

    def __call__(self) -> str:
        now = time.monotonic()
        if now - self._read_at > _TOKEN_LIFE:
            self._token = self._path.read_text().strip()
            self._read_at = now
        return self._token


def _in_cluster() -> Connection | None:
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port or not (_SERVICE_ACCOUNT / "token").exists():
        return None
    address = f"[{host}]" if ":" in host else host
    namespace = _SERVICE_ACCOUNT / "namespace"
    return Connection(
        server=f"https://{address}:{port}",
        tls=ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt")),
        token=_TokenFile(_SERVICE_ACCOUNT / "token"),
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
    )


async def connect(kubeconfig: str | None = None, *, context: str | None = None) -> Connection:
    """Find the cluster: an explicit kubeconfig, else the service account of our pod, else the user's kubeconfig.

    Raises:
        ConfigurationError: nothing usable was found; the message says where we looked.
    """
    if kubeconfig is None and context is None:
        found = _in_cluster()
        if found is not None:
            return found
    return await _from_kubeconfig(kubeconfig, context)


async def _from_kubeconfig(kubeconfig: str | None, context: str | None) -> Connection:
    # Imported here: the generated client costs most of a second, which no in-cluster start should pay.
    from kubernetes.aio import client, config  # noqa: PLC0415

    where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    found = client.Configuration()
    try:
        loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig,
            context=context,
            client_configuration=found,
            persist_config=False,
        )
        tls = _tls(found) if str(found.host).startswith("https") else None
    except (config.ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no usable kubeconfig at {where}: {error}. Set KUBECONFIG or pass --kubeconfig; "
            "for the local cluster, run: eval $(machine-operator local env)"
        ) from error
    finally:
        # The package writes embedded keys to files and removes them at exit, which a process that is killed, or
        # replaced by another program, never comes to. They are in the TLS context by now.
        config.kube_config._cleanup_temp_files()  # type: ignore[no-untyped-call]
    namespace = loader.current_context["context"].get("namespace") or "default"
    return Connection(
        server=str(found.host).rstrip("/"),
        tls=tls,
        token=_bearer(found.api_key.get("BearerToken")),
        namespace=namespace,
    )


def _tls(found: object) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=getattr(found, "ssl_ca_cert", None))
    if getattr(found, "verify_ssl", True) is False:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate, key = getattr(found, "cert_file", None), getattr(found, "key_file", None)
    if certificate:
        tls.load_cert_chain(certificate, key)
    return tls


def _bearer(value: str | None) -> Callable[[], str | None]:
    token = value.removeprefix("Bearer ") if value else None
    return lambda: token
