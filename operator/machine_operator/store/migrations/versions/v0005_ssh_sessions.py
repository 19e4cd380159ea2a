"""SSH sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "ssh_sessions",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("machine_uid", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("certificate", sa.Text),
        sa.Column("ready_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("used_at", sa.BigInteger, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_ssh_sessions"),
    )
    op.create_index(
        "ix_ssh_sessions_org_machine_id_created_at_id",
        "ssh_sessions",
        ["org", "machine_id", "created_at", "id"],
    )
    op.create_index("ix_ssh_sessions_used_at", "ssh_sessions", ["used_at"])


def downgrade() -> None:
    """Drop it, with all that is in it."""
    op.drop_table("ssh_sessions")
