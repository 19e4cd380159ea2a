"""Executions: commands in machines, and what becomes of them."""
