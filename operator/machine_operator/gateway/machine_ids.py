"""Machine ids. A machine made over REST is named by its id, `dm-` and a UUID; any other has the UUID of its object.

Both spellings, with and without `dm-`, are understood everywhere, and answers use the spelling of the request: some
published clients ask again with the id that they got back, and insist on the one form or the other.
"""

from __future__ import annotations

import hashlib
import re
import uuid

from machine_operator.api.machine import Machine

__all__ = ["PREFIX", "bare_id", "new_name", "own_id"]

PREFIX = "dm-"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_name(org: str, idempotency_key: str | None) -> str:
    """The name of a new machine's object.

    With a key the name is made of it: a create that is repeated, by any replica and after any crash, meets the object
    of the first one. The UUID is of version 8, whose bits are the maker's own affair (RFC 9562).
    """
    if idempotency_key is None:
        return f"{PREFIX}{uuid.uuid4()}"
    digest = bytearray(hashlib.sha256(f"{org}\0{idempotency_key}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return f"{PREFIX}{uuid.UUID(bytes=bytes(digest))}"


def bare_id(spelled: str) -> str | None:
    """The UUID of an id in either spelling; None where it is none."""
    bare = spelled.removeprefix(PREFIX)
    return bare if _UUID.fullmatch(bare) else None


def own_id(machine: Machine) -> str:
    """The UUID by which a machine is known."""
    name = machine.metadata.name
    named = bare_id(name) if name.startswith(PREFIX) else None
    return named or machine.metadata.uid
