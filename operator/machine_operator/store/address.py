"""Where the store is: the URL of the configuration, taken apart.

    sqlite:///relative/file   sqlite:////absolute/file   sqlite:// (in memory, for tests)
    postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE

The password goes to the driver only. Whatever is said about the store, mistakes in the URL included, says `name`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["Address", "Kind", "parse_address"]

Kind = Literal["sqlite", "postgresql"]

_FORMS: Final = "write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
_TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"})


@dataclass(frozen=True, slots=True)
class Address:
    """A store's place.

    Attributes:
        kind: which database it is.
        name: for people; without user and password.
        file: SQLite's file, or None where it is in memory.
        url: what SQLAlchemy connects to.
        tls: PostgreSQL's TLS options, in the form of a libpq URL, or "".
    """

    kind: Kind
    name: str
    file: Path | None = None
    url: URL = field(kw_only=True, repr=False)
    tls: str = field(default="", repr=False)


def parse_address(text: str) -> Address:
    """Take the URL of a store apart.

    Raises:
        ValueError: it is no URL, or not of a database that we know, or has an option that we do not know.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Their messages show the URL, and with it the password.
        raise ValueError(f"the URL of the store cannot be read: {_FORMS}") from None
    match url.drivername:
        case "sqlite":
            return _sqlite(url)
        case "postgresql" | "postgres":
            return _postgresql(url)
        case other:
            raise ValueError(f"{other}: is no store that we can use: {_FORMS}")


def _sqlite(url: URL) -> Address:
    if url.host or url.username or url.port:
        raise ValueError(
            "the URL of a SQLite store has three slashes before the file: sqlite:///FILE"
        )
    if url.query:
        raise ValueError(f"the URL of a SQLite store has no options, but {_listed(url.query)}")
    memory = url.database in (None, "", ":memory:")
    return Address(
        "sqlite",
        "SQLite in memory" if memory else f"SQLite {url.database}",
        None if memory else Path(url.database or ""),
        url=url.set(drivername="sqlite+aiosqlite"),
    )


def _postgresql(url: URL) -> Address:
    allowed = _TLS | {"host"}
    if unknown := url.query.keys() - allowed:
        raise ValueError(
            f"{_listed(unknown)} cannot be set in the URL of a PostgreSQL store; "
            f"what can: {_listed(allowed)}"
        )
    if url.query.get("sslmode", "prefer") not in _TLS_MODES:
        raise ValueError(f"sslmode in the URL of the store is one of {', '.join(_TLS_MODES)}")
    if not url.database:
        raise ValueError("the URL of a PostgreSQL store names no database: add /DATABASE")
    host = url.host or url.query.get("host") or "localhost"
    return Address(
        "postgresql",
        f"PostgreSQL {host}:{url.port or 5432}/{url.database}",
        url=url.set(drivername="postgresql+asyncpg").difference_update_query(_TLS),
        tls=urlencode({name: url.query[name] for name in sorted(_TLS & url.query.keys())}),
    )


def _listed(names: object) -> str:
    return ", ".join(sorted(str(name) for name in names))  # type: ignore[attr-defined]
