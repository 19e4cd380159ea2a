"""SSH sessions: who may log in to which machine through the SSH gateway, and for how long.

A session of a machine that sleeps waits for it. Nothing runs meanwhile: whoever reads a waiting session, on whatever
replica, looks at the machine and settles what has become of it. Its certificate is signed at that moment, so that all
of its time is left. Once a session is closed, nobody logs in with its certificate any more, and every replica cuts
what it has of the session within about a second.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from machine_operator.gateway.access import Access, Readiness
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.ssh.certificates import SessionCertificates
from machine_operator.gateway.ssh.endpoint import SshEndpoint
from machine_operator.gateway.views import MachineView
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.moments import utc_now
from machine_operator.store.ssh_sessions import SshSession, SshSessionRecords, SshStatus
from machine_operator.store.subresources import Place

__all__ = ["SshSessions"]

log = logging.getLogger(__name__)

_PREFIX: Final = "ssh-"
_PATIENCE: Final = timedelta(minutes=10)
"""How long a session waits for its machine."""
_KEPT: Final = timedelta(days=1)
"""How long a session can be read after its last use."""
_SWEEP: Final = 600.0
_DAMAGES: Final = {
    Readiness.FAILED: ("machine_not_routable", "the machine has failed and cannot be woken"),
    Readiness.GONE: ("machine_not_found", "the machine has been destroyed"),
}


class SshSessions:
    """The sessions of all machines. What needs the store raises StoreUnavailable where that cannot be used.

    Args:
        records: the store.
        access: the way to machines.
        certificates: signs and reads.
        endpoint: where clients log in.
        host_authority: public key of what signs the SSH gateway's host key.
        settings: the user of the guests, and how long a certificate is good.
        clock: the time.

    Attributes:
        endpoint: see above.
        host_authority: see above.
        username: whom clients log in as.
    """

    def __init__(
        self,
        records: SshSessionRecords,
        access: Access,
        *,
        certificates: SessionCertificates,
        endpoint: SshEndpoint,
        host_authority: str,
        settings: GatewaySettings,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._records = records
        self._access = access
        self._certificates = certificates
        self._lifetime = timedelta(seconds=settings.ssh_session)
        self._clock = clock
        self.endpoint = endpoint
        self.host_authority = host_authority
        self.username = settings.guest_user

    async def run(self) -> None:
        """Forget old sessions now and then, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                await self._records.sweep(self._clock() - _KEPT)
            except StoreUnavailable as error:
                log.warning("old SSH sessions were not removed: %s", error)

    # ---- for the API

    async def create(
        self, view: MachineView, public_key: str, *, by: str, own_id: bytes | None
    ) -> SshSession:
        """A new session; the same one again for the same `own_id`.

        Args:
            view: the machine, which is asked to wake where it sleeps.
            public_key: as `read_public_key` gives it.
            by: who asks.
            own_id: what its id is made of; None for chance.
        """
        digits = own_id.hex()[:32] if own_id is not None else secrets.token_hex(16)
        now = self._clock()
        readiness = self._access.knock(view, by=by)
        id = _PREFIX + digits
        identity = {
            "id": id,
            "org": view.org,
            "machine_id": view.uuid,
            "machine_uid": view.machine.metadata.uid,
            "created_by": by,
            "created_at": now,
            "used_at": now,
            "public_key": public_key,
        }
        state = self._state(id, public_key, readiness, waiting_since=now)
        session = await self._records.insert({**identity, "status": SshStatus.WAKING, **state})
        return await self._settled(session, view)

    async def get(self, view: MachineView, id: str) -> SshSession | None:
        """One of a machine's."""
        session = await self._records.get(view.org, view.uuid, id)
        return None if session is None else await self._settled(session, view)

    async def page(
        self, view: MachineView, *, after: Place | None, limit: int
    ) -> tuple[list[SshSession], Place | None]:
        """A machine's, the newest first, and where the next page begins."""
        found, more = await self._records.page(view.org, view.uuid, after=after, limit=limit)
        return [await self._settled(session, view) for session in found], more

    async def close(self, view: MachineView, id: str) -> SshSession | None:
        """End one: its certificate is refused from now on, and its connections are cut. None where there is none."""
        session = await self._records.get(view.org, view.uuid, id)
        if session is None or session.status is SshStatus.CLOSED:
            return session
        values = {"status": SshStatus.CLOSED, "closed_at": self._clock()}
        return await self._records.change(id, values) or session

    def expired(self, session: SshSession) -> bool:
        """Whether nobody can log in with it any more."""
        return session.expires_at is not None and session.expires_at <= self._clock()

    async def _settled(self, session: SshSession, view: MachineView) -> SshSession:
        if session.status is not SshStatus.WAKING:
            return session
        readiness = self._access.readiness(view)
        values = self._state(
            session.id, session.public_key, readiness, waiting_since=session.created_at
        )
        if not values:
            return session
        waiting = self._records.table.c.status == SshStatus.WAKING
        changed = await self._records.change(session.id, values, waiting)
        # Another replica was faster.
        return changed or await self._records.get(view.org, view.uuid, session.id) or session

    def _state(
        self, id: str, public_key: str, readiness: Readiness, *, waiting_since: datetime
    ) -> Mapping[str, Any]:
        """What a waiting session becomes; nothing where it goes on waiting."""
        now = self._clock()
        if readiness is Readiness.READY:
            until = now + self._lifetime
            certificate = self._certificates.sign(
                public_key, session=id, username=self.username, since=now, until=until
            )
            return {
                "status": SshStatus.READY,
                "certificate": certificate,
                "ready_at": now,
                "expires_at": until,
            }
        if (damage := _DAMAGES.get(readiness)) is not None:
            code, message = damage
        elif now - waiting_since > _PATIENCE:
            minutes = _PATIENCE // timedelta(minutes=1)
            code, message = "wake_timeout", f"the machine did not wake within {minutes} minutes"
        else:
            return {}
        return {"status": SshStatus.FAILED, "error_code": code, "error_message": message}

    # ---- for the SSH gateway

    async def admit(self, certificate: bytes, *, username: str) -> SshSession | None:
        """The session that a certificate is for; None where it is none of ours, or lets nobody in as `username` now."""
        claim = self._certificates.read(certificate)
        if claim is None or claim.username != username or username != self.username:
            return None
        session = await self._records.find(self._records.table.c.id == claim.session)
        if session is None or session.status is not SshStatus.READY or self.expired(session):
            return None
        return session

    async def still_open(self, ids: Collection[str]) -> set[str]:
        """Those that nobody has closed."""
        return await self._records.open_among(ids) if ids else set()

    async def used(self, ids: Collection[str]) -> None:
        """Say that they are in use, so that they are not forgotten."""
        if ids:
            await self._records.used(ids, self._clock())
