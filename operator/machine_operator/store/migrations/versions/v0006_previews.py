"""Previews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "previews",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("machine_uid", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("protocol", sa.Text, nullable=False),
        sa.Column("visibility", sa.Text, nullable=False),
        sa.Column("ready_at", sa.BigInteger),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_previews"),
    )
    op.create_index(
        "ix_previews_org_machine_id_created_at_id",
        "previews",
        ["org", "machine_id", "created_at", "id"],
    )
    op.create_index("ix_previews_status_id", "previews", ["status", "id"])


def downgrade() -> None:
    """Drop it, with all that is in it."""
    op.drop_table("previews")
