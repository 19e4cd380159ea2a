"""Artifacts: what a run leaves in `$DEDALUS_ARTIFACTS_DIR`, collected when it has ended, and kept for a while.

    listed in the guest ──> announced (a row that nobody sees) ──> written, piece by piece ──> shown with the end

A file streams from the guest through SHA-256 into the store of objects; it is never whole in memory. A gateway that
dies in the midst of it leaves rows that were announced: whoever goes on removes them with their objects and begins
anew, under other names. What is removed is hidden first, then its object is, and its row last: nothing is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from machine_operator.gateway.artifacts.files import ArtifactFiles, FilesError, TooLarge
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.tokens import Tokens
from machine_operator.store.artifacts import Artifact, ArtifactRecords
from machine_operator.store.database import Database
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.executions import Event, Execution
from machine_operator.store.moments import utc_now

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest

__all__ = ["Artifacts", "Collection", "Omission"]

log = logging.getLogger(__name__)

_PURPOSE: Final = "artifact"
_LINK_SECONDS: Final = 15 * 60.0
_MOST: Final = 100
_LONGEST_NAME: Final = 1024
_COLLECTING: Final = 900.0
_ABANDONED: Final = timedelta(hours=1)
_ROUND: Final = 60.0
_BATCH: Final = 100
_UNKNOWN_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Omission:
    """Files that were not kept, and why."""

    code: str
    message: str

    def event(self, at: datetime) -> Event:
        """As something that happened to the execution, still without a number."""
        return Event(
            0,
            "lifecycle",
            at,
            status="running",
            error_code=self.code,
            error_message=self.message,
        )


@dataclass(slots=True)
class Collection:
    """What an execution left.

    Attributes:
        kept: what is known of each artifact, by id.
        references: `{artifact_id, name}` of each.
        omissions: what was not kept.
    """

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    references: list[dict[str, str]] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)


class Artifacts:
    """The artifacts of all machines.

    Args:
        database: where they are written down.
        tokens: signs links to them.
        settings: where their bytes are, how large they may be, how long they are kept.
        clock: tells the time, with a zone.

    Raises:
        ConfigurationError: there is no place for their bytes.
    """

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        settings: GatewaySettings,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.records = ArtifactRecords(database, clock=clock)
        self.files = ArtifactFiles(settings.artifacts)
        self._tokens = tokens
        self._most_bytes = settings.artifact_limit_mib * 1024 * 1024
        self._kept_for = timedelta(seconds=settings.artifact_retention)
        self._clock = clock

    async def run(self) -> None:
        """Remove what has expired, until cancelled."""
        while True:
            await asyncio.sleep(_ROUND)
            await self.sweep()

    # ---- collecting

    async def collect(self, execution: Execution, guest: Guest, *, again: bool) -> Collection:
        """Bring an ended execution's files here; they are shown once `publish` was a part of its end.

        Args:
            execution: whose files.
            guest: where they are.
            again: whether there may be something of an earlier attempt.

        Raises:
            GuestError: the guest cannot be read.
            StoreUnavailable: the database cannot be used.
        """
        if again:
            await self._discard(await self.records.unfinished(execution.id))
        collection = Collection()
        files = await guest.runner.artifacts(execution.id)
        if len(files) > _MOST:
            message = f"{len(files) - _MOST} of {len(files)} artifacts were not kept: there may be {_MOST}"
            collection.omissions.append(Omission("artifact_limit", message))
        found: list[tuple[str, dict[str, Any]]] = []
        for file in files[:_MOST]:
            shown = _shown(file.name)
            if file.size > self._most_bytes or len(shown.encode()) > _LONGEST_NAME:
                collection.omissions.append(self._too_large(shown))
            else:
                found.append((file.name, self._row(execution, shown, file.size)))
        if not found:
            return collection
        await self.records.announce([row for _, row in found])
        deadline = asyncio.get_running_loop().time() + _COLLECTING
        for name, row in found:
            pieces = guest.runner.read_artifact(execution.id, name)
            try:
                async with asyncio.timeout_at(deadline), aclosing(pieces):
                    written = await self.files.write(row["key"], pieces, most=self._most_bytes)
            except TooLarge:
                collection.omissions.append(self._too_large(row["name"]))
            except (FilesError, FileNotFoundError, TimeoutError) as error:
                log.error("artifact %s of %s was not kept: %r", row["id"], execution.id, error)
                collection.omissions.append(_not_stored(row["name"]))
            else:
                known = {"size_bytes": written.size, "sha256": written.sha256}
                collection.kept[row["id"]] = known
                collection.references.append({"artifact_id": row["id"], "name": row["name"]})
        return collection

    async def publish(self, connection: AsyncConnection, collection: Collection) -> None:
        """Show what was collected, in the transaction of the execution's end."""
        await self.records.publish(connection, collection.kept)

    def _row(self, execution: Execution, name: str, size: int) -> dict[str, Any]:
        now, id = self._clock(), f"art-{secrets.token_hex(16)}"
        return {
            "id": id,
            "org": execution.org,
            "machine_id": execution.machine_id,
            "machine_uid": execution.machine_uid,
            "created_by": execution.created_by,
            "created_at": now,
            "execution_id": execution.id,
            "name": name,
            "size_bytes": size,
            "mime_type": mimetypes.guess_type(name)[0] or _UNKNOWN_TYPE,
            "sha256": "",
            "key": id,
            "expires_at": now + self._kept_for,
        }

    def _too_large(self, name: str) -> Omission:
        mebibytes = self._most_bytes // (1024 * 1024)
        shown = name[:_LONGEST_NAME]
        return Omission(
            "artifact_too_large", f"artifact {shown} was not kept: it may have {mebibytes} MiB"
        )

    # ---- links

    def link(self, artifact: Artifact, *, base: str) -> str:
        """Where its content can be had for a while, by whoever has the link."""
        left = (artifact.expires_at - self._clock()).total_seconds()
        token = self._tokens.sign(_PURPOSE, artifact.id, seconds=max(1.0, min(_LINK_SECONDS, left)))
        return f"{base}/v1/artifacts/{artifact.id}/content?token={token}"

    def check(self, id: str, token: str) -> None:
        """Return if a link's token is good.

        Raises:
            TokenError: it is not.
        """
        self._tokens.check(token, _PURPOSE, id)

    def content(self, artifact: Artifact, *, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes of it, in pieces."""
        return self.files.read(artifact.key, start=start, end=end)

    # ---- removing

    async def remove(self, artifacts: Iterable[Artifact]) -> None:
        """Remove some; from now on nobody sees them, even where their objects cannot be removed now."""
        doomed = list(artifacts)
        await self.records.hide([one.id for one in doomed])
        await self._discard(doomed)

    async def sweep(self) -> int:
        """Remove what has expired or was never finished; how many there were."""
        swept = 0
        try:
            while True:
                old = await self.records.expired(abandoned=_ABANDONED, limit=_BATCH)
                gone = await self._discard(old)
                swept += gone
                if len(old) < _BATCH or not gone:
                    return swept
        except StoreUnavailable as error:
            log.warning("old artifacts were not removed: %s", error)
            return swept

    async def _discard(self, artifacts: Iterable[Artifact]) -> int:
        gone = []
        for artifact in artifacts:
            try:
                await self.files.remove(artifact.key)
            except FilesError as error:
                log.warning("artifact %s stays until the next round: %s", artifact.id, error)
            else:
                gone.append(artifact.id)
        return await self.records.remove(gone) if gone else 0


def _shown(name: str) -> str:
    """A file's name, which may be any bytes, as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _not_stored(name: str) -> Omission:
    return Omission(
        "artifact_not_stored",
        f"artifact {name[:_LONGEST_NAME]} was not kept: it could not be stored",
    )
