"""Warm SSH connections to guests: one for each, shared, made when it is first needed and whenever it has broken.

The guest shows a host certificate of the host authority for the name of its VM; no other host key is accepted. We log
in with a key that is made for this one connection and a certificate that the user authority signs for it. Nothing that
belongs to the user whom the gateway runs as is read: no configuration, keys, agent or known hosts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh

from machine_operator.guest.dialer import Dialer
from machine_operator.guest.errors import GuestError, GuestRefused, GuestUnreachable
from machine_operator.guest.guest import Guest
from machine_operator.guest.places import Places
from machine_operator.guest.target import GuestTarget
from machine_operator.kubevirt.authority import Authority

__all__ = ["Guests"]

log = logging.getLogger(__name__)

# Only the first can be right. The others let a guest without a certificate get as far as to be told apart from one that
# is not there.
_HOST_KEYS = (
    "ssh-ed25519-cert-v01@openssh.com",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "rsa-sha2-512",
)

# The cheapest first: much of a guest's first second is key exchange, most of all where its CPU is emulated.
_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org")
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
)
_EXTENSIONS = ("permit-port-forwarding", "permit-pty")

_VALID_FOR = 300
_KEEPALIVES = 3


@dataclass(slots=True)
class _Entry:
    instance_uid: str
    connecting: asyncio.Task[Guest]

    @property
    def guest(self) -> Guest | None:
        """Once it is connected."""
        done = self.connecting.done() and not self.connecting.cancelled()
        return self.connecting.result() if done and self.connecting.exception() is None else None

    @property
    def usable(self) -> bool:
        return not self.connecting.done() or (self.guest is not None and not self.guest.closed)

    @property
    def idle(self) -> bool:
        return self.connecting.done() and (self.guest is None or not self.guest.in_use)


class Guests:
    """All guests that we are connected to, by the UID of their machine."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        user_authority: Authority,
        host_authority: Authority,
        user: str,
        most: int,
        places: Places | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = 30.0,
        keepalive: float = 10.0,
        on_connected: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            dialer: the way there; closed with this.
            user_authority: signs our logins.
            host_authority: has signed the guests' host keys.
            user: who we log in as.
            most: connections; the one that was not used for the longest time makes room, unless it is in use.
            places: where things are in guests.
            clock: seconds since 1970.
            timeout: seconds for one attempt to connect.
            keepalive: seconds of silence after which the guest is asked for a sign of life.
            on_connected: is told how many seconds a connection took, with the login.
        """
        # asyncssh wants the name of the user that we run as, though nothing depends on it; a container may have none.
        os.environ.setdefault("LOGNAME", "gateway")
        self._dialer = dialer
        self._user_authority = user_authority
        self._host_key = asyncssh.import_public_key(host_authority.public)
        self._user, self._most, self._places = user, most, places or Places()
        self._clock, self._timeout, self._keepalive = clock, timeout, keepalive
        self._on_connected = on_connected
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Connections, those that are being made included."""
        return len(self._entries)

    async def connect(self, target: GuestTarget) -> Guest:
        """The guest, connected: at once where it is, else as soon as one attempt, shared by all who ask, succeeds.

        Raises:
            GuestUnreachable: nobody answers there now, or too many others are in use.
            GuestRefused: it is not who it should be, or does not accept us.
        """
        entry = self._entries.get(target.machine_uid)
        if entry is None or entry.instance_uid != target.instance_uid or not entry.usable:
            self.drop(target.machine_uid)
            self._make_room()
            task = asyncio.create_task(self._connect(target), name=f"connect {target.vm}")
            entry = self._entries[target.machine_uid] = _Entry(target.instance_uid, task)
            task.add_done_callback(lambda done: self._done(target.machine_uid, done))
        self._entries.move_to_end(target.machine_uid)
        try:
            # Whoever stops waiting does not stop the others.
            return await asyncio.shield(entry.connecting)
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if entry.connecting.cancelled() and us is not None and not us.cancelling():
                raise GuestUnreachable(f"{target.vm}: the attempt was given up") from None
            raise

    def drop(self, machine_uid: str) -> None:
        """End the connection to a machine, if there is one: it sleeps, or is gone."""
        entry = self._entries.pop(machine_uid, None)
        if entry is not None:
            task = asyncio.create_task(_end(entry), name=f"end {machine_uid}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all connections; none can be made afterwards."""
        self._closed = True
        for machine_uid in list(self._entries):
            self.drop(machine_uid)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._dialer.close()

    def _make_room(self) -> None:
        if self._closed:
            raise GuestUnreachable("the gateway is ending")
        for machine_uid, entry in list(self._entries.items()):
            if not entry.usable:
                self.drop(machine_uid)
        if len(self._entries) < self._most:
            return
        unused = (uid for uid, entry in self._entries.items() if entry.idle)
        oldest = next(unused, None)
        if oldest is None:
            raise GuestUnreachable(
                f"all of the {self._most} connections to machines are in use: raise guest_connections"
            )
        self.drop(oldest)

    def _done(self, machine_uid: str, task: asyncio.Task[Guest]) -> None:
        if task.cancelled() or task.exception() is not None:
            entry = self._entries.get(machine_uid)
            if entry is not None and entry.connecting is task:
                del self._entries[machine_uid]

    async def _connect(self, target: GuestTarget) -> Guest:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._log_in(target)
        except TimeoutError as error:
            raise GuestUnreachable(
                f"{target.vm}: no login within {self._timeout:g} s: is its sshd busy or stuck?"
            ) from error
        except (
            asyncssh.HostKeyNotVerifiable,
            asyncssh.PermissionDenied,
            asyncssh.KeyExchangeFailed,
        ) as error:
            raise GuestRefused(f"{target.vm}: {error.reason}") from error
        except (asyncssh.Error, OSError) as error:
            raise GuestUnreachable(f"{target.vm}: the login was cut off: {error}") from error
        seconds = time.monotonic() - began
        log.debug("connected to %s within %.3f s", target.vm, seconds)
        self._on_connected(seconds)
        return Guest(target, connection, seconds=seconds, places=self._places)

    async def _log_in(self, target: GuestTarget) -> asyncssh.SSHClientConnection:
        key, certificate = self._credentials(target)
        sock = await self._dialer.dial(target)
        try:
            return await asyncssh.connect(
                target.vm,
                sock=sock,
                username=self._user,
                config=None,
                known_hosts=([], [self._host_key], []),
                host_key_alias=target.vm,
                server_host_key_algs=_HOST_KEYS,
                x509_trusted_certs=None,
                x509_trusted_cert_paths=[],
                client_keys=[(key, certificate)],
                agent_path=None,
                preferred_auth="publickey",
                gss_kex=False,
                gss_auth=False,
                host_based_auth=False,
                password_auth=False,
                kbdint_auth=False,
                kex_algs=_KEX,
                encryption_algs=_CIPHERS,
                compression_algs=None,
                login_timeout=self._timeout,
                keepalive_interval=self._keepalive,
                keepalive_count_max=_KEEPALIVES,
                env=None,
                send_env=None,
            )
        except BaseException:
            sock.close()
            raise

    def _credentials(self, target: GuestTarget) -> tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
        key = asyncssh.generate_private_key("ssh-ed25519")
        # From the beginning of time: the clock of a guest that slept may be behind by as long as it did.
        certificate = self._user_authority.certify_user(
            key.export_public_key().decode(),
            key_id=f"gateway {target.org}/{target.vm}",
            principals=[target.vm],
            valid_after=0,
            valid_before=int(self._clock()) + _VALID_FOR,
            extensions=_EXTENSIONS,
        )
        return key, asyncssh.import_certificate(certificate)


async def _end(entry: _Entry) -> None:
    entry.connecting.cancel()
    try:
        guest = await entry.connecting
    except (GuestError, asyncio.CancelledError):
        return
    await guest.close()
