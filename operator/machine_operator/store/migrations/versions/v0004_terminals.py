"""Terminals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "terminals",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("machine_uid", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("shell", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("env", sa.JSON),
        sa.Column("instance_uid", sa.Text),
        sa.Column("client", sa.Text),
        sa.Column("used_until", sa.BigInteger),
        sa.Column("ready_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_terminals"),
    )
    op.create_index(
        "ix_terminals_org_machine_id_created_at_id",
        "terminals",
        ["org", "machine_id", "created_at", "id"],
    )
    op.create_index("ix_terminals_status_expires_at", "terminals", ["status", "expires_at"])
    op.create_index("ix_terminals_closed_at", "terminals", ["closed_at"])


def downgrade() -> None:
    """Drop it, with all that is in it."""
    op.drop_table("terminals")
