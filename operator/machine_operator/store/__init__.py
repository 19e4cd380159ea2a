"""Records that are no Kubernetes objects: idempotency, write marks, usage. SQLite, or PostgreSQL for replicas."""
