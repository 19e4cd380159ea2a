"""The first tables: idempotency records, write marks, segments of use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "idempotency_records",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.LargeBinary),
        sa.Column("etag", sa.Text),
        sa.Column("headers", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_idempotency_records"),
    )
    op.create_index("ix_idempotency_records_expires_at", "idempotency_records", ["expires_at"])
    op.create_table(
        "write_marks",
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("org", name="pk_write_marks"),
    )
    op.create_table(
        "usage_segments",
        sa.Column("machine_uid", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("ordinal", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("vcpu_millis", sa.BigInteger, nullable=False),
        sa.Column("memory_mib", sa.BigInteger, nullable=False),
        sa.Column("storage_gib", sa.BigInteger, nullable=False),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("machine_uid", "kind", "ordinal", name="pk_usage_segments"),
        sa.CheckConstraint("kind IN ('awake', 'storage')", name=op.f("ck_usage_segments_kind")),
        sa.CheckConstraint("ended_at >= began_at", name=op.f("ck_usage_segments_forward")),
    )
    op.create_index(
        "ix_usage_segments_org_kind_ended_at", "usage_segments", ["org", "kind", "ended_at"]
    )
    op.create_index(
        "ix_usage_segments_open",
        "usage_segments",
        ["machine_uid", "kind"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def downgrade() -> None:
    """Drop them, with all that is in them."""
    op.drop_table("usage_segments")
    op.drop_table("write_marks")
    op.drop_table("idempotency_records")
