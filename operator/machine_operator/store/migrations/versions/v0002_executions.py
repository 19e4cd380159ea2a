"""Executions, what they are given, and what happened to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their tables."""
    op.create_table(
        "executions",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("machine_uid", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("command", sa.JSON, nullable=False),
        sa.Column("cwd", sa.Text),
        sa.Column("env_keys", sa.JSON),
        sa.Column("timeout_ms", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("exit_code", sa.Integer),
        sa.Column("signal", sa.Integer),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("stdout_bytes", sa.BigInteger, nullable=False),
        sa.Column("stderr_bytes", sa.BigInteger, nullable=False),
        sa.Column("stdout_kept", sa.BigInteger, nullable=False),
        sa.Column("stderr_kept", sa.BigInteger, nullable=False),
        sa.Column("stdout_truncated", sa.Boolean, nullable=False),
        sa.Column("stderr_truncated", sa.Boolean, nullable=False),
        sa.Column("artifacts", sa.JSON),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("cancelling", sa.Boolean, nullable=False),
        sa.Column("instance_uid", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_executions"),
    )
    op.create_index(
        "ix_executions_org_machine_id_created_at_id",
        "executions",
        ["org", "machine_id", "created_at", "id"],
    )
    op.create_index("ix_executions_expires_at", "executions", ["expires_at"])
    op.create_index(
        "ix_executions_owner",
        "executions",
        ["owner", "lease_until"],
        sqlite_where=sa.text("owner IS NOT NULL"),
        postgresql_where=sa.text("owner IS NOT NULL"),
    )
    op.create_table(
        "execution_inputs",
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("env", sa.JSON, nullable=False),
        sa.Column("stdin", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("execution_id", name="pk_execution_inputs"),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name="fk_execution_inputs_execution_id",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "execution_events",
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("chunk", sa.LargeBinary),
        sa.Column("status", sa.Text),
        sa.Column("exit_code", sa.Integer),
        sa.Column("signal", sa.Integer),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("execution_id", "sequence", name="pk_execution_events"),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name="fk_execution_events_execution_id",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    """Drop them, with all that is in them."""
    op.drop_table("execution_events")
    op.drop_table("execution_inputs")
    op.drop_table("executions")
