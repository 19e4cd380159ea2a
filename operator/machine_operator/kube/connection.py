"""How to reach one kube-apiserver: address, TLS, and who we are.

Kubeconfig files (contexts, exec plugins, OIDC) and the in-cluster service account are read by the official
`kubernetes` package; what it finds is kept here as a small immutable value. A token that lives in a file is read
again each minute, since kubelet rotates projected tokens. One that an exec plugin or an OIDC provider gave is used
until the server refuses it; then `renew` asks for another one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine_operator.kube.errors import ConfigurationError

__all__ = ["Connection", "connect"]

log = logging.getLogger(__name__)

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_LIFE = 60.0
_RENEWAL_LIMIT = 30.0
"""Seconds that a request waits for an exec plugin or an OIDC provider."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server and an identity.

    Attributes:
        server: base URL without a trailing slash.
        tls: client context (CA, and the client certificate where there is one); None for plain http.
        token: returns the bearer token to use now, or None where the certificate is the identity.
        namespace: the namespace of the context.
        renew: gets a new token where there may be one, so that `token` returns it from then on; never raises.
            None where there is no other token to be had.
    """

    server: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    token: Callable[[], str | None] = field(default=lambda: None, repr=False)
    namespace: str = "default"
    renew: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)

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

    async def renew(self) -> None:
        """Have the file read at the next use: it may be newer than a minute."""
        self._read_at = float("-inf")


class _Login:
    """The bearer token of a kubeconfig's user, from the loader that found it.

    The loader is kept because it has more than the file: a provider may hand out a refresh token that works once.
    """

    def __init__(self, loader: Any, *, server: str) -> None:
        self._loader = loader
        self._server = server
        self._attempt: asyncio.Task[None] | None = None

    def __call__(self) -> str | None:
        value = getattr(self._loader, "token", None)
        return str(value).removeprefix("Bearer ") if value else None

    async def renew(self) -> None:
        """Run the exec plugin, ask the OIDC provider, or read the token file again.

        One that takes too long goes on without us (a human may be asked), and no second one is started beside it.
        """
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.ensure_future(self._log_in())
        _, waiting = await asyncio.wait({self._attempt}, timeout=_RENEWAL_LIMIT)
        if waiting:
            log.warning(
                "%s does not accept our token; the login has not ended after %.0f s. "
                "Log in again with the tool that wrote the kubeconfig.",
                self._server,
                _RENEWAL_LIMIT,
            )

    async def _log_in(self) -> None:
        # The loader would believe the plugin's own expiry, which the server has just contradicted.
        vars(self._loader).pop("exec_plugin_expiry", None)
        try:
            await self._loader._load_authentication()
        except Exception as error:
            # Plugins and providers fail in any way; whoever asked still gets the 401.
            log.warning(
                "%s does not accept our token, and getting a new one failed: %r. "
                "Log in again with the tool that wrote the kubeconfig.",
                self._server,
                error,
            )
        finally:
            _remove_key_files()


def _in_cluster() -> Connection | None:
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port or not (_SERVICE_ACCOUNT / "token").exists():
        return None
    address = f"[{host}]" if ":" in host else host
    namespace = _SERVICE_ACCOUNT / "namespace"
    token = _TokenFile(_SERVICE_ACCOUNT / "token")
    return Connection(
        server=f"https://{address}:{port}",
        tls=ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt")),
        token=token,
        renew=token.renew,
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
        _remove_key_files()  # their content is in the TLS context by now
    namespace = loader.current_context["context"].get("namespace") or "default"
    server = str(found.host).rstrip("/")
    login = _Login(loader, server=server)
    return Connection(
        server=server,
        tls=tls,
        token=login,
        namespace=namespace,
        renew=login.renew if login() is not None else None,
    )


def _remove_key_files() -> None:
    """The package writes embedded keys to files and removes them at exit, which a process that is killed, or
    replaced by another program, never comes to.
    """
    from kubernetes.aio.config import kube_config  # noqa: PLC0415 - see _from_kubeconfig

    kube_config._cleanup_temp_files()  # type: ignore[no-untyped-call]


def _tls(found: object) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=getattr(found, "ssl_ca_cert", None))
    if getattr(found, "verify_ssl", True) is False:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate, key = getattr(found, "cert_file", None), getattr(found, "key_file", None)
    if certificate:
        tls.load_cert_chain(certificate, key)
    return tls
