"""The tables' history: Alembic, run from the program. Its scripts are in `migrations/`.

Everything here is given a connection in a transaction, in which both databases make tables too: a migration happens
as a whole or not at all. Who calls must be alone with the database.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from machine_operator.store import artifacts, executions, previews, ssh_sessions, terminals
from machine_operator.store.errors import SchemaError
from machine_operator.store.tables import metadata

__all__ = ["differences", "downgrade", "upgrade"]

log = logging.getLogger(__name__)

# At each start it tells the class that it will use; what it did is told here.
logging.getLogger("alembic.runtime").setLevel(logging.WARNING)

# Each kind of sub-resource has its tables in its own module; all of them have to be known here.
_KINDS: Final = (artifacts, executions, previews, ssh_sessions, terminals)

_SCRIPTS: Final = "machine_operator.store:migrations"


def upgrade(connection: Connection) -> None:
    """Bring the tables to this version.

    Raises:
        SchemaError: a newer version has been here.
    """
    config = _config(connection)
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    if unknown := set(current) - known:
        raise SchemaError(
            f"the store has the tables of a newer version (revision {', '.join(sorted(unknown))}, "
            f"where this one knows {scripts.get_current_head()}); start that version, "
            "or give this one a store of its own"
        )
    if set(current) != set(scripts.get_heads()):
        command.upgrade(config, "head")
        log.info(
            "the store's tables went from revision %s to %s",
            ", ".join(current) or "none",
            scripts.get_current_head(),
        )


def downgrade(connection: Connection, *, to: str = "base") -> None:
    """Take the tables back to the revision `to`; to nothing at all by default. What is in them is lost."""
    command.downgrade(_config(connection), to)


def differences(connection: Connection) -> list[Any]:
    """What is unlike between the tables in the database and those of `tables.py`, as Alembic tells it."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
