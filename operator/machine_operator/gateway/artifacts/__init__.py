"""Artifacts: files that executions leave behind."""
