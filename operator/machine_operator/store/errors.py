"""What can go wrong with the store.

    StoreUnavailable   the database is away, too slow, full or shutting down     retry: 503
    SchemaError        its tables are not those of this version                  stop

Everything else that a database says (a wrong statement, a constraint that was broken) is a mistake of ours and passes
through as it is. The classes of the drivers are of no help there: SQLite says OperationalError of a table that is not
there and of a full disk alike, and asyncpg lets errors of the operating system through. Hence the codes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

__all__ = ["SchemaError", "StoreUnavailable", "told"]

_SQLITE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
_POSTGRESQL: Final = (
    "08",  # the connection broke
    "25006",  # it became a standby
    "25P03",  # the transaction was idle for too long
    "28",  # it does not let us in
    "3D",  # the database is not there (yet)
    "40",  # deadlock or serialization failure: the same transaction will do
    "53",  # too many connections, disk or memory full
    "55P03",  # a lock was not to be had in time
    "57",  # cancelled, shutting down, starting
    "58",  # I/O error
)
_LONGEST_REASON: Final = 200


class StoreUnavailable(Exception):
    """The database cannot be used now. The same operation may succeed later."""

    retryable: ClassVar[bool] = True


class SchemaError(Exception):
    """The tables are not what this version works with; waiting does not help."""

    retryable: ClassVar[bool] = False


@contextmanager
def told(name: str) -> Iterator[None]:
    """Turn what tells that the database `name` (as people know it, without secrets) cannot be used.

    Raises:
        StoreUnavailable: in place of errors of connection, operation and time.
    """
    try:
        yield
    except DBAPIError as error:
        if not _unusable(error):
            raise
        raise _unavailable(name, _first_line(error.orig or error)) from error
    except PoolTimeout as error:
        raise _unavailable(name, "all connections are in use") from error
    except TimeoutError as error:
        raise _unavailable(name, "no answer came in time") from error
    except OSError as error:
        why = error.strerror or _first_line(error)
        if error.filename is not None:
            why = f"{error.filename}: {why}"
        raise _unavailable(name, why) from error


def _unusable(error: DBAPIError) -> bool:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        # Extended codes, such as SQLITE_BUSY_SNAPSHOT, have the plain one in their lowest byte. Errors that Python's
        # own layer raises have none.
        return getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _SQLITE
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRESQL)
    # Without a state it is asyncpg itself that speaks: of a connection that is gone, of one whose session ended under
    # its hands, or of a prepared statement that a migration made stale and that is prepared anew at the next try.
    return error.connection_invalidated or type(original).__name__ in {
        "InternalClientError",
        "InvalidCachedStatementError",
    }


def _unavailable(name: str, why: str) -> StoreUnavailable:
    return StoreUnavailable(f"the store ({name}) cannot be used now: {why}; try again later")


def _first_line(error: BaseException) -> str:
    # SQLAlchemy writes the class of the driver before the driver's words.
    text = (str(error).splitlines() or [""])[0].rpartition(">: ")[2].strip()
    return text[:_LONGEST_REASON] or type(error).__name__
